"""Products left out at the first and the last layers: the same values and gradients as dense Jacobians give."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from reference_penalties import CASES, assert_same, built, gradients, mean_squared_jacobian, mean_squared_norm
from sklearn_capacity.derivatives.input_sweeps import linearize
from sklearn_capacity.penalties import (
    end_layers,
    forward_pass,
    frobenius,
    frobenius_penalty,
    one_hidden_layer,
    projection_penalty,
    spectral_penalty,
)
from sklearn_capacity.penalties.end_layers import FirstLayer, LastLayer
from sklearn_capacity.penalties.gradient_sums import Gradients
from sklearn_capacity.penalties.module_graph import graph_of


class _Tied(nn.Module):
    """The hidden layer and the last one have the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))


def _layers(*sizes: int, activation=nn.ReLU, bias: bool = True) -> nn.Sequential:
    pairs = zip(sizes, sizes[1:], strict=False)
    layers = [part for a, b in pairs for part in (nn.Linear(a, b, bias=bias), activation())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


NETWORKS = {
    "three layers": lambda: _layers(6, 5, 4, 3),
    "five layers": lambda: _layers(6, 5, 4, 5, 4, 3),
    "leaky": lambda: _layers(6, 5, 4, 3, activation=partial(nn.LeakyReLU, 0.3)),
    "tanh": lambda: _layers(6, 5, 4, 3, activation=nn.Tanh),
    "trained slopes": lambda: _layers(6, 5, 4, 3, activation=nn.PReLU),
    "no bias": lambda: _layers(6, 5, 4, 3, bias=False),
    "no activation": lambda: _layers(6, 5, 4, 3, activation=nn.Identity),
    "tied": _Tied,
    "batch norm": lambda: nn.Sequential(
        *(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    ),
    "one hidden layer": lambda: _layers(6, 5, 3),
    "one smooth hidden layer": lambda: _layers(6, 5, 3, activation=nn.Softplus),
    "one hidden layer without activation": lambda: _layers(6, 5, 3, activation=nn.Identity),
    "one layer": lambda: _layers(6, 3),
    "more outputs than inputs": lambda: _layers(6, 5, 4, 9),
}


def _network(name: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, X = NETWORKS[name]().double(), torch.randn(5, 6, dtype=torch.float64)
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.running_var.uniform_(0.5, 2.0)
    return module.eval(), X


@pytest.fixture(params=["first layer", "last layers", "closed form"])
def left_out(request, monkeypatch):
    """Each of the three ways for networks of any size, without the others."""
    monkeypatch.setattr(end_layers, "GRAM_SHARE", 1e9 if request.param == "first layer" else 0.0)
    monkeypatch.setattr(end_layers, "MANY_SAMPLES", 0 if request.param == "last layers" else 10**9)
    monkeypatch.setattr(end_layers, "LARGE", 0)
    monkeypatch.setattr(one_hidden_layer, "SHARE", 1e9 if request.param == "closed form" else 0.0)
    return request.param


def _assert_exact(module: nn.Module, X: torch.Tensor, output: str) -> None:
    for penalty, reference in ((frobenius_penalty, mean_squared_jacobian), (spectral_penalty, mean_squared_norm)):
        expected = reference(module, X, output)
        for shared in (None, forward_pass(module, X)):
            value = penalty(module, X, output=output, shared=shared)
            assert_same(value.detach(), expected.detach())
            assert_same(gradients(value, module), gradients(expected, module))


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_penalties_of_perceptrons_equal_dense_jacobians(name, output, left_out):
    _assert_exact(*_network(name), output)


@pytest.mark.parametrize("name", sorted(CASES))
def test_penalties_of_other_networks_equal_dense_jacobians(name, left_out):
    module, X = built(name)
    _assert_exact(module.eval(), X, "logits")


@pytest.mark.parametrize("frozen", [(1,), (3,), (5,), (1, 3), (3, 5), (1, 5)])
def test_frozen_layers_receive_nothing(frozen, left_out):
    module, X = _network("three layers")
    for i in frozen:
        module[i].weight.requires_grad_(False)
    value, expected = frobenius_penalty(module, X), mean_squared_jacobian(module, X)
    trained = [p for p in module.parameters() if p.requires_grad and p.dim() == 2]
    for got, want in zip(torch.autograd.grad(value, trained), torch.autograd.grad(expected, trained), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("name", ["three layers", "one hidden layer", "tanh"])
def test_samples_are_weighted(name, left_out):
    module, X = _network(name)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 3.0], dtype=torch.float64)
    terms = [mean_squared_jacobian(module, x[None]) for x in X]
    expected = (weights * torch.stack(terms)).mean()
    for value in (
        frobenius_penalty(module, X, sample_weight=weights),
        projection_penalty(module, X, n_projections=3, sample_weight=weights),
    ):
        assert_same(value.detach(), expected.detach())
        assert_same(gradients(value, module), gradients(expected, module))


@pytest.mark.parametrize("stack", [1, 2, 3])
def test_stacks_of_outputs_equal_one(stack, left_out, monkeypatch):
    module, X = _network("three layers")
    expected = mean_squared_jacobian(module, X)
    monkeypatch.setattr("sklearn_capacity.derivatives.input_sweeps.STACK_BYTES", stack * 5 * 6 * 8)
    value = frobenius_penalty(module, X)
    assert_same(gradients(value, module), gradients(expected, module))


def test_each_way_is_chosen_where_it_takes_fewer_multiplications(monkeypatch):
    """By the size of the problem alone: wide inputs, wide layers, one hidden layer that is not too wide for memory."""
    taken = []
    for owner, name in ((FirstLayer, "__call__"), (LastLayer, "collect"), (frobenius, "one_hidden_layer")):
        monkeypatch.setattr(owner, name, _noted(getattr(owner, name), name, taken))
    cases = [
        ((600, 64, 64, 10), 64, {"__call__", "collect"}),
        ((64, 256, 256, 10), 128, {"collect"}),
        ((300, 100, 10), 64, {"one_hidden_layer"}),
        ((600, 1000, 30), 64, {"collect"}),
    ]
    for sizes, n, expected in cases:
        taken.clear()
        frobenius_penalty(_layers(*sizes), torch.randn(n, sizes[0], generator=torch.Generator().manual_seed(0)))
        assert set(taken) == expected, sizes


def _noted(function, name, taken):
    def noted(*args, **options):
        result = function(*args, **options)
        if result is not None or name == "collect":
            taken.append(name)
        return result

    return noted


def test_sums_over_samples_are_not_rounded_to_the_precision_of_the_sweeps():
    module, X = nn.Linear(2, 3), torch.zeros(257, 2)
    tape = linearize(graph_of(module, X), X)
    last, sums = LastLayer.of(tape, ()), Gradients()
    last.collect(last.node, torch.ones(257, 2, dtype=torch.bfloat16), slice(1, 2), sums)  # 257 takes 9 bits, not 8
    (got,) = (entry.total for entry in sums.sums.values())
    assert got.tolist() == [[0.0, 0.0], [257.0, 257.0], [0.0, 0.0]]
