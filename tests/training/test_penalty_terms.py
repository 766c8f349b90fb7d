"""Penalties that a user brings to an estimator or to a skorch net."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_capacity import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)
from sklearn_capacity.penalties import (
    JacobianPenalty,
    check_penalty,
    frobenius_penalty,
    per_layer_penalty,
    projection_penalty,
    spectral_penalty,
)
from sklearn_capacity.training import PenalizedClassifier

ESTIMATORS = [
    NetworkClassifier,
    NetworkRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
]


def squared_weights(module, X, sample_weight=None):
    return sum(p.square().sum() for p in module.parameters() if p.dim() > 1)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 5)), np.arange(40) % 3


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_one_step_follows_loss_and_penalty(kind):
    """Plain gradient descent: the step is the gradient of loss + strength * penalty at the initial weights."""
    X, y = data()
    options = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "max_epochs": 1, "batch_size": 40}
    options |= {"random_state": 0, "slow_after": 1.0} if "Layer" in kind.__name__ else {"random_state": 0}
    options |= {"jacobian_penalty": 0.0} if "Jacobian" in kind.__name__ or "Layer" in kind.__name__ else {}
    plain = kind((6,), **options).fit(X, y)
    model = kind((6,), penalty=squared_weights, penalty_strength=0.3, **options).fit(X, y)
    key = "train_penalty" if kind in (NetworkClassifier, NetworkRegressor) else "train_penalty_2"
    total = 0.0
    for name, start in model.initial_state_.items():
        got, without = model.module_.state_dict()[name], plain.module_.state_dict()[name]
        decay = 0.1 * 0.3 * 2 * start if start.dim() > 1 else 0 * start
        torch.testing.assert_close(got, without - decay)
        total += float(start.square().sum()) if start.dim() > 1 and start.numel() > 1 else 0.0
    assert model.history_[0][key] == pytest.approx(total, rel=1e-9)
    assert model.history_[0]["train_loss"] == plain.history_[0]["train_loss"]
    assert not any(name.startswith("train_penalty") for name in plain.history_[0])


def test_two_penalties_share_one_step_and_are_both_recorded():
    X, y = data()
    model = JacobianRegularizedClassifier(
        (6,), jacobian_penalty=0.1, penalty=squared_weights, penalty_strength=0.2, max_epochs=1, random_state=0
    ).fit(X, y)
    first = NetworkClassifier((6,), max_epochs=1, random_state=0).fit(X, y)
    first.module_.load_state_dict(model.initial_state_)
    expected = frobenius_penalty(first.module_, torch.as_tensor(X)).item()
    assert model.history_[0]["train_penalty"] == pytest.approx(expected)
    assert model.history_[0]["train_penalty_2"] == pytest.approx(squared_weights(first.module_, None).item())


def test_a_net_takes_further_penalties_and_strengths_that_change():
    X, y = (a.astype(t) for a, t in zip(data(), ("float32", "int64"), strict=True))
    seen = []

    def shared_one(module, X, sample_weight=None, shared=None):
        seen.append(shared.tape is not None)
        return frobenius_penalty(module, X, shared=shared)

    net = PenalizedClassifier(
        nn.Sequential(nn.Linear(5, 3)),
        penalty=lambda module, X: squared_weights(module, X),  # it takes no weights
        penalty_strength=0.5,
        penalties=[(shared_one, 0.1), (partial(frobenius_penalty, output="softmax"), 0.2), (JacobianPenalty(), 0.0)],
        max_epochs=1,
        verbose=0,
    ).fit(X, y)
    keys = {key for key in net.history[-1] if key.startswith("train_penalty")}
    assert keys == {"train_penalty", "train_penalty_2", "train_penalty_3"} and all(seen)
    net.set_params(penalty_strength=0.0, penalties=())
    net.partial_fit(X, y)
    assert not any(key.startswith("train_penalty") for key in net.history[-1])


def test_a_module_as_a_penalty_is_called_as_any_other():
    class Decay(nn.Module):
        def forward(self, module, X, sample_weight=None):
            return squared_weights(module, X)

    X, y = data()
    as_module, as_function = (
        NetworkClassifier((4,), penalty=penalty, max_epochs=2, random_state=0).fit(X, y)
        for penalty in (Decay(), squared_weights)
    )
    assert np.array_equal(as_module.predict_proba(X), as_function.predict_proba(X))


def test_sample_weights_reach_the_penalty():
    X, y = data()
    weights = np.where(np.arange(40) < 20, 3.0, 1.0)
    sums = []

    def penalty(module, X, sample_weight=None):
        sums.append(float(sample_weight.sum()))
        return squared_weights(module, X)

    penalty_of_fit = NetworkClassifier((4,), penalty=penalty, max_epochs=1, batch_size=40, random_state=0)
    penalty_of_fit.fit(X, y, sample_weight=weights)
    assert sums == [pytest.approx(40.0)]


def test_a_penalty_gets_the_targets_and_the_loss_that_it_names():
    X, y = data()
    seen = []

    def penalty(y, X, criterion, **others):  # its first two are the module and the batch, whatever their names
        seen.append((type(y).__name__, len(X), type(criterion).__name__, sorted(others)))
        return squared_weights(y, X)

    def with_targets(module, X, y, sample_weight=None):
        seen.append((y.dtype, tuple(y.shape), sample_weight))
        return squared_weights(module, X)

    NetworkClassifier((4,), penalty=penalty, max_epochs=1, batch_size=40).fit(X, y)
    NetworkClassifier((4,), penalty=with_targets, max_epochs=1, batch_size=40).fit(X, y)
    NetworkRegressor((4,), penalty=with_targets, max_epochs=1, batch_size=40).fit(X, X[:, :2])
    assert seen == [
        ("MLP", 40, "CrossEntropyLoss", ["sample_weight"]),
        (torch.int64, (40,), None),
        (torch.float64, (40, 2), None),
    ]
    check_penalty(with_targets, nn.Linear(5, 3), torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))


class Counting:
    """A penalty that remembers its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, X, sample_weight=None):
        self.calls += 1
        return self.calls * squared_weights(module, X)


def test_penalties_that_remember_are_copied_so_that_fits_repeat():
    X, y = data()
    penalty = Counting()
    model = NetworkClassifier((4,), penalty=penalty, penalty_strength=0.1, max_epochs=2, random_state=0)
    first, second = model.fit(X, y).predict_proba(X), model.fit(X, y).predict_proba(X)
    assert penalty.calls == 0 and np.array_equal(first, second)


def test_grid_clone_and_pickle_with_a_lambda():
    X, y = data()
    factor = 2.0
    grid = {"penalty": [None, lambda module, X: factor * squared_weights(module, X)], "penalty_strength": [0.0, 10.0]}
    model = JacobianRegularizedClassifier((4,), max_epochs=2, random_state=0)
    serial = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    parallel = GridSearchCV(model, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert np.array_equal(serial.cv_results_["mean_test_score"], parallel.cv_results_["mean_test_score"])
    fitted = clone(model).set_params(penalty=grid["penalty"][1], penalty_strength=10.0).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(fitted.predict_proba(X), again.predict_proba(X))
    assert np.array_equal(again.fit(X, y).predict_proba(X), fitted.predict_proba(X))


def test_checkpoints_distinguish_penalties(tmp_path):
    X, y = data()
    options = {"max_epochs": 2, "random_state": 0, "checkpoint_dir": tmp_path}
    results = {}
    for factor in (1.0, 5.0):
        for strength in (0.1, 1.0):

            def penalty(module, X, factor=factor):
                return factor * squared_weights(module, X)

            model = NetworkClassifier((4,), penalty=penalty, penalty_strength=strength, **options).fit(X, y)
            results[factor, strength] = model.predict_proba(X)
    assert len(list(tmp_path.iterdir())) == 4
    again = NetworkClassifier((4,), penalty=penalty, penalty_strength=1.0, **options).fit(X, y)
    assert np.array_equal(again.predict_proba(X), results[5.0, 1.0]) and len(list(tmp_path.iterdir())) == 4


WRONG = {
    "float": (lambda module, X: 1.0, TypeError, r"`penalty` must return a real tensor of shape \(\), got 1.0 of type"),
    "none": (lambda module, X: None, TypeError, "got None of type NoneType"),
    "vector": (lambda module, X: module(X).sum(1), TypeError, r"got Tensor of shape \(40,\) and torch.float64"),
    "one": (lambda module, X: module(X).sum()[None], TypeError, r"shape \(1,\)"),
    "complex": (lambda module, X: module(X).sum() + 0j, TypeError, "complex128"),
    "detached": (lambda module, X: module(X).sum().detach(), ValueError, "depends on no trained parameter"),
    "constant": (lambda module, X: X.sum(), ValueError, "`penalty` must return a tensor with a gradient"),
    "nan": (lambda module, X: module(X).sum() * float("nan"), ValueError, "finite number, got nan"),
    "infinite": (lambda module, X: module(X).sum() + float("inf"), ValueError, "finite number, got inf"),
    "in_place": (lambda module, X: module(X.mul_(2)).sum(), ValueError, "`penalty` must not change X"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_return_is_one_sentence(name):
    penalty, error, message = WRONG[name]
    X, y = data()
    with pytest.raises(error, match=message):
        NetworkClassifier((4,), penalty=penalty, random_state=0).fit(X, y)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 3)
        return nn.Sequential(*layers), torch.randn(6, 5)


def output_norm(module, X, sample_weight=None):
    squares = module[4](module[3](module[2](module[0](X)))).square().sum(1)  # dropout is drawn, batch norm left out
    return squares.mean() if sample_weight is None else (squares * sample_weight).mean()


GOOD = {
    "weights": squared_weights,
    "outputs": output_norm,
    "frobenius": frobenius_penalty,
    "softmax": partial(frobenius_penalty, output="softmax"),
    "projection": JacobianPenalty("projection"),
    "projection_function": projection_penalty,
    "spectral": spectral_penalty,
    "counting": Counting(),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_penalty_passes_and_leaves_module_and_random_numbers(name):
    module, X = network()
    state, numbers = {k: t.clone() for k, t in module.state_dict().items()}, torch.get_rng_state()
    check_penalty(GOOD[name], module.eval(), X)
    assert not module.training and torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(t, state[k]) for k, t in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())


class Half(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def partly_detached(module, X):
    return module[0].weight.square().sum() * module[4].weight.detach().square().sum()


def running(module, X):
    return module(X).square().sum()


def switching(module, X):
    return module.eval()(X).square().sum()


def weights_in_place(module, X):
    value = squared_weights(module, X)
    with torch.no_grad():
        module[0].weight.add_(1)
    return value


def ignores_ones(module, X, sample_weight=None):
    return squared_weights(module, X) * (1 if sample_weight is None else 2)


def wrong_with_shared(module, X, shared=None):
    return squared_weights(module, X) * (1 if shared is None else 2)


GENERATOR = np.random.default_rng(0)

BAD = {
    "half": (
        lambda m, X: Half.apply(squared_weights(m, X)),
        "gradient that matches its value, .* along a direction of `0.weight`",
    ),
    "detached": (partly_detached, "along a direction of `4.weight`, while finite differences give"),
    "held_fixed": (per_layer_penalty, "gradient that matches its value"),
    "running": (running, "changes `1.running_mean`"),
    "switching": (switching, "changes `.training`"),
    "in_place": (weights_in_place, "changes `0.weight`"),
    "data": (lambda m, X: m[0](X.mul_(2)).sum(), "changes `X`"),
    "random": (lambda m, X: GENERATOR.random() * squared_weights(m, X), "the same for one seed, got"),
    "weighted": (ignores_ones, "the same for weights of 1 as without"),
    "shared": (wrong_with_shared, "the same for a shared forward pass as without"),
    "another": (
        lambda m, X: squared_weights(network()[0], X) * 0,
        "while finite differences|no trained parameter|finite",
    ),
}


class Noisy(nn.Linear):
    """A network that draws random numbers which its outputs do not show."""

    def forward(self, X):
        return super().forward(X) + 0 * torch.rand(())


def test_a_network_that_draws_leaves_random_numbers_as_they_were():
    module, X = Noisy(5, 3), network()[1]
    numbers = torch.get_rng_state()
    check_penalty(lambda module, X, shared=None: module(X).square().sum(), module, X)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_penalty_is_detected(name):
    penalty, message = BAD[name]
    with pytest.raises(ValueError, match="`penalty` must .*" + message):
        check_penalty(penalty, *network())


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"in_place", "vector", "nan", "infinite"}))
def test_the_check_sees_wrong_returns(name):
    penalty, error, _ = WRONG[name]
    with pytest.raises(error, match="`penalty` must return"):
        check_penalty(penalty, nn.Linear(5, 3), network()[1])


@pytest.mark.parametrize("bad", [3, nn.Linear, Counting])
def test_what_is_no_penalty_is_refused(bad):
    message = r"`penalty` must be None, one of .*'spectral_norm', or a callable \(module, X, sample_weight=None\), got"
    with pytest.raises(TypeError, match=message):
        NetworkClassifier(penalty=bad).fit(*data())
    with pytest.raises(ValueError, match="`penalty` must be one of 'fisher_rao', .* got 'l2'"):
        NetworkClassifier(penalty="l2").fit(*data())
    with pytest.raises(ValueError, match="`penalty_strength` must lie in"):
        NetworkClassifier(penalty_strength=-1.0).fit(*data())


def _needs_more(module, X, tau):
    return tau * module.weight.square().sum()


@pytest.mark.parametrize(
    "penalty",
    [lambda module: module.weight.sum(), _needs_more, lambda *, module, X: module.weight.sum()],
    ids=["no X", "a further argument", "keywords only"],
)
def test_a_penalty_with_other_arguments_is_refused_before_the_fit(penalty):
    X, y = np.eye(4, 3, dtype=np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"`penalty` must accept a module and a batch X.*functools\.partial"):
        NetworkClassifier(penalty=penalty, penalty_strength=0.1, max_epochs=1).fit(X, y)
    with pytest.raises(TypeError, match="`penalty` must accept a module and a batch X"):
        check_penalty(penalty, nn.Linear(3, 2), torch.eye(4, 3))


def test_bound_arguments_are_accepted():
    check_penalty(partial(_needs_more, tau=2.0), nn.Linear(3, 2), torch.eye(4, 3))


def test_a_penalty_must_be_checked_with_what_it_requires():
    def with_targets(module, X, y):
        return (module(X)[:, 0] - y).square().mean()

    def with_weights(module, X, sample_weight):
        return (module(X)[:, 0] * sample_weight).sum()

    with pytest.raises(ValueError, match="`y` must be given, got None for a penalty that requires it"):
        check_penalty(with_targets, nn.Linear(3, 1), torch.eye(4, 3))

    class AsAModule(nn.Module):
        def forward(self, module, X, y):
            return with_targets(module, X, y)

    with pytest.raises(ValueError, match="`y` must be given, got None for a penalty that requires it"):
        check_penalty(AsAModule(), nn.Linear(3, 1), torch.eye(4, 3))
    check_penalty(AsAModule(), nn.Linear(3, 1), torch.eye(4, 3), torch.ones(4))
    with pytest.raises(ValueError, match="must not require `sample_weight`"):
        check_penalty(with_weights, nn.Linear(3, 1), torch.eye(4, 3))
    check_penalty(with_targets, nn.Linear(3, 1), torch.eye(4, 3), torch.ones(4))
