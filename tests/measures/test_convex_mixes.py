"""Gates that mix two signals: the bound by hand, and against Jacobians at many inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from networks import make
from reference import input_jacobians
from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures.convex_mixes import convex_mix
from sklearn_capacity.measures.magnitudes import magnitudes

#: z a + (1 - z) b in several spellings, of the linear maps u, v, w and their bounded signals.
MIXES = {
    "products": lambda z, a, b: z * a + (1 - z) * b,
    "complement first": lambda z, a, b: (1 - z) * b + a * z,
    "difference": lambda z, a, b: b + z * (a - b),
    "difference first": lambda z, a, b: (a - b) * z + b,
    "lerp": lambda z, a, b: torch.lerp(b, a, z),
}


class Mixed(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.u, self.v, self.w = (nn.Linear(4, 4) for _ in range(3))
        self.mix = mix

    def forward(self, x):
        return self.mix(self.u(x).sigmoid(), self.v(x).tanh(), 2 * self.w(x).tanh())


@pytest.mark.parametrize("name", MIXES)
def test_bound_is_that_by_hand_and_holds(name):
    module, X, y = make(lambda: Mixed(MIXES[name]), (4,), classes=4)
    values = measure_capacity(module, X, y, ["lipschitz_l2", "lipschitz_linf"])
    weights = [layer.weight.detach() for layer in (module.u, module.v, module.w)]
    u, v, w = (float(torch.linalg.matrix_norm(weight, 2)) for weight in weights)
    # The signals lie between -1 and 1 and between -2 and 2; a sigmoid's slope is at most 1/4.
    assert values["lipschitz_l2"] == pytest.approx(math.hypot(v, 2 * w) + 3 * u / 4, rel=1e-6)
    u, v, w = (float(weight.abs().sum(1).max()) for weight in weights)
    assert values["lipschitz_linf"] == pytest.approx(max(v, 2 * w) + 3 * u / 4, rel=1e-6)
    far = torch.cat([X * scale for scale in (0.01, 0.3, 1.0, 10.0)])
    jacobians = input_jacobians(module, far)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= values["lipschitz_l2"]
    assert float(jacobians.abs().sum(2).max()) <= values["lipschitz_linf"]


@pytest.mark.parametrize("name", MIXES)
def test_values_stay_within_those_that_are_mixed(name):
    module, _, _ = make(lambda: Mixed(MIXES[name]), (4,), classes=4)
    network = Network(module, (4,))
    assert float(magnitudes(network)[network.unrolled_graph.output].max()) == 2.0


@pytest.mark.parametrize(
    "other",
    [
        lambda z, a, b: z * a + (1 - a) * b,  # a is no share
        lambda z, a, b: z * a + (2 - z) * b,
        lambda z, a, b: z * a - (1 - z) * b,
        lambda z, a, b: a + z * (a - b),
        lambda z, a, b: z * a + (1 - z.flip(1)) * b,
    ],
)
def test_other_sums_are_none(other):
    module, _, _ = make(lambda: Mixed(other), (4,), classes=4)
    graph = Network(module, (4,)).unrolled_graph
    assert not any(convex_mix(graph, node) for node in graph.nodes)


def test_a_broadcast_gate_and_that_of_a_recurrent_layer_are_mixes():
    broadcast = Mixed(lambda z, a, b: z[:, :1] * a + (1 - z[:, :1]) * b)
    module, _, _ = make(lambda: broadcast, (4,), classes=4)
    recurrent = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GRU(2, 3, batch_first=True), _First()).double()
    for network, count in ((Network(module, (4,)), 1), (Network(recurrent, (4,)), 2)):
        graph = network.unrolled_graph
        assert sum(convex_mix(graph, node) is not None for node in graph.nodes) == count
        assert float(magnitudes(network)[graph.output].max()) <= 2.0


class _First(nn.Module):
    def forward(self, x):
        return x[0][:, -1]
