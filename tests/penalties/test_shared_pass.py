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
from sklearn_capacity.penalties import (
    PENALTIES,
    JacobianPenalty,
    forward_pass,
    frobenius_penalty,
    module_graph,
    shared_pass,
)

SHARED = ["mlp", "tanh", "max_pool", "one_channel", "residual", "tied", "weight_norm", "conv_batch_norm"]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_sharing_the_forward_pass_changes_nothing(name, norm, output):
    module, X = built(name, 6)
    module.train(name != "residual")
    y = torch.arange(6) % 3
    results = []
    for share in (False, True):
        penalty = JacobianPenalty(norm, output=output, generator=torch.Generator().manual_seed(2))
        torch.manual_seed(0)  # of dropout
        shared = penalty.forward(module, X) if share else None
        if shared is not None:  # batch norm and dropout differ in training
            assert (shared.tape is None) == (name == "conv_batch_norm")
        logits = module(X) if shared is None else shared.logits
        loss = nn.functional.cross_entropy(logits, y) + 0.3 * penalty(module, X, shared=shared)
        results.append((loss.detach(), gradients(loss, module)))
        if name == "conv_batch_norm":  # the module's own pass has moved the running statistics
            module, X = built(name, 6)
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


def test_a_dropout_that_drops_nothing_does_not_prevent_sharing():
    class Encoder(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(1)

    def module(p):
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(6, 2, 8, p, batch_first=True)
        return Encoder(layer, nn.Linear(6, 3)).double().train()

    X = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert forward_pass(module(0.1), X).tape is None
    shared = forward_pass(module(0.0), X)
    assert shared.tape is not None
    torch.testing.assert_close(shared.logits, shared.module(X))
    value, expected = (
        frobenius_penalty(shared.module, X, shared=shared),
        frobenius_penalty(lambda x: shared.module(x), X),
    )
    assert_same(gradients(value, shared.module), gradients(expected, shared.module))


@pytest.mark.parametrize(("flatten", "last"), [(lambda h: h.flatten(1), True), (lambda h: h.view(len(h), -1), False)])
def test_a_pass_that_is_not_shared_takes_channels_last_images_where_it_can(flatten, last):
    layouts = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.drop, self.head = nn.Dropout(0.3), nn.Linear(4 * 25, 3)

        def forward(self, x):
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.head(self.drop(flatten(torch.relu(self.norm(self.conv(x))))))

    X = torch.randn(6, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    module = Net().double().train()
    twin = copy.deepcopy(module)
    random = torch.get_rng_state()
    shared = forward_pass(module, X)
    assert shared.tape is None and shared.X is X and layouts[-1] == last
    torch.set_rng_state(random)  # of the dropout; the question about the layout has drawn nothing
    expected = twin(X)
    assert_same(shared.logits.detach(), expected.detach())
    assert_same(gradients(shared.logits.square().sum(), module), gradients(expected.square().sum(), twin))
    assert_same(module.norm.running_var, twin.norm.running_var)


def test_a_shared_pass_is_linearized_once(monkeypatch):
    module, X = built("mlp")
    runs = []
    original = shared_pass.linearize
    monkeypatch.setattr(shared_pass, "linearize", lambda *args: runs.append(1) or original(*args))
    shared = forward_pass(module, X)
    values = [PENALTIES[norm].function(module, X, shared=shared) for norm in PENALTIES]
    assert len(runs) == 1
    torch.testing.assert_close(values[0], frobenius_penalty(module, X))
    assert len(runs) == 2


def test_a_shared_pass_of_another_batch_or_module_is_refused():
    module, X = built("mlp")
    shared = forward_pass(module, X)
    for norm in PENALTIES:
        with pytest.raises(ValueError, match="`shared` must be a forward pass of the penalty's `X`, got"):
            JacobianPenalty(norm)(module, X.clone(), shared=shared)
        with pytest.raises(ValueError, match="`shared` must be a forward pass of the penalty's `module`, got"):
            JacobianPenalty(norm)(copy.deepcopy(module), X, shared=shared)
    loop = forward_pass(*built("branching"))  # no graph, so nothing is shared
    with pytest.raises(ValueError, match="penalty's `X`"):
        frobenius_penalty(loop.module, X.clone(), shared=loop)


def _scale_weight(module, shared):
    with torch.no_grad():
        module[0].weight.mul_(2)


def _replace_weight(module, shared):
    module[2].weight = nn.Parameter(2 * module[2].weight.detach())


def _change_data(module, shared):
    shared.X.add_(1)


def _change_logits(module, shared):  # as a criterion that works in place
    shared.logits.mul_(3)


def _change_slope(module, shared):
    module[1].negative_slope = 0.9


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("change", [_scale_weight, _replace_weight, _change_data, _change_logits, _change_slope])
def test_a_shared_pass_is_not_used_after_a_change_in_place(change, output):
    for name in ("leaky", "tanh"):
        if name == "tanh" and change is _change_slope:
            continue
        module, X = built(name)
        penalty = JacobianPenalty(output=output)
        shared = penalty.forward(module, X)
        change(module, shared)
        assert_same(penalty(module, X, shared=shared).detach(), mean_squared_jacobian(module, X, output).detach())


def test_a_shared_pass_is_held_by_nobody_else():
    """Neither it nor the batch, whether a penalty uses it or not, and without a collector of garbage."""
    module, X = built("mlp")
    gc.collect()
    gc.disable()
    try:
        for use in (False, True):
            batch = X.clone()
            shared = forward_pass(module, batch)
            held = [weakref.ref(t) for t in (batch, shared.tape, *shared.tape.slopes.values())]
            loss = shared.logits.sum()
            if use:
                loss = loss + frobenius_penalty(module, batch, shared=shared)
            assert len(held) == 4 and all(part() is not None for part in held)
            del shared, loss, batch
            assert all(part() is None for part in held)
    finally:
        gc.enable()


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_keep_the_module_s_own_forward_pass(register):
    module, X = built("mlp")
    penalty = JacobianPenalty()
    assert penalty.forward(module, X).tape is not None
    handle = getattr(module[2], register)(lambda *args: None)
    assert penalty.forward(module, X).tape is None
    handle.remove()
    assert penalty.forward(module, X).tape is not None
    handle = getattr(nn.modules.module, register.replace("register_", "register_module_"))(lambda *args: None)
    assert penalty.forward(module, X).tape is None  # it listens to all modules
    handle.remove()
    with torch.no_grad():
        assert penalty.forward(module, X).tape is None
    assert penalty.forward(module, X.requires_grad_(True)).tape is None  # the loss may need X's gradient


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
                assert penalty.forward(copy.deepcopy(module), X).tape is None  # batch norm moves its statistics
            value = penalty(module, X)
        assert value.dtype == torch.float32
        results.append(torch.cat([value.detach()[None], gradients(value, module)]))
    assert torch.equal(*results)


def test_a_module_is_traced_once_and_forgotten_with_it(monkeypatch):
    module, X = built("residual")
    traces = []
    original = module_graph.trace
    monkeypatch.setattr(module_graph, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for step in range(4):
        value = frobenius_penalty(module, X[: 4 - step])  # the last batch of an epoch is smaller
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected = mean_squared_jacobian(copy.deepcopy(module).eval(), X)
        assert_same(frobenius_penalty(module, X).detach(), expected.detach())
    assert len(traces) == 1
    number, reference = id(module), weakref.ref(module)
    assert number in module_graph._TRACES
    del module, optimizer, value
    gc.collect()
    assert reference() is None and number not in module_graph._TRACES


def test_a_changed_attribute_is_traced_again():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.factor = nn.Linear(5, 3).double(), 1.0

        def forward(self, x):
            return self.factor * self.linear(x)

    module, (_, X) = Scaled(), built("mlp")
    before = frobenius_penalty(module, X).item()
    for factor in range(2, module_graph.MANY_TRACES + 5):  # in the end the loop takes over
        module.factor = float(factor)
        assert frobenius_penalty(module, X).item() == pytest.approx(factor**2 * before, rel=1e-12)
    assert not chained(module, X)


class _Tied(nn.Module):
    """Multiplies by two matrices, of any width, that may be one."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(torch.tanh(x @ self.first) @ self.second)


def test_other_ties_and_shapes_of_parameters_are_traced_again():
    torch.manual_seed(0)
    module, X = _Tied(), torch.randn(3, 4, dtype=torch.float64)
    changes = [(4, True), (4, False), (6, False), (4, True)]
    for width, tied in changes:
        module.first = nn.Parameter(torch.randn(4, width, dtype=torch.float64))
        module.second = module.first if tied else nn.Parameter(torch.randn(width, 4, dtype=torch.float64))
        parameters = list(module.parameters())
        jacobians = torch.stack([torch.autograd.functional.jacobian(module, x, create_graph=True) for x in X])
        expected, value = jacobians.square().sum() / len(X), frobenius_penalty(module, X)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters))


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
    original = module_graph.trace
    monkeypatch.setattr(module_graph, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))

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
    assert penalty.forward(module, X).tape is not None
    module[1].train()
    assert penalty.forward(module, X).tape is None
    assert penalty.forward(module.eval(), X).tape is not None


def test_gradients_are_handed_on_once_unless_the_graph_is_kept():
    module, X = built("mlp")
    value = 2 * frobenius_penalty(module, X)
    parameter = module[0].weight
    first, second = (torch.autograd.grad(value, parameter, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    value = frobenius_penalty(module, X)
    torch.testing.assert_close(2 * torch.autograd.grad(value, parameter)[0], first)
    with pytest.raises(RuntimeError, match="a second time.*"):
        torch.autograd.grad(value, parameter)


def test_a_gradient_in_closed_form_is_not_differentiated_again():
    module, X = built("mlp")
    with pytest.raises(RuntimeError, match="cannot be differentiated again.*lambda X: module"):
        torch.autograd.grad(frobenius_penalty(module, X), module[0].weight, create_graph=True)
    (once,) = torch.autograd.grad(frobenius_penalty(lambda X: module(X), X), module[0].weight, create_graph=True)
    (expected,) = torch.autograd.grad(mean_squared_jacobian(module, X), module[0].weight, create_graph=True)
    twice = [gradients(first.square().sum(), module) for first in (once, expected)]
    assert_same(*twice)


@pytest.mark.parametrize("n", [1, 40])  # few rows are kept as factors, of many only their product
@pytest.mark.parametrize("norm", ["projection", "frobenius", "per_layer"])
def test_gradients_of_loss_and_penalty_apart_and_together(norm, n):
    """Again where the graph is kept, with another factor each time."""
    module, X = built("mlp", n)
    weights = [p for p in module.parameters() if p.dim() == 2]
    random = {} if norm == "frobenius" else {"generator": torch.Generator().manual_seed(2)}
    loss, value = module(X).square().sum(), PENALTIES[norm].function(module, X, **random)
    want = [torch.autograd.grad(loss, weights), torch.autograd.grad(value, weights)]

    penalty = JacobianPenalty(norm, generator=torch.Generator().manual_seed(2))
    shared = penalty.forward(module, X)
    loss = shared.logits.square().sum()
    value = penalty(module, X, shared=shared)
    for factor in (1, 5):
        for part, expected in zip((loss, value), want, strict=True):
            for got, a in zip(torch.autograd.grad(factor * part, weights, retain_graph=True), expected, strict=True):
                assert_same(got, factor * a)
    for got, a, b in zip(torch.autograd.grad(loss + 3 * value, weights), *want, strict=True):
        assert_same(got, a + 3 * b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, weights)
