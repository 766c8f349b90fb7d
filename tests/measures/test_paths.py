"""Path norms against sums over paths, their theorems, and the capacities built on norms and margins."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import reference
from networks import NETWORKS, RECTIFIERS, make, measure, measure_again, measure_module, prepared
from reference_linalg import dense_matrix
from reference_penalties import Widened
from sklearn_capacity import measure_capacity
from sklearn_capacity._validation import CapacityWarning
from sklearn_capacity.graph import Network, UnsupportedLayerError
from sklearn_capacity.linalg import ConvOperator, power_product
from sklearn_capacity.measures import MEASURES, Batch

EXPONENTS = (0.5, 1, 2, 3.5)


# Path norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in RECTIFIERS if n != "binary"])
def test_path_norm_sums_over_all_paths(name):
    module, X, _ = NETWORKS[name]()
    for p in EXPONENTS:
        expected = reference.path_sum(name, module, X, p) ** (1 / p)
        assert measure(name, "path_norm", p=p).value == pytest.approx(expected, rel=1e-10)
    assert measure(name, "l1_path_norm").value == measure(name, "path_norm", p=1).value
    assert measure(name, "l2_path_norm").value == measure(name, "path_norm").value


@pytest.mark.parametrize("name", ["mlp_no_bias", "one_output"])
def test_path_norm_enumerates_every_tuple_of_units(name):
    module, X, _ = NETWORKS[name]()
    chain = reference.matrices(name, module, X)
    for p in EXPONENTS:
        expected = reference.enumerated_paths(chain, p)
        assert reference.path_sum(name, module, X, p) == pytest.approx(expected, rel=1e-10)
        assert measure(name, "path_norm", p=p).value == pytest.approx(expected ** (1 / p), rel=1e-10)


def test_paths_through_broadcasting_count_once_for_each_copy():
    net = Widened().double()
    repeated = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        h = nn.functional.conv2d(repeated, net.conv.weight.abs()).flatten(1) @ net.one.weight.abs().T
        want = float((h * net.scale.abs() @ net.head.weight.abs().T).sum())
    X = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    assert measure_capacity(net, X, measures="l1_path_norm")["l1_path_norm"] == pytest.approx(want, rel=1e-12)


def test_one_logit_is_two_half_logits():
    module, X, _ = NETWORKS["binary"]()
    for p in EXPONENTS:
        one = reference.path_sum("binary", module, X, p)
        assert measure("binary", "path_norm", p=p).value == pytest.approx((2 * one / 2**p) ** (1 / p), rel=1e-10)


POOLS = [
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d((3, 2), (1, 3), (1, 0), dilation=(2, 1)),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d((2, 3), (3, 1), (1, 0), count_include_pad=False),
    nn.AvgPool2d(2, 1, divisor_override=3),
    nn.AdaptiveAvgPool2d((3, 4)),
    nn.AdaptiveAvgPool2d((2, 7)),
    nn.AdaptiveMaxPool2d((2, 7)),
]


@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("before", [1, 0])
def test_every_kind_of_pooling(pool, before):
    """Behind a convolution with channels, and alone on images without a channel axis, which torch allows."""
    if before:
        module, X, _ = make(lambda: nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), copy.deepcopy(pool)), (2, 6, 7))
        first = reference.leaf_matrices(module, X[0])["0"]
    else:
        module, X, _ = make(lambda: nn.Sequential(nn.Identity(), copy.deepcopy(pool)), (6, 7))
        first = np.eye(42)
    second = reference.leaf_matrices(module, X[0])["1"]
    for p in (0.5, 2.0):
        expected = reference.enumerated_paths([np.abs(second) ** p @ np.abs(first) ** p], 1.0) ** (1 / p)
        assert measure_module(module, X, "path_norm", p=p).value == pytest.approx(expected, rel=1e-10)


def test_max_pooling_counts_every_path():
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1, bias=False))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 2.0)
    X = torch.ones(1, 1, 4, 4)
    assert measure_module(module, X, "l1_path_norm").value == pytest.approx(16 * 4)  # left as a maximum: 4 * 4
    assert measure_module(module, X, "l2_path_norm").value == pytest.approx(math.sqrt(16 * 16))


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "groups", "sizes"),
    [
        ((3, 3), 1, 1, (1, 1), 1, (4, 3)),
        ((3, 2), (2, 1), (1, 2), (2, 1), 2, (3, 4)),
        ((5, 5), 1, 1, (2, 2), 1, (3, 3)),
        ((3,), 2, 1, ((1, 0),), 2, (4,)),
    ],
)
def test_power_product_is_that_of_the_dense_matrix(mode, kernel, stride, dilation, padding, groups, sizes):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 2, *kernel, generator=generator, dtype=torch.float64)
    operator = ConvOperator(weight, (2 * groups, *sizes), stride, padding, dilation, groups, mode)
    matrix = dense_matrix(operator.forward, operator.input_shape)
    x = torch.rand(2, *operator.input_shape, generator=generator, dtype=torch.float64)
    for p in EXPONENTS:
        expected = (x.flatten(1) @ matrix.abs().pow(p).T).reshape(2, *operator.output_shape)
        assert torch.allclose(power_product(operator, p, x), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.Softplus(), nn.Hardtanh()], ids=repr)
def test_path_norm_refuses_what_is_not_homogeneous(activation):
    module = nn.Sequential(nn.Linear(5, 4), activation, nn.Linear(4, 3))
    with pytest.raises(
        UnsupportedLayerError, match="A path norm is not defined .* in layer `1 \\(.*\\)`: it is not positively ho"
    ):
        measure_module(module, torch.ones(2, 5), "path_norm")


@pytest.mark.parametrize("p", [0, -1, math.inf, math.nan])
def test_exponent_of_path_norm(p):
    with pytest.raises(ValueError, match=r"`p` must lie in \(0, inf\), got"):
        measure("mlp", "path_norm", p=p)


# Theorems on path norms -----------------------------------------------------------------------------------------------


def rescaled(module: nn.Sequential, factors: list[torch.Tensor]) -> nn.Sequential:
    """The same function: unit i of hidden layer l times factors[l][i], what it feeds divided by it."""
    module = copy.deepcopy(module)
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for before, after, c in zip(linear, linear[1:], factors, strict=False):
            before.weight.mul_(c[:, None])
            if before.bias is not None:
                before.bias.mul_(c)
            after.weight.div_(c)
    return module


def random_factors(widths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.exp(torch.randn(n, generator=generator, dtype=torch.float64)) for n in widths]


def test_path_norm_survives_node_rescaling_and_group_norms_do_not():
    module, X, _ = NETWORKS["mlp"]()
    other = rescaled(module, random_factors([6, 4], 0))
    assert torch.allclose(module(X), other(X), rtol=1e-12)
    network = Network(module, (5,))
    for name in ("l1_path_norm", "l2_path_norm"):
        assert measure_again(network, other, name) == pytest.approx(measure("mlp", name).value, rel=1e-12)
    for name in ("frobenius_norm", "spectral_norm", "l1_inf_norm", "parameter_norm"):
        assert abs(measure_again(network, other, name) / measure("mlp", name).value - 1) > 0.05


def test_path_norm_is_the_least_group_norm_over_rescalings():
    """One output: min over rescalings of prod ||W||_{p, inf}; the least has incoming norms of 1 in hidden layers."""
    module, _, _ = make(
        lambda: nn.Sequential(
            nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)
        ),
        (4,),
        classes=2,
    )
    network = Network(module, (4,))
    for p in (1.0, 2.0, 3.0):
        path = measure_again(network, module, "path_norm", p=p)
        best = module
        for index, width in enumerate([5, 3]):
            norms = torch.linalg.vector_norm(best[2 * index].weight.detach(), ord=p, dim=1)
            factors = [torch.ones(n, dtype=torch.float64) for n in (5, 3)]
            factors[index] = 1 / norms
            assert len(norms) == width
            best = rescaled(best, factors)
        assert measure_again(network, best, "group_norm", p=p, q=math.inf) == pytest.approx(path, rel=1e-10)
        for seed in range(5):
            other = rescaled(module, random_factors([5, 3], seed))
            assert measure_again(network, other, "group_norm", p=p, q=math.inf) > path


def test_path_norm_bounds_the_slope_of_a_bias_free_chain():
    """|f_k(x)| <= max |x| times the l1 path norm, with equality for weights of one sign and x = 1."""
    module, X, _ = NETWORKS["conv_no_bias"]()
    bound = measure("conv_no_bias", "l1_path_norm").value
    with torch.no_grad():
        slopes = module(X).abs().sum(1) / X.abs().flatten(1).amax(1)
    assert float(slopes.max()) <= bound
    for parameter in module.parameters():
        parameter.data.abs_()
    ones = torch.ones_like(X[:1])
    assert measure_module(module, X, "l1_path_norm").value == pytest.approx(module(ones).sum().item(), rel=1e-12)


# Capacities -----------------------------------------------------------------------------------------------------------

SEPARATED = ["mlp", "binary", "conv_batch_norm", "conv_strided_grouped", "residual"]
LABELS = {
    "frobenius_capacity": ("frobenius_norm", lambda units: 4.0 ** len(units)),
    "l1_path_capacity": ("l1_path_norm", lambda units: 4.0 ** len(units)),
    "l2_path_capacity": ("l2_path_norm", lambda units: math.prod(4 * h for h in units)),
    "spectral_capacity": ("spectral_norm", math.prod),
    "l1_inf_capacity": ("l1_inf_norm", lambda units: 1.0),
}


def separated(name: str):
    """The network's own predictions as labels, so that every margin is positive."""
    network, batch = prepared(name)
    y = batch.logits.argmax(1)
    logits = batch.logits.numpy()
    others = np.where(np.eye(logits.shape[1], dtype=bool)[y.numpy()], -np.inf, logits).max(1)
    return network, batch.X, y, np.sort(logits.max(1) - others)


@pytest.mark.parametrize("name", SEPARATED)
def test_capacities_are_norms_over_margins(name):
    network, X, y, margins = separated(name)
    batch = Batch(network, X, y, loss="cross_entropy")
    module, data, _ = NETWORKS[name]()
    units = [len(W) for W in reference.matrices(name, module, data)]
    if name == "binary":
        units[-1] = 2
    for capacity, (norm, factor) in LABELS.items():
        base = (MEASURES[norm](network, batch).value / margins[0]) ** 2
        least = MEASURES[capacity](network, batch, margin_percentile=0)
        assert least.value == pytest.approx(base, rel=1e-10)
        assert least.info["margin"] == pytest.approx(margins[0])
        full = MEASURES[capacity](network, batch, margin_percentile=0, constants=True).value
        assert full == pytest.approx(base * factor(units), rel=1e-10)
        # The default is the 5th percentile, a line between the two smallest of the 7.
        fifth = margins[0] + 0.05 * 6 * (margins[1] - margins[0])
        assert MEASURES[capacity](network, batch).value == pytest.approx(base * (margins[0] / fifth) ** 2, rel=1e-10)
    for capacity in ("frobenius", "l1_inf"):
        norm = MEASURES[f"{capacity}_norm"](network, batch, view="operator").value
        value = MEASURES[f"{capacity}_capacity"](network, batch, view="operator", margin_percentile=100).value
        assert value == pytest.approx((norm / margins[-1]) ** 2, rel=1e-10)


def test_capacity_is_infinite_without_a_margin():
    module, X, y = NETWORKS["mlp"]()
    names = list(LABELS)
    with pytest.warns(CapacityWarning, match="The margin at percentile 5 must be positive") as caught:
        values = measure_capacity(module, X, y, names)
    assert values == dict.fromkeys(names, math.inf)
    assert sum(issubclass(w.category, CapacityWarning) for w in caught) == 1  # one for the whole call
    with pytest.warns(CapacityWarning, match="`margin_percentile`"):
        assert measure_capacity(module, X, y, names, log=True) == dict.fromkeys(names, math.inf)


def test_capacity_is_for_classification_and_its_own_networks():
    module, X, y = NETWORKS["mlp_tanh"]()
    with pytest.raises(UnsupportedLayerError, match="A path norm is not defined for the operator `tanh`"):
        measure_capacity(module, X, module(X).argmax(1), "l2_path_capacity")
    with pytest.raises(ValueError, match="is defined for classification only"):
        measure_capacity(module, X, y.double()[:, None].repeat(1, 3), "frobenius_capacity")
    for percentile in (-1, 101):
        with pytest.raises(ValueError, match=r"`margin_percentile` must lie in \[0, 100\], got"):
            measure_capacity(module, X, y, {"c": ("frobenius_capacity", {"margin_percentile": percentile})})
    with pytest.raises(ValueError, match="`view` must be one of"):
        measure_capacity(module, X, module(X).argmax(1), {"c": ("l1_inf_capacity", {"view": "kernels"})})
