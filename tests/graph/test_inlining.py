"""Regions under autocast or without gradients are parts of the graph like any others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network, evaluate
from zoo import Of


def _plain(m, x):
    y = torch.relu(m.a(x))
    return m.b(y - y.mean(1, keepdim=True))


def _inside(m, x):
    x = m.a(x)
    with torch.autocast("cpu", enabled=False):
        y = torch.relu_(x)
        with torch.no_grad():
            mean = y.mean(1, keepdim=True)
    return m.b(y - mean)


def _at_the_end(m, x):
    with torch.no_grad():
        x = m.a(x)
    with torch.autocast("cpu", enabled=False):
        y = torch.relu(x)
        return m.b(y - y.mean(1, keepdim=True))


def network(forward):
    torch.manual_seed(0)
    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double().eval(), torch.randn(5, 3, dtype=torch.float64)


@pytest.mark.parametrize("forward", [_inside, _at_the_end])
def test_a_region_is_written_out(forward):
    module, X = network(forward)
    graph = Network(module, (3,)).graph
    assert [node.op for node in graph.nodes] == ["input", "linear", "activation", "center", "linear"]
    assert torch.equal(evaluate(graph, X), module(X))
    names = ["lipschitz_l2", "frobenius_norm", "l2_path_norm"]
    expected = measure_capacity(network(_plain)[0], X, measures=names)
    assert measure_capacity(module, X, measures=names) == pytest.approx(expected, rel=1e-12)
