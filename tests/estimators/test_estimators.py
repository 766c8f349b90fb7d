"""What users do with the estimators: data of all kinds, modules of all kinds, weights, continued fits."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_regression
from torch import nn

from sklearn_capacity import (
    GeneralizationLayerClassifier,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)
from sklearn_capacity.architectures import MLP, CifarResNet
from sklearn_capacity.penalties import frobenius_penalty

ALL = [NetworkClassifier, NetworkRegressor, JacobianRegularizedClassifier, JacobianRegularizedRegressor]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X[:300] / 16).astype(np.float32), y[:300]


def small_conv(n_outputs: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, n_outputs))


class WithShape(nn.Module):
    def __init__(self, input_shape, n_features, n_outputs):
        super().__init__()
        self.seen = input_shape, n_features, n_outputs
        self.linear = nn.LazyLinear(n_outputs)

    def forward(self, X):
        return self.linear(X.flatten(1))


# ---- data -------------------------------------------------------------------------------------


def test_string_labels_come_back(digits):
    X, y = digits
    names = np.array([f"digit {k}" for k in range(10)])
    model = NetworkClassifier(max_epochs=20, random_state=0).fit(X, names[y])
    assert model.classes_.tolist() == names.tolist()
    assert model.score(X, names[y]) > 0.95
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.log(proba), model.predict_log_proba(X), rtol=1e-3, atol=1e-5)
    assert (names[model.decision_function(X).argmax(axis=1)] == model.predict(X)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_computes_in_the_precision_of_X_by_default(digits, dtype):
    X, y = digits
    as_torch = getattr(torch, dtype)
    for requested, given in (("auto", dtype), (dtype, "float64"), (np.dtype(dtype), "float32"), (as_torch, "float32")):
        model = NetworkClassifier(max_epochs=1, dtype=requested).fit(X.astype(given), y)
        assert {str(p.dtype) for p in model.module_.parameters()} == {f"torch.{dtype}"}
        assert model.predict_proba(X.astype("float32")).dtype == dtype


def test_data_frames_keep_their_names(digits):
    X, y = digits
    frame = pd.DataFrame(X[:, 20:24], columns=list("abcd"))
    model = NetworkClassifier(max_epochs=1).fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "e"}))


def test_images_as_rows_or_as_images_are_the_same(digits):
    X, y = digits
    settings = {"module": small_conv, "max_epochs": 2, "random_state": 0}
    images = NetworkClassifier(**settings).fit(X.reshape(-1, 1, 8, 8), y)
    rows = NetworkClassifier(**settings, input_shape=(1, 8, 8)).fit(X, y)
    assert images.input_shape_ == rows.input_shape_ == (1, 8, 8)
    assert images.n_features_in_ == 64
    np.testing.assert_array_equal(images.predict_proba(X), rows.predict_proba(X.reshape(-1, 1, 8, 8)))
    nested = NetworkClassifier(**settings).fit(X[:20].reshape(-1, 1, 8, 8).tolist(), y[:20])
    assert nested.input_shape_ == (1, 8, 8)
    assert NetworkClassifier(max_epochs=1).fit(X.reshape(-1, 1, 8, 8), y).predict(X[:3]).shape == (3,)  # MLP


def test_regression_with_one_and_several_outputs():
    X, Y = make_regression(150, 5, n_targets=3, random_state=0)
    Y = Y / Y.std()
    model = NetworkRegressor(random_state=0, max_epochs=100).fit(X, Y)
    assert model.predict(X).shape == (150, 3)
    assert model.score(X, Y) > 0.95
    one = NetworkRegressor(loss="absolute", max_epochs=5).fit(X, Y[:, 0])
    assert one.predict(X).shape == (150,) and one.loss_name_ == "absolute"
    assert NetworkRegressor(max_epochs=5).fit(X, Y[:, :1]).predict(X).shape == (150, 1)


def test_loss_is_the_mean_over_samples_and_outputs():
    X, y = np.zeros((4, 1)), np.array([[1.0, 3.0]] * 4)
    for loss, value in (("squared", 5.0), ("absolute", 2.0)):
        model = NetworkRegressor((), loss=loss, bias=False, max_epochs=1).fit(X, y)
        assert model.history_[0]["train_loss"] == pytest.approx(value)


# ---- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("batch_size", [128, 16])
def test_zero_weight_is_the_same_as_leaving_out(digits, kind, batch_size):
    X, y = digits
    weight = np.ones(200)
    weight[50:] = 0
    model = kind(batch_size=batch_size, max_epochs=2, random_state=0)
    weighted = copy.deepcopy(model).fit(X[:200], y[:200], sample_weight=weight)
    alone = model.fit(X[:50], y[:50])
    np.testing.assert_allclose(weighted.predict(X), alone.predict(X), rtol=1e-4)
    assert weighted.n_samples_fit_ == 50


def test_penalty_is_weighted_too():
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(30, 4)), rng.normal(size=30), rng.integers(1, 4, 30)
    model = JacobianRegularizedRegressor(jacobian_penalty=1.0, random_state=0, max_epochs=20)
    weighted = copy.deepcopy(model).fit(X, y, weight).predict(X)
    repeated = model.fit(X.repeat(weight, axis=0), y.repeat(weight)).predict(X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-8)


def test_balanced_class_weight_equals_its_definition():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), (np.arange(60) >= 45).astype(int)
    by_name = NetworkClassifier(class_weight="balanced", random_state=0).fit(X, y).predict_proba(X)
    by_hand = NetworkClassifier(class_weight={0: 60 / 90, 1: 60 / 30}, random_state=0).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(by_name, by_hand, rtol=1e-9)
    by_weight = NetworkClassifier(random_state=0).fit(X, y, sample_weight=np.where(y, 3.0, 1.0)).predict_proba(X)
    np.testing.assert_allclose(by_name, by_weight, rtol=1e-9)


# ---- modules ----------------------------------------------------------------------------------


def test_module_may_be_class_factory_partial_or_instance(digits):
    X, y = digits
    model = NetworkClassifier(module=WithShape, max_epochs=1).fit(X, y)
    assert model.module_.seen == ((64,), 64, 10)
    wide = NetworkClassifier(module=small_conv, module_params={"width": 6}, input_shape=(1, 8, 8), max_epochs=1)
    assert wide.fit(X, y).module_[0].out_channels == 6
    instance = MLP(64, 10, (5,))
    before = copy.deepcopy(instance.state_dict())
    model = NetworkClassifier(module=instance, max_epochs=2).fit(X, y)
    assert model.module_ is not instance
    for key, value in before.items():  # the copy starts from the weights, and the user's module is unchanged
        assert torch.equal(instance.state_dict()[key], value)
        assert torch.equal(model.initial_state_[key], value)


def test_module_may_be_the_name_of_an_architecture(digits):
    X, y = digits
    settings = {"input_shape": (1, 8, 8), "max_epochs": 1, "random_state": 0}
    model = NetworkClassifier(module="resnet20", **settings).fit(X[:60], y[:60])
    assert type(model.module_) is CifarResNet
    assert np.isfinite(model.predict_proba(X[:5])).all()
    mlp = NetworkRegressor(module="mlp", module_params={"hidden_layer_sizes": (7,)}, **settings).fit(X, y)
    plain = NetworkRegressor((7,), max_epochs=1, random_state=0).fit(X, y)
    np.testing.assert_array_equal(mlp.predict(X), plain.predict(X))
    with pytest.raises(TypeError, match="`hiden` is not a parameter of the architecture 'mlp'"):
        NetworkRegressor(module="mlp", module_params={"hiden": 3}).fit(X, y)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp_parameters_make_the_network(digits, batch_norm):
    X, y = digits
    model = NetworkClassifier((8, 4), "tanh", bias=False, batch_norm=batch_norm, dropout=0.5, max_epochs=1).fit(X, y)
    names = [type(m).__name__ for m in model.module_]
    hidden = ["Linear", *(["BatchNorm1d"] if batch_norm else []), "Tanh", "Dropout"]
    assert names == ["Flatten", *hidden, *hidden, "Linear"]
    assert all(m.bias is None for m in model.module_ if isinstance(m, nn.Linear))
    assert [type(m).__name__ for m in NetworkClassifier((), max_epochs=1).fit(X, y).module_] == ["Flatten", "Linear"]


def test_weight_norm_keeps_rows_at_unit_length(digits):
    X, y = digits
    model = NetworkClassifier((8,), weight_norm=True, max_epochs=3).fit(X, y)
    linear = model.module_[1]
    unit = linear(torch.eye(64)) - linear.bias  # columns of the effective weight
    torch.testing.assert_close(unit.norm(dim=0), torch.ones(8))
    assert not torch.allclose(linear.weight.norm(dim=1), torch.ones(8), atol=1e-3)


def test_last_batch_of_one_sample_passes_batch_norm(digits):
    X, y = digits
    model = NetworkClassifier(batch_norm=True, batch_size=50, max_epochs=2).fit(X[:101], y[:101])
    assert model.history_[-1]["train_batch_count"] == 2


def test_initial_state_is_the_module_before_training(digits):
    X, y = digits
    model = NetworkClassifier(batch_norm=True, max_epochs=1, learning_rate=0.5, random_state=0).fit(X, y)
    assert model.initial_state_.keys() == model.module_.state_dict().keys()
    assert all(value.device.type == "cpu" and not value.requires_grad for value in model.initial_state_.values())
    again = NetworkClassifier(batch_norm=True, max_epochs=2, random_state=0).fit(X, y)
    for key, value in model.initial_state_.items():
        assert torch.equal(value, again.initial_state_[key])
    assert not torch.equal(model.initial_state_["1.weight"], model.module_.state_dict()["1.weight"])


# ---- the penalty ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["frobenius", "projection"])
def test_stronger_penalty_gives_smaller_jacobians(digits, norm):
    X, y = digits
    sizes = []
    for strength in (0.0, 0.001, 0.01, 0.1, 1.0):
        model = JacobianRegularizedClassifier(
            (20,), jacobian_penalty=strength, jacobian_norm=norm, max_epochs=15, random_state=0
        ).fit(X, y)
        sizes.append(frobenius_penalty(model.module_, torch.from_numpy(X)).item())
    assert (np.diff(sizes) < 0).all(), sizes


def test_zero_strength_is_the_plain_network_to_the_bit(digits):
    X, y = digits
    plain = NetworkClassifier(max_epochs=3, random_state=0).fit(X, y)
    zero = JacobianRegularizedClassifier(jacobian_penalty=0, max_epochs=3, random_state=0).fit(X, y)
    np.testing.assert_array_equal(plain.predict_proba(X), zero.predict_proba(X))
    assert "train_penalty" not in zero.history_[-1]


def test_first_step_minimises_loss_plus_penalty():
    """One full-batch SGD step moves against the gradient of loss + strength * R, computed apart."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    model = JacobianRegularizedClassifier(
        (6,), jacobian_penalty=0.3, optimizer="sgd", learning_rate=0.1, max_epochs=1, jacobian_output="softmax"
    ).fit(X, y)
    module = copy.deepcopy(model.module_)
    module.load_state_dict(model.initial_state_)
    from reference_penalties import mean_squared_jacobian

    penalty = mean_squared_jacobian(module, torch.from_numpy(X), "softmax")
    loss = nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))
    assert model.history_[0]["train_loss"] == pytest.approx(loss.item())
    assert model.history_[0]["train_penalty"] == pytest.approx(penalty.item())
    (loss + 0.3 * penalty).backward()
    for after, before in zip(model.module_.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad)


# ---- continued fits ---------------------------------------------------------------------------


def test_partial_fit_learns_epoch_by_epoch(digits):
    X, y = digits
    model = NetworkClassifier(random_state=0)
    for _ in range(15):
        model.partial_fit(X, y, classes=np.arange(10))
    assert model.n_iter_ == len(model.history_) == 15
    assert model.score(X, y) > 0.9
    model.partial_fit(X[:1], y[:1])  # one sample, one class
    assert not hasattr(NetworkClassifier(early_stopping=True), "partial_fit")


def test_partial_fit_shuffles_anew_each_time_and_reproducibly(digits):
    X, y = digits

    def fitted() -> NetworkClassifier:
        model = NetworkClassifier(random_state=0, batch_size=32)
        return model.partial_fit(X, y, classes=range(10)).partial_fit(X, y)

    first, second = fitted(), fitted()
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert first._next_seed(False) != first._next_seed(False)


def test_warm_start_goes_on_with_the_parameters_as_they_are_now(digits):
    X, y = digits
    model = JacobianRegularizedClassifier(warm_start=True, max_epochs=5, random_state=0, jacobian_penalty=0.0).fit(X, y)
    optimizer = model.net_.optimizer_
    before = frobenius_penalty(model.module_, torch.from_numpy(X)).item()
    model.set_params(jacobian_penalty=1.0).fit(X, y)
    assert model.n_iter_ == 10 and model.net_.optimizer_ is optimizer
    assert frobenius_penalty(model.module_, torch.from_numpy(X)).item() < before
    model.set_params(learning_rate=1e-9, optimizer="lbfgs", optimizer_params={"max_iter": 2}).fit(X, y)
    assert isinstance(model.net_.optimizer_, torch.optim.LBFGS)
    assert model.net_.optimizer_.param_groups[0]["lr"] == 1e-9
    cold = NetworkClassifier(max_epochs=5).fit(X, y).fit(X, y)
    assert cold.n_iter_ == 5


def test_early_stopping_restores_the_best_epoch(digits):
    X, y = digits
    model = NetworkClassifier(early_stopping=True, validation_fraction=0.2, n_iter_no_change=4, max_epochs=300,
                              learning_rate=0.1, random_state=0).fit(X, y)  # fmt: skip
    losses = [epoch["valid_loss"] for epoch in model.history_]
    assert model.n_iter_ < 300
    assert int(np.argmin(losses)) <= model.n_iter_ - 5
    assert model.n_samples_fit_ == 240
    # the validation part again, by the seed that the fit drew
    from sklearn.model_selection import train_test_split

    seed = int(np.random.SeedSequence([model._seed, 0]).generate_state(1)[0])
    _, valid = train_test_split(np.arange(300), stratify=y, test_size=0.2, random_state=seed)
    loss = -model.predict_log_proba(X[valid])[np.arange(60), y[valid]].mean()
    assert loss == pytest.approx(min(losses), rel=1e-4)
    few = NetworkClassifier(early_stopping=True, max_epochs=2).fit(X[:20], np.r_[np.zeros(19), 1])
    assert few.n_samples_fit_ == 18  # too small for strata


@pytest.mark.parametrize(
    "model",
    [
        NetworkClassifier(dropout=0.3),
        NetworkClassifier((8,), batch_norm=True),
        JacobianRegularizedClassifier((20,), jacobian_penalty=1e-4),
    ],
    ids=["dropout", "batch norm", "jacobian"],
)
def test_stop_at_error_ends_as_the_training_data_is_learnt(digits, model):
    X, y = digits
    model.set_params(stop_at_error=0.0, max_epochs=300, random_state=0).fit(X, y)
    errors = [epoch["train_error"] for epoch in model.history_]
    assert model.score(X, y) == 1 and model.n_iter_ == len(errors) < 300
    assert errors[-1] == 0 and min(errors[:-1]) > 0
    # The same epochs without the stop: the check changes neither the weights nor the random numbers.
    plain = clone(model).set_params(stop_at_error=None, max_epochs=model.n_iter_).fit(X, y)
    np.testing.assert_array_equal(plain.predict_proba(X), model.predict_proba(X))
    assert "train_error" not in plain.history_[0]
    # Each recorded error is that of the network after its epoch.
    shorter = clone(model).set_params(max_epochs=2).fit(X, y)
    assert shorter.history_[-1, "train_error"] == pytest.approx(1 - shorter.score(X, y), abs=1e-9)
    assert shorter.history_[-1, "train_error"] == errors[1]


def test_stop_at_error_weighs_the_samples(digits):
    X, y = digits
    wrong = y.copy()
    wrong[:30] = (y[:30] + 1) % 10  # contradict the same images, which follow with their true labels
    X, y = np.concatenate([X[:30], X]), np.concatenate([wrong[:30], y])
    weights = np.r_[np.full(30, 0.1), np.ones(len(y) - 30)]
    model = NetworkClassifier(stop_at_error=0.02, max_epochs=100, random_state=0).fit(X, y, sample_weight=weights)
    error = np.average(model.predict(X) != y, weights=weights)
    assert model.history_[-1, "train_error"] == pytest.approx(error, rel=1e-5)
    assert error <= 0.02 < np.mean(model.predict(X) != y)


@pytest.mark.parametrize("Model", [NetworkClassifier, GeneralizationLayerClassifier])
def test_a_changed_stop_holds_for_the_next_fit(digits, Model):
    X, y = digits
    model = Model((20, 20), max_epochs=1, warm_start=True, random_state=0).fit(X, y)
    model.set_params(stop_at_error=0.9, max_epochs=50).fit(X, y)
    assert model.n_iter_ == 2


def test_stop_below_ends_at_the_threshold(digits):
    X, y = digits
    model = NetworkClassifier(stop_below=0.1, max_epochs=200, random_state=0).fit(X, y)
    losses = [epoch["train_loss"] for epoch in model.history_]
    assert losses[-1] < 0.1 and min(losses[:-1]) >= 0.1
