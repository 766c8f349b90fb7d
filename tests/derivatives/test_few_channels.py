"""Sweeps through convolutions of few channels in double precision against the gradients that autograd computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklearn_capacity.derivatives.input_sweeps import linearize, pull, push
from sklearn_capacity.graph import Network

CONVOLUTIONS = {
    "usual": (1, (3, 3), {"padding": 1}),
    "strides": (1, (3, 2), {"stride": (2, 3)}),
    "dilation": (1, (2, 3), {"dilation": (3, 2), "padding": (2, 1)}),
    "strides beyond the kernel": (1, (1, 2), {"stride": (3, 4), "padding": (0, 1)}),
    "all": (1, (3, 3), {"stride": (2, 1), "padding": (3, 0), "dilation": (1, 2)}),
    "colours": (3, (3, 3), {"padding": 1, "stride": 2}),
    "groups": (4, (3, 2), {"groups": 2}),
    "padding with pixels": (1, (3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "many": (5, (3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("side", [(8, 9), (11, 7)])
def test_sweeps_are_products_with_autograds_jacobian(name, side):
    torch.manual_seed(0)
    channels, kernel, options = CONVOLUTIONS[name]
    module = nn.Sequential(nn.Conv2d(channels, 6, kernel, **options), nn.Tanh(), nn.Flatten()).double()
    X = torch.randn(2, channels, *side, dtype=torch.float64, requires_grad=True)
    y = module(X)
    v = torch.randn(3, *y.shape, dtype=torch.float64)  # three directions stacked on two samples
    expected = torch.stack([torch.autograd.grad(y, X, direction, retain_graph=True)[0] for direction in v])
    with torch.no_grad():
        tape = linearize(Network(module, (channels, *side), dtype=torch.float64).graph, X.detach())
        rows = pull(tape, v.flatten(0, 1)).unflatten(0, (3, 2))
        torch.testing.assert_close(tape.logits, y.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
        t = torch.randn(6, channels, *side, dtype=torch.float64)
        tangents = push(tape, t, lambda node, *ts: None)
        products = (rows * t.unflatten(0, (3, 2))).flatten(2).sum(2)  # <v^T J, t> = <v, J t>
        torch.testing.assert_close((v * tangents.unflatten(0, (3, 2))).sum(2), products, rtol=1e-12, atol=1e-10)
