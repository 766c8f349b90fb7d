"""Bad input: one clear message each, before any work, and never a broken network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_capacity import (
    DivergenceError,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3
IMAGES = X[:, :4].reshape(-1, 1, 2, 2)

BAD_PARAMETERS = [
    ({"learning_rate": 0}, ValueError, r"`learning_rate` must lie in \(0, inf\), got 0"),
    ({"learning_rate": "fast"}, TypeError, "`learning_rate` must be a number"),
    ({"weight_decay": -1}, ValueError, "`weight_decay` must lie in"),
    ({"momentum": 1.0}, ValueError, r"`momentum` must lie in \[0, 1\), got 1"),
    ({"max_epochs": 0}, ValueError, "`max_epochs` must be at least 1, got 0"),
    ({"max_epochs": 2.5}, TypeError, "`max_epochs` must be an integer, got 2.5"),
    ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
    ({"stop_below": -1.0}, ValueError, "`stop_below` must lie in"),
    ({"validation_fraction": 1.0}, ValueError, r"`validation_fraction` must lie in \(0, 1\)"),
    ({"n_iter_no_change": 0}, ValueError, "`n_iter_no_change` must be at least 1"),
    ({"tol": -1}, ValueError, "`tol` must lie in"),
    ({"hidden_layer_sizes": (5, 0)}, ValueError, "`hidden_layer_sizes` must be at least 1, got 0"),
    ({"activation": "rely"}, ValueError, "`activation` must be one of .* got 'rely'. Did you mean 'relu'"),
    ({"bias": 1}, TypeError, "`bias` must be True or False, got 1"),
    ({"dropout": 1.0}, ValueError, r"`dropout` must lie in \[0, 1\), got 1"),
    ({"loss": "squared"}, ValueError, "`loss` must be one of 'auto', 'cross_entropy', 'hinge', got 'squared'"),
    ({"optimizer": "adm"}, ValueError, "`optimizer` must be one of .* Did you mean 'adam'"),
    (
        {"optimizer": "lbfgs", "weight_decay": 0.1},
        ValueError,
        "must be 0 with LBFGS, which has no weight decay",
    ),
    ({"optimizer_params": [1]}, TypeError, "`optimizer_params` must be a dict"),
    ({"learning_rate_schedule": "cosin"}, ValueError, "`learning_rate_schedule` must be None, .cosine."),
    ({"learning_rate_schedule": []}, ValueError, "as a list must contain"),
    ({"learning_rate_schedule": [(1, 2, 3)]}, ValueError, "as a list must contain"),
    ({"learning_rate_schedule": ["a"]}, ValueError, "as a list must contain"),
    ({"learning_rate_schedule": [-1.0]}, ValueError, "must contain finite numbers"),
    ({"stop_at_error": 1.0}, ValueError, r"`stop_at_error` must lie in \[0, 1\), got 1"),
    ({"class_weight": "even"}, ValueError, "`class_weight` must be None, .balanced. or a dict"),
    ({"class_weight": {0: -1}}, ValueError, r"`class_weight\[0\]` must lie in"),
    ({"dtype": "float16"}, ValueError, "`dtype` must be one of 'float32', 'float64', got 'float16'"),
    ({"dtype": object()}, ValueError, "`dtype` must be one of"),
    ({"device": "gpu"}, ValueError, '`device` must be "auto" or a device of torch'),
    ({"device": "cuda:7"}, ValueError, "`device` must be available, got 'cuda:7'; torch sees"),
    ({"device": "meta"}, ValueError, "`device` must be available to torch, got 'meta'"),
    ({"input_shape": (1, 2, 2)}, ValueError, "`input_shape` must describe the 6 features of X"),
    ({"input_shape": 6}, TypeError, "`input_shape` must be a tuple"),
    ({"module_params": {"a": 1}}, ValueError, "`module_params` must be None without `module`"),
    ({"batch_norm": True, "batch_size": 1}, ValueError, "Batch norm needs batches of at least 2 samples, got 1 sample"),
    ({"random_state": "seed"}, ValueError, "`random_state` must be None, an integer from 0"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMETERS)
def test_bad_parameter(params, error, message):
    model = NetworkClassifier(**{"max_epochs": 1, **params})
    with pytest.raises(error, match=message):
        model.fit(X, y)
    assert not hasattr(model, "net_")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"jacobian_penalty": -0.1}, r"`jacobian_penalty` must lie in \[0, inf\), got -0.1"),
        ({"jacobian_penalty": float("nan")}, "`jacobian_penalty` must lie in"),
        ({"jacobian_norm": "frobenous"}, "`jacobian_norm` must be one of .* Did you mean 'frobenius'"),
        ({"jacobian_output": "probabilities"}, "`jacobian_output` must be one of 'logits', 'softmax'"),
        ({"n_projections": 0}, "`n_projections` must be at least 1"),
        ({"jacobian_norm": "projection", "n_projections": 4}, "`n_projections` must be between 1 and 3, got 4"),
    ],
)
def test_bad_jacobian_parameter(params, message):
    with pytest.raises(ValueError, match=message):
        JacobianRegularizedClassifier(max_epochs=1, **params).fit(X, y)


def test_softmax_is_refused_for_regression():
    with pytest.raises(ValueError, match="`jacobian_output` must be one of 'logits', got 'softmax'"):
        JacobianRegularizedRegressor(jacobian_output="softmax").fit(X, X[:, 0])


@pytest.mark.parametrize("kind", [NetworkClassifier, NetworkRegressor])
@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.where(X > 2, np.nan, X), y, "Input X contains NaN"),
        (np.full((4, 2), np.inf), [0, 1, 0, 1], "Input X contains infinity"),
        (X, y[:-1], "inconsistent numbers of samples"),
        (X[:0], y[:0], "0 sample"),
        (X, None, "requires y to be passed"),
        (X, np.where(y == 1, np.nan, y), "Input y contains NaN"),
    ],
)
def test_bad_data(kind, X, y, message):
    with pytest.raises(ValueError, match=message):
        kind(max_epochs=1).fit(X, y)


def test_bad_labels():
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        NetworkClassifier().fit(X, np.zeros(40))
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class among the samples of positive weight"):
        NetworkClassifier().fit(X, y, sample_weight=(y == 1).astype(float))
    with pytest.raises(ValueError, match="Unknown label type"):
        NetworkClassifier().fit(X, X[:, 0])
    with pytest.raises(ValueError, match="y should be a 1d array|Unknown label type|multilabel"):
        NetworkClassifier().fit(X, np.eye(3)[y].astype(int))
    model = NetworkClassifier(warm_start=True, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=r"y must contain only the classes \[0, 1, 2\], got also \[3\]"):
        model.fit(X, y + 1)
    assert model.fit(X, y).n_iter_ == 2  # bad data does no harm


def test_bad_weights():
    with pytest.raises(ValueError, match="[Ss]ample weights must contain at least one non-zero number"):
        NetworkRegressor().fit(X, y, sample_weight=np.zeros(40))
    with pytest.raises(ValueError, match="[Nn]egative"):
        NetworkRegressor().fit(X, y, sample_weight=-np.ones(40))
    with pytest.raises(ValueError, match="`classes` must be given in the first call"):
        NetworkClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match='got "balanced", which requires all of y'):
        NetworkClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    model = NetworkClassifier().partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"`classes` must equal those of the first call, \[0, 1, 2\], got \[0, 1\]"):
        model.partial_fit(X, y, classes=[0, 1])


def test_bad_targets_of_a_regression():
    with pytest.raises(ValueError, match="y must be finite in float32"):
        NetworkRegressor().fit(X.astype("float32"), np.full(40, 1e300))
    model = NetworkRegressor(warm_start=True, max_epochs=1).fit(X, X[:, :2])
    with pytest.raises(ValueError, match="y must have 2 columns, as in the first call, got 1"):
        model.fit(X, X[:, 0])


@pytest.mark.parametrize(
    ("kind", "params", "scale", "expected"),
    [
        (NetworkRegressor, {"optimizer": "sgd", "learning_rate": 1e6}, 1.0, "the train loss is (inf|nan)"),
        (NetworkClassifier, {"optimizer": "sgd", "learning_rate": 1e30}, 1e10, "Training diverged in epoch"),
        (JacobianRegularizedRegressor, {"jacobian_penalty": 1e8, "optimizer": "sgd"}, 1.0, "diverged in epoch"),
    ],
)
def test_divergence_names_epoch_and_loss_and_leaves_no_network(kind, params, scale, expected):
    model = kind(random_state=0, warm_start=True, max_epochs=3).fit(X, y)
    with pytest.raises(DivergenceError, match=expected) as caught:
        model.set_params(max_epochs=500, **params).fit(scale * X, y)
    assert "epoch" in str(caught.value) and "Lower `learning_rate`" in str(caught.value)
    assert not hasattr(model, "net_") and not hasattr(model, "module_")


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize(
    ("kind", "rate", "scale", "dtype"),
    [
        (NetworkRegressor, 1e308, 100.0, "float64"),  # infinite weights
        (NetworkRegressor, 1e200, 1.0, "float64"),  # finite outputs whose squares overflow
        (NetworkRegressor, 1e25, 1.0, "float32"),
        (JacobianRegularizedRegressor, 1e25, 1.0, "float32"),
        (NetworkClassifier, 1e30, 1e10, "float32"),
    ],
)
def test_divergence_in_the_last_step_is_seen(kind, rate, scale, dtype, optimizer):
    """One step ruins the network, which no epoch's loss shows."""
    model = kind((), optimizer=optimizer, learning_rate=rate, max_epochs=1, dtype=dtype, random_state=0)
    with pytest.raises(
        DivergenceError, match="diverged in epoch 1: after its last step the network's weights, outputs or"
    ):
        model.fit(scale * X, y)
    assert not hasattr(model, "net_")


@pytest.mark.parametrize("kind", [NetworkClassifier, NetworkRegressor])
def test_samples_whose_outputs_overflow_are_refused(kind):
    model = kind((), dtype="float32", max_epochs=1, random_state=0).fit(X, y)
    with torch.no_grad():
        for parameter in model.module_.parameters():
            parameter.fill_(1.0)
    far = X.astype("float32")
    far[3] = 1e38  # the sum of six is beyond float32
    for name in {"predict", "predict_proba", "predict_log_proba", "decision_function"} & set(dir(model)):
        with pytest.raises(ValueError, match="X must have finite outputs in the network's float32"):
            getattr(model, name)(far)


def test_a_score_is_finite_where_squares_overflow_in_float32():
    model = NetworkRegressor((), dtype="float32", max_epochs=1, random_state=0).fit(X, y)
    targets = 1e25 * y
    residuals = targets - model.predict(X).astype(float)
    expected = 1 - (residuals**2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert model.score(X, targets.astype("float32")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_layer_sizes", (5,)),
        ("activation", "tanh"),
        ("bias", False),
        ("batch_norm", True),
        ("weight_norm", True),
        ("dropout", 0.5),
    ],
)
def test_mlp_parameters_beside_a_module_raise(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must keep its default when `module` is given"):
        NetworkClassifier(module=lambda: nn.Linear(6, 3), **{name: value}).fit(X, y)


class NeedsDepth(nn.Linear):
    def __init__(self, n_features, n_outputs, depth):
        super().__init__(n_features, n_outputs)
        self.depth = depth


@pytest.mark.parametrize(
    ("module", "params", "error", "message"),
    [
        (lambda: nn.Linear(6, 2), None, ValueError, r"shape \(n_samples, 3\), one logit per class; .*\(1, 2\)"),
        (lambda: nn.Flatten(0), None, ValueError, r"for one sample it returned \(6,\)"),
        (lambda: nn.LSTM(6, 3), None, ValueError, "for one sample it returned tuple"),
        (lambda: nn.Linear(5, 3), None, ValueError, r"`module` failed on a sample of shape \(6,\)"),
        (nn.Linear(6, 3), {"bias": False}, ValueError, "`module_params` must be None when `module` is an instance"),
        (NeedsDepth, None, ValueError, "cannot be called with .*: missing a required argument: 'depth'"),
        (NeedsDepth, {"dept": 1}, ValueError, "cannot be called with"),
        (lambda: 3, None, TypeError, "`module` must return an nn.Module, got 3"),
        (nn.Linear(6, 3, device="meta"), None, ValueError, "must have values, got 'weight' on the meta device"),
        (3, None, TypeError, "`module` must be None, the name of an architecture"),
        ("resnet2000", None, ValueError, "`module` must be one of .*got 'resnet2000'"),
    ],
)
def test_bad_module(module, params, error, message):
    with pytest.raises(error, match=message):
        NetworkClassifier(module=module, module_params=params).fit(X, y)


@pytest.mark.parametrize("name", ["module", "optimizer"])
def test_parameters_in_the_form_of_skorch_are_refused_with_a_hint(name):
    with pytest.raises(ValueError, match=rf"`{name}__depth` must be .* Set {name}_params=\{{'depth': 3\}}"):
        NetworkClassifier(module=NeedsDepth).set_params(**{f"{name}__depth": 3})


def test_regression_names_its_outputs_when_a_module_returns_a_vector():
    with pytest.raises(ValueError, match=r"\(n_samples, 1\), one column per target; for one sample it returned \(1,\)"):
        NetworkRegressor(module=lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))).fit(X, X[:, 0])


def test_shapes_of_images_must_agree():
    module = lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3))  # noqa: E731
    with pytest.raises(ValueError, match=r"`input_shape` must equal the shape \(1, 2, 2\) of the samples in X"):
        NetworkClassifier(module=module, input_shape=(1, 4, 1)).fit(IMAGES, y)
    model = NetworkClassifier(module=module, max_epochs=1).fit(IMAGES, y)
    with pytest.raises(ValueError, match=r"X must contain samples of shape \(1, 2, 2\), got \(2, 2, 1\)"):
        model.predict(IMAGES.reshape(-1, 2, 2, 1))
    with pytest.raises(ValueError, match="Images need `input_shape`"):
        NetworkClassifier(module=module, max_epochs=1).fit(X, y)


def test_unfitted():
    model = NetworkClassifier()
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(model, method)(X)
    for name in ("module_", "history_"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}' before `fit`"):
            getattr(model, name)
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as caught:
        NetworkClassifier(early_stopping=True).partial_fit(X, y)
    assert "not available with early_stopping=True" in str(caught.value.__cause__)


def test_a_failed_fit_takes_the_old_network_away():
    model = NetworkClassifier(max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="must return a tensor"):
        model.set_params(module=lambda: nn.Linear(6, 2)).fit(X, y)
    assert not hasattr(model, "net_")
    assert torch.is_grad_enabled()
