"""Penalties of networks with many more outputs than inputs of the last layer, against dense Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reference_penalties import assert_same, mean_squared_jacobian, mean_squared_norm
from sklearn_capacity.derivatives import input_sweeps
from sklearn_capacity.penalties import forward_pass, frobenius_penalty, spectral_penalty

PENALTIES = [(frobenius_penalty, mean_squared_jacobian), (spectral_penalty, mean_squared_norm)]
N_CLASSES = 17


def _head(*, bias: bool = True, n_inputs: int = 4) -> nn.Linear:
    return nn.Linear(n_inputs, N_CLASSES, bias=bias)


def _tied() -> nn.Module:
    """The last matrix is also the first one."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(N_CLASSES, 6))

        def forward(self, x):
            return nn.functional.linear(torch.tanh(nn.functional.linear(x, self.weight[:6])), self.weight)

    return Tied()


def _convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.ELU(), nn.Flatten(), _head(n_inputs=8))


def _frozen_head() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), _head())
    module[2].requires_grad_(False)
    return module


def _of_rank_two() -> nn.Module:
    """A unit without outgoing weights, and two with the same ones."""
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), _head())
    with torch.no_grad():
        module[2].weight[:, 0] = 0
        module[2].weight[:, 1] = module[2].weight[:, 2]
    return module


NETWORKS = {
    "linear": lambda: _head(n_inputs=6),
    "rectifier": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), _head(bias=False)),
    "tanh": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), _head()),
    "conv": _convolutional,
    "batch_norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.ELU(), _head(), nn.BatchNorm1d(N_CLASSES)),
    "tied": _tied,
    "frozen_head": _frozen_head,
    "rank_two": _of_rank_two,
}  # fmt: skip


def _case(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name]().double(), torch.randn(7, 6, dtype=torch.float64)


def gradients(value: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """The gradient with respect to the trained parameters as one vector."""
    trained = [p for p in module.parameters() if p.requires_grad]
    parts = torch.autograd.grad(value, trained, allow_unused=True, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_value_and_gradient_are_those_of_all_outputs(name, output):
    module, X = _case(name)
    module.eval()
    for penalty, reference in PENALTIES:
        expected = reference(module, X, output)
        shared = forward_pass(module, X)
        for value in (penalty(module, X, output=output), penalty(module, X, output=output, shared=shared)):
            assert_same(value.detach(), expected.detach())
            assert_same(gradients(value, module), gradients(expected, module))
        with torch.no_grad():
            assert_same(penalty(module, X, output=output), expected.detach())


def test_weighted_samples():
    module, X = _case("tanh")
    weight = torch.linspace(0, 2, len(X), dtype=torch.float64)
    value = frobenius_penalty(module, X, sample_weight=weight)
    expected = sum(w * mean_squared_jacobian(module, x[None]) for w, x in zip(weight, X, strict=True)) / len(X)
    assert_same(value.detach(), expected.detach())
    assert_same(gradients(value, module), gradients(expected, module))


@pytest.mark.parametrize(("n_inputs", "n_directions"), [(4, 4), (8, 8), (9, 17), (20, 17)])
def test_a_narrow_last_layer_needs_as_many_directions_as_it_has_inputs(monkeypatch, n_inputs, n_directions):
    torch.manual_seed(0)
    hidden = nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, n_inputs), nn.Tanh()
    module = nn.Sequential(*hidden, _head(n_inputs=n_inputs)).double()
    X = torch.randn(7, 6, dtype=torch.float64)
    pulled = []
    start = input_sweeps._BackwardSweep.__init__

    def counted(self, tape, vectors, *args):
        pulled.append(len(vectors))
        start(self, tape, vectors, *args)

    monkeypatch.setattr(input_sweeps._BackwardSweep, "__init__", counted)
    value = frobenius_penalty(module, X)
    assert sum(pulled) == n_directions * len(X)
    assert_same(value.detach(), mean_squared_jacobian(module, X).detach())


def test_weights_that_are_not_finite_give_a_penalty_that_is_not():
    module, X = _case("rectifier")
    with torch.no_grad():
        module[4].weight[0, 0] = math.nan
    assert not math.isfinite(float(frobenius_penalty(module, X).detach()))


def test_half_precision_and_autocast():
    module, X = _case("rectifier")
    module, X = module.float(), X.float()
    expected = float(frobenius_penalty(module, X).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(frobenius_penalty(module, X).detach()) == expected
    short = float(frobenius_penalty(module.bfloat16(), X.bfloat16()).detach())
    assert short == pytest.approx(expected, rel=0.05)
