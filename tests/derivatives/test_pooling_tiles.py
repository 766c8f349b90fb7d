"""The transpose of average pooling against autograd, for windows side by side and for others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklearn_capacity.derivatives.input_sweeps import linearize, pull
from sklearn_capacity.derivatives.pooling_tiles import tile_of
from sklearn_capacity.graph import Network

SIDE_BY_SIDE = {
    "2d": (nn.AvgPool2d(2), (3, 4, 6)),
    "with a rest": (nn.AvgPool2d((3, 2)), (2, 7, 5)),
    "one channel": (nn.AvgPool2d(2), (1, 4, 4)),
    "another divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 4, 4)),
    "ceil mode without a rest": (nn.AvgPool2d(2, ceil_mode=True), (2, 4, 4)),
    "1d": (nn.AvgPool1d(3), (2, 10)),
    "3d": (nn.AvgPool3d((1, 2, 3)), (2, 2, 5, 3)),
    "adaptive": (nn.AdaptiveAvgPool2d((2, 3)), (2, 4, 9)),
}
OTHERS = {
    "overlapping": (nn.AvgPool2d(3, 2), (2, 7, 7)),
    "apart": (nn.AvgPool2d(2, 3), (2, 7, 7)),
    "padded": (nn.AvgPool2d(2, padding=1), (2, 4, 4)),
    "ceil mode": (nn.AvgPool2d(2, ceil_mode=True), (2, 5, 5)),
    "adaptive, unequal": (nn.AdaptiveAvgPool2d(3), (2, 4, 6)),
}
ALL = SIDE_BY_SIDE | OTHERS


@pytest.mark.parametrize("name", ALL)
def test_cotangents_of_means_are_those_of_autograd(name):
    pool, shape = ALL[name]
    graph = Network(nn.Sequential(pool, nn.Flatten()), shape, dtype=torch.float64).graph
    (node,) = [node for node in graph.nodes if node.op == "avg_pool"]
    assert (tile_of(node, shape[1:]) is not None) == (name in SIDE_BY_SIDE)
    X = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    y = pool(X).flatten(1)
    v = torch.randn(3, *y.shape, dtype=torch.float64)  # three directions stacked on two samples
    expected = torch.stack([torch.autograd.grad(y, X, direction, retain_graph=True)[0] for direction in v])
    rows = pull(linearize(graph, X.detach()), v.flatten(0, 1)).unflatten(0, (3, 2))
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)


def test_images_with_their_channels_last_keep_them():
    graph = Network(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 2, 1), nn.Flatten()), (3, 4, 4)).graph
    rows = pull(linearize(graph, torch.randn(2, 3, 4, 4)), torch.randn(2, 8))
    assert rows.is_contiguous(memory_format=torch.channels_last)
