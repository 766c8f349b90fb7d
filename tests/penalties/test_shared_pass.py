"""What a training loop relies on: the pass that loss and penalty share, when a module is traced again, gradients."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from reference_penalties import (
    assert_same,
    built,
    chained,
    gradients,
    mean_squared_jacobian,
)
from sklearn_capacity.penalties import PENALTIES, JacobianPenalty, frobenius_penalty
from sklearn_capacity.penalties import joint_weights as _joint
from sklearn_capacity.penalties import shared_pass as _tapes

SHARED = ["mlp", "tanh", "max_pool", "one_channel", "residual", "tied", "weight_norm", "conv_batch_norm"]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_sharing_the_forward_pass_changes_nothing(name, norm, output, joint, monkeypatch):
    monkeypatch.setattr(_joint, "WIDE", 0 if joint else 1 << 30)
    module, X = built(name, 6)
    module.train(name != "residual")
    y = torch.arange(6) % 3
    results = []
    for share in (False, True):
        penalty = JacobianPenalty(norm, output=output, generator=torch.Generator().manual_seed(2))
        shared = penalty.forward(module, X) if share else None
        if name == "conv_batch_norm":  # batch norm and dropout differ in training; the draw of dropout must not
            assert shared is None
            torch.manual_seed(0)
        elif share:
            assert shared is not None
        logits = module(X) if shared is None else shared
        loss = nn.functional.cross_entropy(logits, y) + 0.3 * penalty(module, X)
        results.append((loss.detach(), gradients(loss, module)))
        if name == "conv_batch_norm":  # the module's own pass has moved the running statistics
            module, X = built(name, 6)
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


def test_a_shared_pass_is_used_for_the_same_batch_and_weights_only():
    module, X = built("mlp")
    penalty = JacobianPenalty()
    fresh = frobenius_penalty(copy.deepcopy(module), X[:2]).item()
    penalty.forward(module, X)
    assert penalty(module, X[:2]).item() == fresh  # another batch
    penalty.forward(module, X)
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert_same(penalty(module, X).detach(), mean_squared_jacobian(module, X).detach())


def test_a_shared_pass_is_not_used_for_data_or_logits_that_changed_in_place():
    module, X = built("tanh")
    penalty = JacobianPenalty(output="softmax")
    penalty.forward(module, X)
    X.add_(1)
    assert penalty(module, X).item() == penalty(copy.deepcopy(module), X).item()
    penalty.forward(module, X).mul_(3)  # as by a criterion that works in place
    assert penalty(module, X).item() == penalty(copy.deepcopy(module), X).item()


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_keep_the_module_s_own_forward_pass(register):
    module, X = built("mlp")
    penalty = JacobianPenalty()
    assert penalty.forward(module, X) is not None
    handle = getattr(module[2], register)(lambda *args: None)
    assert penalty.forward(module, X) is None
    handle.remove()
    assert penalty.forward(module, X) is not None
    handle = getattr(nn.modules.module, register.replace("register_", "register_module_"))(lambda *args: None)
    assert penalty.forward(module, X) is None  # it listens to all modules
    handle.remove()
    with torch.no_grad():
        assert penalty.forward(module, X) is None
    assert penalty.forward(module, X.requires_grad_(True)) is None  # somebody wants the loss's gradient at the data


@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("name", ["mlp", "max_pool", "conv_batch_norm", "normalised"])
def test_autocast_is_for_the_loss_alone(name, norm):
    module, X = built(name)
    module, X = module.float(), X.float()
    results = []
    for mixed in (False, True):
        penalty = JacobianPenalty(norm, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            if mixed:
                assert penalty.forward(module, X) is None
            value = penalty(module, X)
        assert value.dtype == torch.float32
        results.append(torch.cat([value.detach()[None], gradients(value, module)]))
    assert torch.equal(*results)


def test_a_module_is_traced_once_and_forgotten_with_it(monkeypatch):
    module, X = built("residual")
    traces = []
    original = _tapes.trace
    monkeypatch.setattr(_tapes, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for step in range(4):
        value = frobenius_penalty(module, X[: 4 - step])  # the last batch of an epoch is smaller
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected = mean_squared_jacobian(copy.deepcopy(module).eval(), X)
        assert_same(frobenius_penalty(module, X).detach(), expected.detach())
    assert len(traces) == 1
    number, gone = id(module), weakref.ref(module)
    assert number in _tapes._TRACED
    del module, optimizer, value
    gc.collect()
    assert gone() is None and number not in _tapes._TRACED


def test_a_changed_attribute_is_traced_again():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.factor = nn.Linear(5, 3).double(), 1.0

        def forward(self, x):
            return self.factor * self.linear(x)

    module, (_, X) = Scaled(), built("mlp")
    before = frobenius_penalty(module, X).item()
    for factor in range(2, _tapes.MANY_TRACES + 5):  # in the end the loop takes over
        module.factor = float(factor)
        assert frobenius_penalty(module, X).item() == pytest.approx(factor**2 * before, rel=1e-12)
    assert not chained(module, X)


class _Scaled(nn.Module):
    """A factor that is a tensor but no buffer, one in a list, and notes of the forward pass."""

    def __init__(self, module):
        super().__init__()
        self.module, self.factor, self.factors, self.calls, self.seen = module, torch.tensor(2.0), [1.0], 0, None

    def forward(self, x):
        self.calls, self.seen = self.calls + 1, x.detach().clone()
        return self.module(x) * self.factor * self.factors[0]


def test_what_the_forward_pass_reads_is_traced_again_and_what_it_notes_down_is_not(monkeypatch):
    module, X = built("mlp")
    scaled = _Scaled(module)
    traces = []
    original = _tapes.trace
    monkeypatch.setattr(_tapes, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))

    def check(factor):
        for _ in range(3):
            want = factor**2 * mean_squared_jacobian(module, X).detach()
            assert_same(frobenius_penalty(scaled, X).detach(), want)
            scaled(X)  # the note changes

    check(2.0)
    assert len(traces) == 2  # once to see that the notes do not matter
    scaled.factor.mul_(2)
    check(4.0)
    scaled.factor = torch.tensor(1.0)
    check(1.0)
    scaled.factors[0] = 3.0
    check(3.0)
    assert len(traces) == 5 and chained(scaled, X)


def test_the_modes_of_the_submodules_decide_about_the_shared_pass():
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    X = torch.randn(6, 5, dtype=torch.float64)
    penalty = JacobianPenalty()
    module.train()
    module[1].eval()
    assert penalty.forward(module, X) is not None
    module[1].train()
    assert penalty.forward(module, X) is None
    assert penalty.forward(module.eval(), X) is not None


def test_gradients_are_handed_on_once_unless_the_graph_is_kept():
    module, X = built("mlp")
    value = 2 * frobenius_penalty(module, X)
    parameter = module[0].weight
    first, second = (torch.autograd.grad(value, parameter, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    value = frobenius_penalty(module, X)
    torch.testing.assert_close(2 * torch.autograd.grad(value, parameter)[0], first)
    with pytest.raises(RuntimeError, match="asked for a second time.*retain_graph=True"):
        torch.autograd.grad(value, parameter)


def test_a_gradient_in_closed_form_is_not_differentiated_again():
    module, X = built("mlp")
    with pytest.raises(RuntimeError, match="cannot be differentiated again.*lambda X: module"):
        torch.autograd.grad(frobenius_penalty(module, X), module[0].weight, create_graph=True)
    (once,) = torch.autograd.grad(frobenius_penalty(lambda X: module(X), X), module[0].weight, create_graph=True)
    (expected,) = torch.autograd.grad(mean_squared_jacobian(module, X), module[0].weight, create_graph=True)
    twice = [gradients(first.square().sum(), module) for first in (once, expected)]
    assert_same(*twice)


@pytest.mark.parametrize("n", [1, 40])  # few rows are kept, of many only their product
@pytest.mark.parametrize("norm", ["projection", "frobenius", "per_layer"])
def test_gradients_joined_to_the_loss_s_own(norm, n, monkeypatch):
    """Of loss and penalty apart, again where the graph is kept, and together."""
    monkeypatch.setattr(_joint, "WIDE", 0)
    module, X = built("mlp", n)
    weights = [p for p in module.parameters() if p.dim() == 2]
    random = {} if norm == "frobenius" else {"generator": torch.Generator().manual_seed(2)}
    loss, value = module(X).square().sum(), PENALTIES[norm].function(module, X, **random)
    want = [torch.autograd.grad(loss, weights), torch.autograd.grad(value, weights)]

    penalty = JacobianPenalty(norm, generator=torch.Generator().manual_seed(2))
    loss = penalty.forward(module, X).square().sum()
    value = penalty(module, X)
    for _ in range(2):
        for part, expected in zip((loss, value), want, strict=True):
            for got, a in zip(torch.autograd.grad(part, weights, retain_graph=True), expected, strict=True):
                assert_same(got, a)
    for got, a, b in zip(torch.autograd.grad(loss + 3 * value, weights), *want, strict=True):
        assert_same(got, a + 3 * b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, weights)


@pytest.mark.parametrize("used", [False, True])
def test_a_shared_pass_goes_with_its_loss(used, monkeypatch):
    """Without a cycle that only the collector of garbage could break."""
    monkeypatch.setattr(_joint, "WIDE", 0)
    module, X = built("mlp")
    penalty = JacobianPenalty()
    gc.collect()
    gc.disable()
    try:
        loss = penalty.forward(module, X).sum()
        joints = _tapes._TRACED[id(module)].waiting.batch.joints
        layers = [weakref.ref(joint) for joint, _ in joints.values()]
        del joints
        loss = loss + penalty(module, X if used else X[:2])
        assert len(layers) == 3 and all(layer() is not None for layer in layers)
        del loss
        assert all(layer() is None for layer in layers)
    finally:
        gc.enable()
