"""Lipschitz constants: never below a sampled slope, and on chains the product of dense operators' norms."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reference_margins as reference
from networks import NETWORKS, make
from sklearn_capacity import UnsupportedLayerError, capacity_report, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.lipschitz import log_lipschitz

NORMS = {"l2": (2, reference.norm_l2), "linf": (math.inf, reference.norm_linf)}


class Function(nn.Module):
    """A module from a function of the input, with a linear map before it so that something can be learned."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv_net(*layers, shape=(1, 8, 8)):
    convolution = nn.Conv2d(shape[0], 2, 3, padding=1)
    with torch.no_grad():
        n = nn.Sequential(convolution, *layers)(torch.zeros(1, *shape)).numel()
    return nn.Sequential(convolution, *layers, nn.Flatten(), nn.Linear(n, 3)), shape


#: Chains of one linear or element-wise map after the other, whose composition is known.
CHAINS = {
    **{
        kind.__name__: lambda kind=kind: (nn.Sequential(nn.Linear(4, 5), kind(), nn.Linear(5, 3)), (4,))
        for kind in (nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.ELU, nn.ReLU6, nn.Hardtanh, nn.ReLU)
    },
    "tanh-gelu": lambda: (nn.Sequential(nn.Linear(4, 5), nn.GELU("tanh"), nn.Linear(5, 3)), (4,)),
    "steep leak": lambda: (nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(-1.5), nn.Linear(5, 3)), (4,)),
    "elu 2": lambda: (nn.Sequential(nn.Linear(4, 5), nn.ELU(2.0), nn.Linear(5, 3)), (4,)),
    "selu": lambda: (nn.Sequential(nn.Linear(4, 5), nn.SELU(), nn.Linear(5, 3)), (4,)),
    "celu": lambda: (nn.Sequential(nn.Linear(4, 5), nn.CELU(0.5), nn.Linear(5, 3)), (4,)),
    "max 2": lambda: conv_net(nn.MaxPool2d(2)),
    "max 3 by 2": lambda: conv_net(nn.MaxPool2d(3, 2)),
    "max 3 by 1, padded": lambda: conv_net(nn.MaxPool2d(3, 1, 1)),
    "max (3, 2) by (1, 2)": lambda: conv_net(nn.MaxPool2d((3, 2), (1, 2))),
    "max 3 by 2, ceil": lambda: conv_net(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "max 3 by 2, dilated": lambda: conv_net(nn.MaxPool2d(3, 2, 1, dilation=2)),
    "max 2 by 3": lambda: conv_net(nn.MaxPool2d(2, 3)),
    "average 2": lambda: conv_net(nn.AvgPool2d(2)),
    "average 3 by 2": lambda: conv_net(nn.AvgPool2d(3, 2, 1)),
    "average, uncounted": lambda: conv_net(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "average, divisor": lambda: conv_net(nn.AvgPool2d(2, 1, divisor_override=3)),
    "adaptive average": lambda: conv_net(nn.AdaptiveAvgPool2d(3)),
    "stride and groups": lambda: conv_net(nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 2)),
    "reflection": lambda: conv_net(nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect")),
    "transposed": lambda: conv_net(nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1)),
}


@functools.cache
def case(name):
    if name in NETWORKS:
        module, X, _ = NETWORKS[name]()
    else:
        module, X, _ = make(lambda: CHAINS[name]()[0], CHAINS[name]()[1], seed=3)
    return module, X, Network(module, tuple(X.shape[1:]))


def bound(name, kind):
    return math.exp(log_lipschitz(case(name)[2], kind))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", [*NETWORKS, *CHAINS])
def test_never_below_a_sampled_slope(name, kind):
    module, X, _ = case(name)
    slope = reference.sampled_slopes(module, X, NORMS[kind][0], n_pairs=24)
    assert 0 < slope <= bound(name, kind)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", CHAINS)
def test_chains_against_dense_operators(name, kind):
    module, X, _ = case(name)
    expected = reference.composed_lipschitz(module, tuple(X.shape[1:]), NORMS[kind][1])
    # Slopes scanned on a grid come from below; operators as small as these are certified to 1e-7.
    assert expected * (1 - 1e-7) <= bound(name, kind) <= expected * (1 + 2e-6)


def test_windows_of_a_max_pooling_may_have_only_padding():
    last = nn.Linear(1, 3)
    network = Network(nn.Sequential(nn.MaxPool1d(2, 2, padding=1, dilation=2), nn.Flatten(), last), (1, 1))
    norm = float(torch.linalg.vector_norm(last.weight))
    assert math.exp(log_lipschitz(network, "l2")) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("name", [*NETWORKS, *CHAINS])
def test_frobenius_composition_is_never_smaller(name):
    assert bound(name, "frobenius") >= bound(name, "l2") * (1 - 1e-8)


def test_frobenius_composition_of_a_chain_is_the_product_over_operators():
    module, X, network = case("stride and groups")
    sizes = [(1, 8, 8), (2, 8, 8), (4, 4, 4), (18,)]
    layers = [module[0], module[1], module[3], module[5]]
    matrices = [reference.dense(layer, size) for layer, size in zip(layers, sizes, strict=True)]
    expected = math.prod(float(np.linalg.norm(W)) for W in matrices)
    assert math.exp(log_lipschitz(network, "frobenius")) == pytest.approx(expected, rel=1e-8)


# -- branches, by hand -------------------------------------------------------------------------------------------------


def scaled_identity(c, n=4):
    layer = nn.Linear(n, n, bias=False)
    layer.weight.data.copy_(c * torch.eye(n))
    return layer


def _padded(mode):
    return lambda x, a: F.pad(a(x)[:, None], (3, 3), mode=mode).relu().flatten(1)


#: Functions of the input and of scaled identities on R^4, with the constants in both norms worked out by hand.
BRANCHES = {
    "residual": (lambda x, a: x + a(x).relu(), [3.0], 4.0, 4.0),
    "twice the input": (lambda x, a: a(x) + a(x), [3.0], 6.0, 6.0),
    "difference": (lambda x, a, b: a(x) - b(x).relu(), [3.0, 2.0], 5.0, 5.0),
    "weighted sum": (lambda x, a, b: torch.add(a(x), b(x), alpha=-2.5), [3.0, 2.0], 8.0, 8.0),
    "nested": (lambda x, a, b: (x + a(x)).relu() + b(x + a(x)), [1.0, 2.0], 6.0, 6.0),
    "concatenation": (lambda x, a, b: torch.cat([a(x), b(x).relu()], 1), [3.0, 4.0], 5.0, 4.0),
    "scale": (lambda x, a: -2.0 * a(x) / 0.5, [3.0], 12.0, 12.0),
    "shift": (lambda x, a: a(x) + 7.0, [3.0], 3.0, 3.0),
    "mean": (lambda x, a: a(x).mean(1, keepdim=True), [2.0], 1.0, 2.0),
    "sum": (lambda x, a: a(x).sum(1, keepdim=True), [2.0], 4.0, 8.0),
    "slice": (lambda x, a: a(x)[:, 1:3], [2.0], 2.0, 2.0),
    "slices apart": (lambda x, a, b: torch.cat([a(x)[:, :2], b(x)[:, 2:]], 1), [2.0, 3.0], math.sqrt(13), 3.0),
    "broadcast": (lambda x, a: a(x)[:, :1] * torch.tensor([3.0, 0.0, -4.0], dtype=x.dtype), [2.0], 10.0, 8.0),
    "zeros around": (_padded("constant"), [2.0], 2.0, 2.0),
    "reflection": (_padded("reflect"), [2.0], 2 * math.sqrt(3), 2.0),  # pixels 1 and 2 occur three times
    "wrapping": (_padded("circular"), [2.0], 2 * math.sqrt(3), 2.0),
    "repetition": (_padded("replicate"), [2.0], 4.0, 2.0),  # the pixel at the border occurs four times
    "constant": (lambda x, a: a(x), [0.0], 0.0, 0.0),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_by_hand(name):
    function, factors, l2, linf = BRANCHES[name]
    module = Function(function, *(scaled_identity(c) for c in factors)).double()
    network = Network(module, (4,))
    assert math.exp(log_lipschitz(network, "l2")) == pytest.approx(l2, rel=1e-8)
    assert math.exp(log_lipschitz(network, "linf")) == pytest.approx(linf, rel=1e-8)
    X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert reference.sampled_slopes(module, X, 2) <= math.exp(log_lipschitz(network, "l2"))


def test_an_unbounded_gate_is_refused_by_name():
    module = nn.Sequential(nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 2))
    for name in ("lipschitz_l2", "lipschitz_linf"):
        with pytest.raises(
            UnsupportedLayerError, match="A Lipschitz constant is not defined for .* in layer `1 \\(GLU\\)`"
        ):
            measure_capacity(module, measures=name)


def test_two_hundred_layers_do_not_overflow():
    network = Network(nn.Sequential(*(scaled_identity(1000.0) for _ in range(200))), (4,))
    measured = MEASURES["lipschitz_l2"](network, Batch(network))
    assert measured.value == math.inf
    assert measured.log() == pytest.approx(200 * math.log(1000), rel=1e-9)


def test_softplus_that_jumps_has_no_constant():
    module = nn.Sequential(nn.Linear(2, 2), nn.Softplus(1.0, threshold=1.0))
    assert measure_capacity(module, measures="lipschitz_l2") == {"lipschitz_l2": math.inf}


def test_report_has_both_ends_of_every_layer():
    module, X, _ = NETWORKS["conv_max_pool"]()
    report = capacity_report(module, X, measures="lipschitz_l2", per_layer=True, loss="squared")
    assert len(report) == 1 + 3
    network = case("conv_max_pool")[2]
    for row in MEASURES["lipschitz_l2"](network, Batch(network)).per_layer:
        assert row["lower"] <= row["value"] <= row["lower"] * (1 + 1e-6)


class Repeats(nn.Module):
    """A scale that repeats each of its inputs over an axis."""

    def __init__(self, *, trained: bool):
        super().__init__()
        self.first, self.last = nn.Linear(4, 2, bias=False), nn.Linear(6, 3, bias=False)
        factors = torch.tensor([[1.0, -2.0, 3.0], [0.5, 2.0, 2.0]])
        self.factors = nn.Parameter(factors) if trained else factors.double()

    def forward(self, x):
        return self.last((self.first(x)[:, :, None] * self.factors).flatten(1))


@pytest.mark.parametrize("trained", [True, False])
def test_a_scale_on_repeated_inputs_has_the_norm_of_its_matrix(trained):
    module, X, y = make(lambda: Repeats(trained=trained), (4,), classes=3)
    ends = [float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in (module.first, module.last)]
    value = measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"]
    assert value == pytest.approx(ends[0] * math.sqrt(14) * ends[1], rel=1e-6)
