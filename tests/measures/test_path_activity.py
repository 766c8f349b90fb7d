"""Path activities against enumerated paths, and against Jacobians and path norms as theory has them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS, RECTIFIERS, measure, measure_module, prepared
from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch


def enumerated(module, X, p):
    """A perceptron's paths one by one, from its linear layers and the derivatives of the operators between them."""
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    slopes = {nn.ReLU: lambda z: (z > 0).double(), nn.Tanh: lambda z: 1 - torch.tanh(z) ** 2}
    total = 0.0
    for x in X:
        derivatives, h = [], x
        for layer in module:
            if not isinstance(layer, nn.Linear):
                derivatives.append(slopes[type(layer)](h).detach().tolist())
            h = layer(h)
        weights = [layer.weight.detach().tolist() for layer in linear]
        sizes = [len(x), *(len(w) for w in weights)]
        for path in itertools.product(*(range(size) for size in sizes)):
            product = math.prod(abs(w[j][i]) for w, i, j in zip(weights, path[:-1], path[1:], strict=True))
            total += (product * math.prod(d[i] for d, i in zip(derivatives, path[1:-1], strict=True))) ** p
    return (total / len(X)) ** (1 / p)


@pytest.mark.parametrize("p", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("case", ["mlp", "mlp_no_bias", "mlp_tanh"])
def test_equals_enumerated_paths(case, p):
    module, X, _ = NETWORKS[case]()
    assert measure(case, "path_activity", p=p).value == pytest.approx(enumerated(module, X, p), rel=1e-9)


@pytest.mark.parametrize("case", [*RECTIFIERS, "mlp_tanh"])
def test_lies_between_the_jacobian_and_the_path_norm(case):
    """|J_ij| <= sum over the active paths from i to j <= sum over all of them."""
    network, batch = prepared(case)
    active = MEASURES["path_activity"](network, batch).value
    jacobians = []
    for x in batch.X:
        rows = torch.autograd.functional.jacobian(lambda z: network.forward(z[None])[0], x)
        jacobians.append(float(rows.abs().sum()))
    assert np.mean(jacobians) <= active * (1 + 1e-9)
    if case != "mlp_tanh":
        assert active <= measure(case, "l1_path_norm").value * (1 + 1e-9)


@pytest.mark.parametrize("case", ["conv_max_pool", "conv_avg_pool", "residual"])
def test_equals_the_jacobian_where_no_sign_can_cancel(case):
    """With all weights positive the sum over active paths is the sum of the Jacobian's entries."""
    module, X, _ = NETWORKS[case]()
    for parameter in module.parameters():
        parameter.data.abs_()
    with torch.no_grad():
        network = Network(module, tuple(X.shape[1:]))
    total = []
    for x in X:
        total.append(float(torch.autograd.functional.jacobian(lambda z: module(z[None])[0], x).sum()))
    for chunk in (None, 2):
        result = MEASURES["path_activity"](network, Batch(network, X, batch_size=chunk)).value
        assert result == pytest.approx(np.mean(total), rel=1e-9)


def test_deep_networks_do_not_overflow():
    layers = [layer for _ in range(80) for layer in (nn.Linear(30, 30, bias=False), nn.ReLU())]
    net = nn.Sequential(*layers[:-1]).double()
    for layer in net[::2]:
        nn.init.constant_(layer.weight, 1e6)
    measured = measure_module(net, torch.ones(2, 30, dtype=torch.float64), "path_activity")
    assert measured.value == math.inf
    assert measured.log() == pytest.approx(80 * math.log(1e6 * 30) + math.log(30))


def test_a_network_that_is_off():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    net[0].weight.data.fill_(1.0), net[0].bias.data.fill_(-5.0)
    assert measure_capacity(net, torch.zeros(3, 2), measures="path_activity") == {"path_activity": 0.0}


def test_operators_without_a_rule_are_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayerError, match="A path activity is not defined .*`1 .LayerNorm"):
        measure_capacity(net, torch.zeros(3, 4), measures="path_activity")
    with pytest.raises(ValueError, match="`p` must lie in"):
        measure_module(net, torch.zeros(3, 4), "path_activity", p=0.0)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0])
def test_single_precision_loses_no_digits(p):
    """Of a deep network with unequal scales, whose units are all on in either precision."""
    torch.manual_seed(11)
    layers = [nn.Conv2d(2, 7, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AvgPool2d(2, padding=1)]
    for k in range(24):
        layers += [nn.Conv2d(7, 7, 3, padding=1), nn.ReLU()]
        layers[-2].weight.data.abs_().mul_(30.0 if k % 2 else 0.02)
        layers[-2].bias.data.abs_()
    layers[0].weight.data.abs_()
    layers[0].bias.data.abs_()
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(7 * 25, 3)).eval()
    X = torch.rand(4, 2, 8, 8)
    single, double = (
        MEASURES["path_activity"](network, Batch(network, X.to(network.dtype)), p=p).log_value
        for network in (Network(module, (2, 8, 8), dtype=dtype) for dtype in (torch.float32, torch.float64))
    )
    assert single == pytest.approx(double, abs=2e-5)
