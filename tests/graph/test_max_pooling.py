"""Maxima over windows, axis by axis or by torch, against a loop over the windows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network, evaluate
from sklearn_capacity.graph.max_pooling import _is_faster_by_axes

BY_AXES = {
    "side by side": (nn.MaxPool2d(2), (3, 4, 6)),
    "with a rest": (nn.MaxPool2d((3, 2)), (2, 7, 5)),
    "overlapping": (nn.MaxPool2d(3, 2), (2, 7, 8)),
    "every place": (nn.MaxPool2d((2, 5), 1), (2, 5, 6)),
    "apart": (nn.MaxPool2d(2, 3), (2, 8, 7)),
    "one pixel": (nn.MaxPool2d((1, 3), (2, 1)), (1, 5, 4)),
    "3d": (nn.MaxPool3d((1, 2, 3), (1, 2, 1)), (2, 2, 5, 4)),
    "adaptive": (nn.AdaptiveMaxPool2d((2, 3)), (2, 4, 9)),
}
BY_TORCH = {
    "1d": (nn.MaxPool1d(2), (2, 7)),
    "padded": (nn.MaxPool2d(3, 2, padding=1), (2, 7, 7)),
    "dilated": (nn.MaxPool2d(2, dilation=2), (2, 7, 7)),
    "ceil mode": (nn.MaxPool2d(2, ceil_mode=True), (2, 5, 5)),
    "large": (nn.MaxPool2d(7, 1), (2, 8, 8)),
}
ALL = BY_AXES | BY_TORCH


def node_of(pool, shape, dtype=torch.float64):
    graph = Network(nn.Sequential(pool, nn.Flatten()), shape, dtype=dtype).graph
    (node,) = [node for node in graph.nodes if node.op == "max_pool"]
    return graph, node


def by_loop(node, x):
    """The largest entry of each window, one after the other."""
    p, sides = node.params, x.shape[2:]
    out = torch.empty(*x.shape[:2], *node.shape[1:], dtype=x.dtype)
    for place in itertools.product(*map(range, node.shape[1:])):
        sources = []
        for i, kernel, stride, before, dilation, side in zip(
            place, p["kernel"], p["stride"], p["padding"], p["dilation"], sides, strict=True
        ):
            pixels = [i * stride - before + k * dilation for k in range(kernel)]
            sources.append([pixel for pixel in pixels if 0 <= pixel < side])
        window = [x[(..., *pixel)] for pixel in itertools.product(*sources)]  # (n, channels) each
        out[(..., *place)] = torch.stack(window).amax(0)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_maxima_are_those_of_a_loop(name, dtype):
    pool, shape = ALL[name]
    graph, node = node_of(pool, shape, dtype)
    X = torch.randn(3, *shape, dtype=dtype).round(decimals=1)  # with equal entries
    X[0, 0].flatten()[1::3] = math.nan
    X[1, 0].flatten()[::2] = math.inf
    X[2] = -X[2].abs() - 1
    assert _is_faster_by_axes(node, X) == (name in BY_AXES)
    expected = by_loop(node, X).flatten(1)
    torch.testing.assert_close(evaluate(graph, X), expected, rtol=0, atol=0, equal_nan=True)
    if X.dim() == 4:
        last = X.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(evaluate(graph, last), expected, rtol=0, atol=0, equal_nan=True)


def test_equal_entries_do_not_share_a_gradient():
    graph, _ = node_of(*BY_AXES["side by side"])
    X = torch.zeros(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(evaluate(graph, X).sum(), X)
    assert gradient.unique().tolist() == [0.0, 1.0]
    assert gradient.sum() == 18


@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_are_those_of_the_module(channels_last):
    torch.manual_seed(3)
    module = nn.Sequential(
        *(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    module.eval().double()
    X, y = torch.randn(150, 2, 8, 8, dtype=torch.float64), torch.arange(150) % 3
    network = Network(module, X.shape[1:], dtype=torch.float64)
    X = X.contiguous(memory_format=torch.channels_last) if channels_last else X
    assert torch.equal(network.logits(X), network.forward(X))
    assert network.graph and network.activation_size
    expected = torch.cat([module(x[None]) for x in X]).detach()
    network.module.register_forward_hook(lambda *_: pytest.fail("The module was called."))
    torch.testing.assert_close(network.logits(X), expected, rtol=1e-12, atol=1e-12)
    rivals = expected.scatter(1, y[:, None], -math.inf).amax(1)
    margins = expected.gather(1, y[:, None])[:, 0] - rivals
    measured = measure_capacity(module, X, y, ["spectral_norm", "margin"])["margin"]
    assert measured == pytest.approx(margins.quantile(0.05).item(), rel=1e-9)
