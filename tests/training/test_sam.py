"""Sharpness-aware minimisation against loops by hand, to the bit, with all that takes part in a step."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from test_objectives import SAM as PackagedSAM
from torch import nn

from sklearn_capacity import (
    GeneralizationLayerClassifier,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
)
from sklearn_capacity.penalties import frobenius_penalty
from sklearn_capacity.training import KFAC, SAM, PathSGD, PenalizedClassifier
from sklearn_capacity.training.optimizers import resolve_optimizer

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 5)), np.arange(40) % 3
WHOLE = {"batch_size": 40, "random_state": 0}


def network(batch_norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(6)] if batch_norm else []
        return nn.Sequential(nn.Linear(5, 6), *norm, nn.Tanh(), nn.Linear(6, 3)).double()


def ascend(parameters, rho, adaptive):
    """Move to the worst point; returns the way back."""
    old = [p.detach().clone() for p in parameters]
    weights = [p.abs() if adaptive else torch.ones_like(p) for p in old]
    norm = torch.stack([(w * p.grad).norm() for w, p in zip(weights, parameters, strict=True)]).norm()
    with torch.no_grad():
        for p, w in zip(parameters, weights, strict=True):
            p.add_(w * (w * p.grad) * (rho / norm))
    return old


def loop(model, objective, *, base, rho=0.05, adaptive=False, n_steps=4):
    """SAM written out: batch norm's statistics are switched off in the second pass."""
    parameters = list(model.parameters())
    optimizer = base(parameters)
    for _ in range(n_steps):
        optimizer.zero_grad()
        objective(model).backward()
        old = ascend(parameters, rho, adaptive)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.momentum = 0.0
            count = norm.num_batches_tracked.clone()
        optimizer.zero_grad()
        objective(model).backward()
        with torch.no_grad():
            for p, value in zip(parameters, old, strict=True):
                p.copy_(value)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.momentum = 0.1
            norm.num_batches_tracked.copy_(count)
        optimizer.step()
    return model


def cross_entropy(model):
    return nn.functional.cross_entropy(model(torch.from_numpy(X)), torch.from_numpy(y))


def with_penalty(model):
    return cross_entropy(model) + 0.3 * frobenius_penalty(model, torch.from_numpy(X))


def equal_to_the_bit(model, wanted):
    got, expected = model.module_.state_dict(), wanted.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


class InOrder(Callback):
    """Batches as they come, as a loop has them."""

    def on_train_begin(self, net, **kwargs):
        net.iterator_train__shuffle = False


BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_are_those_of_a_loop_by_hand(base, adaptive):
    params = {"base": base, "adaptive": adaptive, "rho": 0.3}
    model = NetworkClassifier(
        module=network(), optimizer="sam", optimizer_params=params, learning_rate=0.1, max_epochs=4, **WHOLE
    ).set_params(callbacks=[InOrder()])
    equal_to_the_bit(model.fit(X, y), loop(network(), cross_entropy, base=BASES[base], rho=0.3, adaptive=adaptive))


def test_the_relative_distance_of_complex_weights_is_that_of_their_magnitudes():
    w = nn.Parameter(torch.tensor([1 + 2j, -3j, 0.5], dtype=torch.complex128))
    start, points, factors = w.detach().clone(), [], torch.tensor([1.0, 2.0, 3.0])
    optimizer = SAM([w], lr=0.1, rho=0.5, adaptive=True)

    def closure():
        points.append(w.detach().clone())
        optimizer.zero_grad()
        loss = (factors * (w - 1).abs().square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    gradient = 2 * factors * (start - 1)
    length = (start.abs() * gradient).abs().square().sum().sqrt()
    torch.testing.assert_close(points, [start, start + 0.5 * start.abs().square() * gradient / length])


def test_a_small_gradient_keeps_its_distance_in_half_precision():
    """1 / 1e-6 is beyond float16, 0.05 / 1e-6 is not."""
    wide, half = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.float16))
    optimizer, points = SAM([wide, half], rho=0.05), []

    def closure():
        points.append((wide.item(), half.item()))
        wide.grad, half.grad = torch.full((1,), 1e-6), torch.zeros(1, dtype=torch.float16)
        return 1e-6 * wide.detach().sum()

    optimizer.step(closure)
    np.testing.assert_allclose(points, [(0, 0), (0.05, 0)], rtol=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_gradients_see_the_penalty_and_the_statistics_of_the_first_pass(batch_norm):
    model = JacobianRegularizedClassifier(
        module=network(batch_norm), jacobian_penalty=0.3, optimizer="sam", learning_rate=0.1, max_epochs=4, **WHOLE
    ).set_params(callbacks=[InOrder()])
    wanted = loop(network(batch_norm), with_penalty, base=BASES["sgd"])
    model.fit(X, y)
    for name, value in wanted.state_dict().items():  # another order of sums, where loss and penalty share a pass
        torch.testing.assert_close(model.module_.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    if batch_norm:
        assert model.module_[1].num_batches_tracked == 4 and model.module_[1].momentum == 0.1


def test_batch_norm_without_a_penalty_to_the_bit():
    model = NetworkClassifier(module=network(True), optimizer="sam", learning_rate=0.1, max_epochs=4, **WHOLE)
    model.set_params(callbacks=[InOrder()])
    equal_to_the_bit(model.fit(X, y), loop(network(True), cross_entropy, base=BASES["sgd"]))


def test_sample_and_class_weights_enter_both_gradients():
    weights = rng.uniform(0.5, 2, size=40)
    classes = {0: 1.0, 1: 2.0, 2: 0.5}
    product = weights * np.array([classes[label] for label in y])
    factors = torch.from_numpy(product / product.mean())

    def weighted(model):
        losses = nn.functional.cross_entropy(model(torch.from_numpy(X)), torch.from_numpy(y), reduction="none")
        return (losses * factors).mean()

    model = NetworkClassifier(
        module=network(), optimizer="sam", class_weight=classes, learning_rate=0.1, max_epochs=4, **WHOLE
    ).set_params(callbacks=[InOrder()])
    equal_to_the_bit(model.fit(X, y, sample_weight=weights), loop(network(), weighted, base=BASES["sgd"]))


def test_weight_decay_goes_to_the_base_at_the_point_itself():
    model = NetworkClassifier(
        module=network(), optimizer="sam", weight_decay=0.1, momentum=0.0, learning_rate=0.1, max_epochs=4, **WHOLE
    ).set_params(callbacks=[InOrder()])
    wanted = loop(network(), cross_entropy, base=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, fused=True))
    equal_to_the_bit(model.fit(X, y), wanted)


def test_dropout_has_one_mask_a_step_and_the_loss_is_the_first():
    masks = []

    class Recording(nn.Dropout):
        def forward(self, input):
            output = super().forward(input)
            if self.training:
                masks.append(output == 0)
            return output

    layers = nn.Linear(5, 30), Recording(0.5), nn.Linear(30, 3)
    params = {"rho": 0.5, "base": "sgd"}
    model = NetworkClassifier(module=nn.Sequential(*layers), optimizer="sam", optimizer_params=params, max_epochs=3)
    model.set_params(batch_size=20, random_state=0).fit(X, y)
    assert len(masks) == 12  # three epochs of two batches, twice
    assert all(torch.equal(a, b) for a, b in zip(masks[::2], masks[1::2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(masks[::2], masks[2::2], strict=False))


def test_history_has_the_loss_before_the_ascent():
    options = {"module": network(), "max_epochs": 1, **WHOLE}
    plain = NetworkClassifier(optimizer="sgd", **options).fit(X, y)
    sam = NetworkClassifier(optimizer="sam", optimizer_params={"rho": 3.0}, **options).fit(X, y)
    assert sam.history_[0]["train_loss"] == plain.history_[0]["train_loss"]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 1000.0])
def test_without_a_gradient_it_stays(rho, adaptive):
    w = nn.Parameter(torch.tensor([0.0, 2.0]))
    half, unused = nn.Parameter(torch.ones(2, dtype=torch.float16)), nn.Parameter(torch.ones(2))
    optimizer = SAM([w, half, unused], lr=1.0, rho=rho, adaptive=adaptive)

    def closure():
        optimizer.zero_grad()
        loss = (0 * w * half).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert w.tolist() == [0, 2] and half.tolist() == [1, 1] and unused.grad is None


def test_without_a_distance_it_is_the_base():
    for params in ({"rho": 0.0}, {"rho": 0.0, "adaptive": True}):
        models = [
            NetworkClassifier((4,), optimizer=name, optimizer_params=given, max_epochs=2, random_state=0).fit(X, y)
            for name, given in (("sam", params), ("sgd", {}))
        ]
        assert np.array_equal(*(model.predict_proba(X) for model in models))


def test_an_interrupt_between_the_gradients_leaves_the_parameters():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, calls = SAM([w], rho=1.0), []

    def closure():
        calls.append(w.detach().clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(w.detach(), calls[0]) and not torch.equal(calls[0], calls[1])


def steps(optimizer, w, n):
    def closure():
        optimizer.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        return loss

    for _ in range(n):
        optimizer.step(closure)
    return w.detach().clone()


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_copies_pickles_and_states_go_on_to_the_same_bits(base):
    def fresh(start):
        w = nn.Parameter(start.clone())
        return w, SAM([w], lr=0.01, base=base, **({"momentum": 0.9} if base is torch.optim.SGD else {}))

    w, optimizer = fresh(torch.tensor([1.0, -0.5]))
    steps(optimizer, w, 3)
    copied_w, copied = copy.deepcopy((w, optimizer))
    pickled_w, pickled = pickle.loads(pickle.dumps((w, optimizer)))
    loaded_w, loaded = fresh(w.detach())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    optimizer.param_groups[0]["lr"] = copied.param_groups[0]["lr"] = 0.02
    pickled.param_groups[0]["lr"] = loaded.param_groups[0]["lr"] = 0.02
    wanted = steps(optimizer, w, 3)
    for other, parameter in ((copied, copied_w), (pickled, pickled_w), (loaded, loaded_w)):
        assert torch.equal(steps(other, parameter, 3), wanted)
        assert other.param_groups is other.base.param_groups and other.state is other.base.state


class Breaks(Callback):
    """Ends the training as an epoch begins, once."""

    armed = False

    def on_epoch_begin(self, net, **kwargs):
        if Breaks.armed and len(net.history) == 3:
            Breaks.armed = False
            raise InterruptedError


OPTIMIZERS = {
    "sam": ("sam", {"base": "adam", "adaptive": True, "rho": 0.5}),
    "packaged": (PackagedSAM, {"rho": 0.1, "momentum": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_goes_on_to_the_same_bits(name, tmp_path):
    optimizer, params = OPTIMIZERS[name]
    model = JacobianRegularizedClassifier(
        (6,), batch_norm=True, dropout=0.2, jacobian_norm="projection", jacobian_penalty=0.1, optimizer=optimizer,
        optimizer_params=params, learning_rate_schedule=[(2, 0.1), (4, 0.1)], max_epochs=6, batch_size=16,
        random_state=0, callbacks=[Breaks()],
    )  # fmt: skip
    whole = model.set_params(checkpoint_dir=tmp_path / "whole").fit(X, y).predict_proba(X)
    model.set_params(checkpoint_dir=tmp_path / "broken")
    Breaks.armed = True
    with pytest.raises(InterruptedError):
        model.fit(X, y)
    resumed = model.fit(X, y)
    assert np.array_equal(resumed.predict_proba(X), whole)
    inner = resumed.net_.optimizer_.base if name == "sam" else resumed.net_.optimizer_.base_optimizer
    assert inner.param_groups is resumed.net_.optimizer_.param_groups


def test_schedules_early_stopping_partial_fits_and_warm_starts():
    model = NetworkClassifier((6,), optimizer="sam", max_epochs=4, early_stopping=True, random_state=0)
    model.set_params(learning_rate_schedule="cosine").fit(X, y)
    assert model.net_.optimizer_.base.param_groups[0]["lr"] < 0.01 and 1 <= model.best_epoch_ <= 4
    parts = NetworkClassifier((6,), optimizer="sam", random_state=0)
    warm = NetworkClassifier((6,), optimizer="sam", random_state=0, max_epochs=1, warm_start=True)
    for _ in range(3):
        parts.partial_fit(X, y, classes=[0, 1, 2])
        warm.fit(X, y)
    assert np.array_equal(parts.predict_proba(X), warm.predict_proba(X))
    assert np.array_equal(pickle.loads(pickle.dumps(parts)).partial_fit(X, y).predict(X), warm.fit(X, y).predict(X))


def test_slow_layers_have_their_own_rate():
    options = {"optimizer": "sam", "random_state": 0, "max_epochs": 3, "slow_after": 0, "slow_factor": 0.0}
    model = GeneralizationLayerClassifier((6,), **options).fit(X, y)
    slow = [name for name in model.initial_state_ if "body" in name]
    assert slow
    for name, start in model.initial_state_.items():
        assert torch.equal(model.module_.state_dict()[name], start) == (name in slow)


def test_it_learns_digits_to_flatter_minima():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    options = {"max_epochs": 30, "learning_rate": 0.1, "random_state": 0}
    sam, sgd = (
        NetworkClassifier((30,), optimizer=name, optimizer_params=params, **options).fit(images[:1000], labels[:1000])
        for name, params in (("sam", {"rho": 0.1}), ("sgd", {}))
    )
    assert sam.score(images[1000:], labels[1000:]) > 0.9

    def rise(model):
        """Loss at the worst point of a ball to first order, over the loss here."""
        module = copy.deepcopy(model.module_)
        inputs, targets = torch.from_numpy(images[:1000]), torch.from_numpy(labels[:1000])
        loss = nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        ascend(list(module.parameters()), 0.1, False)
        return (nn.functional.cross_entropy(module(inputs), targets) - loss).item()

    assert rise(sam) < rise(sgd)


def test_a_skorch_net_takes_it_as_any_optimiser():
    net = PenalizedClassifier(network(), optimizer=SAM, optimizer__rho=0.3, optimizer__base=torch.optim.Adagrad, lr=0.1)
    net.set_params(batch_size=40, max_epochs=4, verbose=0, iterator_train__shuffle=False).fit(X, y)
    wanted = loop(network(), cross_entropy, base=lambda p: torch.optim.Adagrad(p, lr=0.1), rho=0.3)
    equal_to_the_bit(net, wanted)


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ({"base": "lbfgs"}, ValueError, "`base` of `optimizer` 'sam' must step with the gradients only, got LBFGS"),
        ({"base": "kfac"}, ValueError, "got KFAC, which needs the module and the batch"),
        ({"base": KFAC}, ValueError, "got KFAC, which needs the module and the batch"),
        ({"base": PathSGD}, ValueError, "got PathSGD, which needs the module and the batch"),
        ({"base": SAM}, ValueError, "got SAM, which evaluates the loss itself"),
        ({"base": "adamm"}, ValueError, "`base` must be one of .*Did you mean 'adam'"),
        ({"base": lambda params, lr, **_: None}, TypeError, "`base` must return a torch.optim.Optimizer, got None"),
        ({"rho": -1.0}, ValueError, "`rho` must"),
        ({"rho": float("nan")}, ValueError, "`rho` must"),
        ({"adaptive": "yes"}, TypeError, "`adaptive` must"),
        ({"rhoo": 0.1}, TypeError, "rhoo"),
        ({"momentum": "x"}, TypeError, "`base` does not accept `lr` and its settings, .*'momentum': 'x'"),
    ],
)
def test_what_it_refuses(params, error, text):
    with pytest.raises(error, match=text):
        NetworkClassifier((4,), optimizer="sam", optimizer_params=params).fit(X, y)


def test_names_and_closures():
    with pytest.raises(TypeError, match="`base` must be an optimiser class or a callable .* got 'adam'. Names are"):
        SAM([nn.Parameter(torch.ones(1))], base="adam")
    with pytest.raises(ValueError, match=r"`optimizer` 'sam' needs two gradients per step: call `step\(closure\)`"):
        SAM([nn.Parameter(torch.ones(1))]).step()
    kind, settings = resolve_optimizer(
        "sam", momentum=0.5, weight_decay=0.1, params={"base": "adam", "rho": 1}, device=torch.device("cpu")
    )
    assert kind is SAM
    assert settings == {"weight_decay": 0.1, "fused": True, "base": torch.optim.Adam, "rho": 1}


def test_regressors_take_it():
    model = NetworkRegressor((8,), optimizer="sam", learning_rate=0.1, max_epochs=20, random_state=0)
    assert model.fit(X, X[:, 0]).score(X, X[:, 0]) > 0.5
