"""Operators that are written out in others; their values and slopes are tested in `test_rules` and `test_functions`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.graph import trace
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


@pytest.mark.parametrize("operator", [torch.cumprod, torch.logcumsumexp, lambda x, dim: torch.prod(x, dim)[:, None]])
def test_long_products_and_those_along_the_samples_are_not(operator):
    assert not {"unbind.int", "stack.default"} & set(targets(lambda x: operator(x, 1), (65,)))
    assert "unbind.int" in targets(lambda x: operator(x, 1), (64,))
    assert "unbind.int" not in targets(lambda x: torch.cumprod(x, 0))


def test_a_bilinear_einsum_stays_one_operator():
    assert targets(lambda x: torch.einsum("ni,nj->nij", x, x)).count("einsum.default") == 1
    assert "einsum.default" not in targets(lambda x: torch.einsum("ni,nj,nj->ni", x, x, x))


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
