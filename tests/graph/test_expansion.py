"""Operators that are written out in others; their values and slopes are tested in `test_rules` and `test_functions`."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import make
from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.graph import expansion, trace
from zoo import Of


def targets(operator, shape=(4,)):
    """The operators of a trace, by name."""
    nodes = trace(Of(lambda _, x: operator(x)), shape).nodes
    return [node.target.__name__ for node in nodes if node.op == "call_function" and hasattr(node.target, "_schema")]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (lambda x: torch.hypot(x, 2 * x), "linalg_vector_norm.default"),
        (lambda x: F.mse_loss(x, 2 * x, reduction="none"), "pow.Tensor_Scalar"),
        (lambda x: torch.lerp(x, 2 * x, 0.3), "add.Tensor"),
        (lambda x: torch.cumprod(x, 1), "stack.default"),
        (lambda x: torch.stack(torch.std_mean(x, 1), 1), "var.correction"),
    ],
)
def test_operators_are_written_out(operator, expected):
    assert expected in targets(operator)


@pytest.mark.parametrize(
    ("alias", "plain"),
    [
        *((getattr(torch.special, name), getattr(torch, name)) for name in ("erf", "erfc", "exp2", "expm1", "log1p")),
        *((getattr(torch.special, name), getattr(torch, name)) for name in ("erfinv", "sinc", "digamma", "logit")),
        (torch.special.psi, torch.digamma),
        (torch.special.gammaln, torch.lgamma),
        (lambda x: torch.special.round(x, decimals=1), lambda x: torch.round(x, decimals=1)),
        (lambda x: torch.special.softmax(x, 1), lambda x: torch.softmax(x, 1)),
        (lambda x: torch.special.log_softmax(x, 1), lambda x: torch.log_softmax(x, 1)),
        (lambda x: torch.special.logsumexp(x, 1, True), lambda x: torch.logsumexp(x, 1, True)),
    ],
)
def test_other_names_are_replaced(alias, plain):
    names = [[name.split(".")[0].lstrip("_") for name in targets(operator)] for operator in (alias, plain)]
    assert names[0] == names[1]


@pytest.mark.parametrize("operator", [torch.cumprod, torch.logcumsumexp, lambda x, dim: torch.prod(x, dim)[:, None]])
def test_long_products_and_those_along_the_samples_are_not(operator):
    assert not {"unbind.int", "stack.default"} & set(targets(lambda x: operator(x, 1), (65,)))
    assert "unbind.int" in targets(lambda x: operator(x, 1), (64,))
    assert "unbind.int" not in targets(lambda x: torch.cumprod(x, 0))


def test_a_way_that_fixes_the_number_of_samples_is_not_taken(monkeypatch):
    monkeypatch.setattr(expansion, "_WRITTEN_BY_TORCH", frozenset({"einsum"}))
    module, X, _ = make(lambda: Of(lambda m, x: torch.einsum("ni,ij,nj->n", x, m.w, x)[:, None], w=(4, 4)), (4,))
    assert measure_capacity(module, X, X[:, 0], "frobenius_norm", loss="squared") == {
        "frobenius_norm": pytest.approx(float(module.w.detach().norm()))
    }


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_distances_are_norms_of_differences(p):
    """Torch has no second derivative of `cdist`, so other tests cannot compare with it."""

    def net(distances):
        torch.manual_seed(0)
        middle = Of(lambda m, x: distances(x.unflatten(1, (2, 2)), m.centres).flatten(1), centres=(3, 2))
        return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(6, 2)).double()

    X, y = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2
    by_hand = net(lambda a, b: torch.linalg.vector_norm(a[:, :, None] - b, p, -1))
    names = ["lipschitz_l2", "lipschitz_linf", "jacobian_spectral", "fisher_rao_norm", "fisher_trace"]
    got = measure_capacity(net(lambda a, b: torch.cdist(a, b, p=p)), X, y, names)
    assert got == pytest.approx(measure_capacity(by_hand, X, y, names), rel=1e-9)


class Distances(nn.Module):
    def forward(self, x):
        return F.normalize(torch.cdist(x.unflatten(1, (2, 2)), x.unflatten(1, (2, 2))).flatten(1))


class Nearest(nn.Module):
    def forward(self, x):
        return F.one_hot(x.argmax(1), 4).to(x.dtype)


@pytest.mark.parametrize(("module", "operator"), [(Distances(), "product"), (Nearest(), "argmax")])
def test_refusals_name_the_module_of_the_user(module, operator):
    net = nn.Sequential(nn.Linear(3, 4), module).double()
    with pytest.raises(UnsupportedLayerError, match=rf"`[\w.]*{operator}` in layer `1 \({type(module).__name__}\)`"):
        measure_capacity(net, torch.randn(5, 3, dtype=torch.float64), measures="lipschitz_l2")
