"""The transposed convolution to one channel against the gradient that autograd computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklearn_capacity.derivatives.gathered_pixels import gathered_pixels
from sklearn_capacity.graph import named_tensors, trace

CONVOLUTIONS = {
    "usual": ((3, 3), {"padding": 1}),
    "strides": ((3, 2), {"stride": (2, 3)}),
    "dilation": ((2, 3), {"dilation": (3, 2), "padding": (2, 1)}),
    "strides beyond the kernel": ((1, 2), {"stride": (3, 4), "padding": (0, 1)}),
    "all": ((3, 3), {"stride": (2, 1), "padding": (3, 0), "dilation": (1, 2)}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("side", [(8, 9), (11, 7)])
def test_it_is_the_gradient_at_the_image(name, side):
    torch.manual_seed(0)
    kernel, options = CONVOLUTIONS[name]
    layer = nn.Conv2d(1, 5, kernel, **options).double()
    x = torch.randn(4, 1, *side, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    graph = trace(layer, (1, *side), dtype=torch.float64).bind(named_tensors(layer))
    (node,) = [node for node in graph.nodes if node.op == "conv"]
    for cotangent in (g, g.to(memory_format=torch.channels_last)):
        got = gathered_pixels(node, cotangent, side).detach()
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
