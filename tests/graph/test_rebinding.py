"""Graphs bound again after their tensors have changed in place."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_capacity.graph import Rebinder, evaluate, named_tensors, trace


class _Sliced(nn.Module):
    """Uses a slice and a transpose of a weight, and a factor computed from a parameter."""

    def __init__(self):
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.tanh(x @ self.weight[:4].t()) * self.factor.exp()


class _Sorted(nn.Module):
    """Which entries it takes depends on a parameter."""

    def __init__(self):
        super().__init__()
        self.linear, self.order = nn.Linear(5, 5), nn.Parameter(torch.randn(5))

    def forward(self, x):
        return self.linear(x)[:, self.order.argsort()[:3]]


class _Opaque(nn.Module):
    """An operator without a rule with a computed parameter."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(5, 4), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return torch.fmod(self.linear(x), self.scale.exp())


class _Clamped(nn.Module):
    """One operator as several nodes, of which the last holds a buffer as it is, and others what is computed from it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.register_buffer("low", -torch.rand(4))
        self.register_buffer("high", torch.rand(4))

    def forward(self, x):
        return torch.maximum(torch.clamp(self.linear(x), max=self.high), self.low)


class _Slope(nn.Module):
    """A number in a buffer that an operator only holds, and another one reads."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.register_buffer("slope", torch.rand(()))
        self.register_buffer("eps", torch.rand(()))

    def forward(self, x):
        x = self.linear(x)
        x = torch.where(x > 0, x, self.slope * x)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def _norms():
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3)
    return nn.Sequential(*layers)


MODULES = {
    "plain": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)),
    "batch norms": _norms,
    "weight norm": lambda: nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)),
    "slices": _Sliced,
    "sorted": _Sorted,
    "opaque": _Opaque,
    "clamped": _Clamped,
    "numbers in buffers": _Slope,
}


def _made(name):
    torch.manual_seed(0)
    module = MODULES[name]().double().eval()
    return module, trace(module, (5,))


def _described(node):
    return node.name, node.op, node.inputs, node.shape, node.sources, node.trainable


@torch.no_grad()
def _change(module):
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("n_others", [0, 2])
@pytest.mark.parametrize("name", MODULES)
def test_a_graph_has_the_present_values_and_gradients(name, n_others, folded):
    for _ in range(n_others):  # of equal structure, from which the program may have a template
        other, program = _made(name)
        program.bind(named_tensors(other))
        _change(other)
    module, program = _made(name)
    rebinder, X = Rebinder(program, named_tensors(module)), torch.randn(7, 5, dtype=torch.float64)
    for _ in range(4):
        graph = rebinder.graph(folded=folded)
        fresh = program.bind(named_tensors(module), folded=folded)
        described = [
            [(n.name, n.op, n.inputs, n.shape, n.sources, n.trainable) for n in g.nodes] for g in (graph, fresh)
        ]
        assert described[0] == described[1]
        got, want = evaluate(graph, X), module(X)
        torch.testing.assert_close(got, want)
        gradients = [
            torch.autograd.grad(value.square().sum(), list(module.parameters()), allow_unused=True)
            for value in (got, want)
        ]
        torch.testing.assert_close(*gradients)
        _change(module)


def test_only_what_was_computed_is_bound_again():
    module, program = _made("batch norms")
    rebinder = Rebinder(program, named_tensors(module))
    first, second = ({n.name: n for n in rebinder.graph(folded=False).nodes} for _ in range(2))
    again = {name for name, node in first.items() if second[name] is not node}
    assert again == {name for name, node in first.items() if node.params.get("kind") == "batch_norm"}
    module, program = _made("plain")
    rebinder = Rebinder(program, named_tensors(module))
    assert rebinder.graph() is rebinder.graph()


def test_the_history_of_computed_weights_is_freed_with_the_graph():
    module, program = _made("weight norm")
    rebinder = Rebinder(program, named_tensors(module))
    for _ in range(3):  # a second pass through a history that the first has freed would raise an error
        evaluate(rebinder.graph(), torch.ones(2, 5, dtype=torch.float64)).sum().backward()
