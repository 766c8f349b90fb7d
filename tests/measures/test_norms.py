"""Sizes and products of layer norms against dense matrices, kernels cut by hand, and the definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import reference
from networks import NETWORKS, make, measure, measure_module, prepared
from sklearn_capacity import CapacityWarning, capacity_report
from sklearn_capacity.graph import Network, UnsupportedLayerError
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.layer_operators import operator_norm_upper, weight_layers

INF = math.inf


def dense(name: str) -> list[np.ndarray]:
    """The operators of the layers; those of a one-logit model end in [-1/2, 1/2]."""
    module, X, _ = NETWORKS[name]()
    return _two_logits(name, reference.matrices(name, module, X))


def _two_logits(name: str, chain: list[np.ndarray]) -> list[np.ndarray]:
    if name == "binary":
        chain[-1] = np.array([[-0.5], [0.5]]) @ chain[-1]
    return chain


# Products against dense matrices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_operator_norms_are_those_of_dense_matrices(name):
    chain = dense(name)
    for p, q in [(2, 2), (1, INF), (1.5, 3), (INF, 0.5)]:
        expected = math.prod(reference.group(W, p, q) for W in chain)
        assert measure(name, "group_norm", p=p, q=q, view="operator").value == pytest.approx(expected, rel=1e-10)
    for p, q in [(2, 2), (1, 1), (1, 1.5), (3, INF), (INF, INF)]:
        expected = math.prod(reference.induced(W, p, q) for W in chain)
        assert measure(name, "induced_norm", p=p, q=q).value == pytest.approx(expected, rel=1e-8)
    singular = [float(np.linalg.svd(W, compute_uv=False)[0]) for W in chain]
    measured = measure(name, "spectral_norm")
    assert measured.value == pytest.approx(math.prod(singular), rel=1e-8)
    assert [row["value"] for row in measured.per_layer] == pytest.approx(singular, rel=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_norms_are_those_of_the_kernels(name):
    chain = _two_logits(name, reference.kernels(name, NETWORKS[name]()[0]))
    frobenius = math.prod(float(np.linalg.norm(W)) for W in chain)
    assert measure(name, "frobenius_norm").value == pytest.approx(frobenius, rel=1e-10)
    rows = math.prod(float(np.abs(W).sum(1).max()) for W in chain)
    assert measure(name, "l1_inf_norm").value == pytest.approx(rows, rel=1e-10)
    group = math.prod(reference.group(W, 3, 0.5) for W in chain)
    assert measure(name, "group_norm", p=3, q=0.5).value == pytest.approx(group, rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv_strided_grouped", "residual_preactivation"])
def test_frobenius_and_l1_inf_are_group_norms(name):
    for view in ("kernel", "operator"):
        frobenius = measure(name, "frobenius_norm", view=view).value
        assert frobenius == measure(name, "group_norm", p=2, q=2, view=view).value
        assert measure(name, "l1_inf_norm", view=view).value == measure(name, "group_norm", p=1, q=INF, view=view).value


@pytest.mark.parametrize("name", ["mlp_no_bias", "conv_reflect", "residual"])
def test_chain_norm_takes_one_pair_per_layer(name):
    chain = dense(name)
    exponents = [1, 2, 2, INF][: len(chain) + 1] + [INF] * (len(chain) - 3)
    pairs = zip(exponents, exponents[1:], chain, strict=False)
    expected = math.prod(reference.induced(W, p, q) for p, q, W in pairs)
    assert measure(name, "chain_norm", exponents=exponents).value == pytest.approx(expected, rel=1e-8)
    assert measure(name, "chain_norm").value == measure(name, "spectral_norm").value


def test_kernel_view_bounds_nothing_for_convolutions():
    # MEASURES, section 1: one 3 x 3 kernel of ones on 8 x 8 pixels, then the sum of all pixels.
    module = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(64, 1, bias=False))
    for p in module.parameters():
        nn.init.ones_(p)
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(module.double(), x).norm()
    kernel, operator = (measure_module(module, x, "frobenius_norm", view=view).value for view in ("kernel", "operator"))
    assert kernel == pytest.approx(3 * 8)
    assert operator == pytest.approx(22 * 8)  # (3 * 8 - 2)^2 ones in the operator
    assert kernel < slope <= operator


# Both ends of the spectral norm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_upper_ends_are_above_and_near(name):
    network, _ = prepared(name)
    for node, W in zip(weight_layers(network), dense(name), strict=True):
        upper, top = operator_norm_upper(network, node), float(np.linalg.svd(W, compute_uv=False)[0])
        assert top <= upper <= top * (1 + 1e-7)  # small operators are certified densely


def test_report_has_both_ends_and_they_are_computed_on_demand():
    network, batch = prepared("conv_strided_grouped")
    fresh = Network(network.module, network.input_shape)
    measured = MEASURES["spectral_norm"](fresh, Batch(fresh))
    assert not any("operator_norm_upper" in key for key in fresh._memo)
    assert all(row["value"] <= row["upper"] and row["residual"] <= 1e-7 for row in measured.per_layer)
    assert any("operator_norm_upper" in key for key in fresh._memo)
    assert measured.per_layer[0]["layer"] == "0" and len(measured.per_layer) == 3
    module, X, y = NETWORKS["conv_strided_grouped"]()
    report = capacity_report(module, X, y, ["spectral_norm"], per_layer=True)
    assert report["layer"].tolist() == ["", "0", "2", "5"]
    assert report["computed"].str.contains("upper=").tolist() == [False, True, True, True]


def test_a_layer_of_zeros_gives_zero():
    module, X, _ = NETWORKS["mlp"]()
    nn.init.zeros_(module[2].weight)
    network = Network(module, (5,))
    with pytest.warns(CapacityWarning, match=r"weights of 1 of 3 layers are zero \(`2`\)") as caught:
        result = [MEASURES[name](network, Batch(network, X)) for name in PRODUCTS]
    assert len(caught) == 1
    for measured in result:
        assert measured.value == 0 and measured.log() == -INF


# No overflow ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    """Two networks of 200 layers, whose products of norms overflow and underflow."""
    layers = [module for _ in range(200) for module in (nn.Linear(2, 2, bias=False), nn.ReLU())]
    network = Network(nn.Sequential(*layers[:-1]).double(), (2,))
    result = {}
    for scale in (1e50, 1e-50):
        network = network.renewed()  # the trace is the same
        for weight in network.parameters.values():
            weight.data.fill_(scale)
        network.__dict__["graph"] = copy.deepcopy(network.graph)  # cut loose from the module, which changes again
        result[scale] = network
    return result


@pytest.mark.parametrize("scale", [1e50, 1e-50])
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("frobenius_norm", 2.0**200),
        ("spectral_norm", 2.0**200),
        ("l1_inf_norm", 2.0**200),
        ("induced_norm", 2.0**200),
        ("l1_path_norm", 2.0**201),
        ("l2_path_norm", 2.0**100.5),
        ("data_spectral_norm", 2.0**200.5),
        ("data_path_norm", 2.0**201),
    ],
)
def test_200_layers_keep_their_logarithm(deep, scale, name, factor):
    network, X = deep[scale], torch.ones(1, 2, dtype=torch.float64)
    measured = MEASURES[name](network, Batch(network, X, loss="absolute"))
    assert measured.log() == pytest.approx(200 * math.log(scale) + math.log(factor), rel=1e-12)
    assert measured.value == (INF if scale > 1 else 0.0)


# Refusals -------------------------------------------------------------------------------------------------------------

PRODUCTS = ["frobenius_norm", "l1_inf_norm", "group_norm", "spectral_norm", "induced_norm", "chain_norm", "path_norm"]


def test_weights_that_are_no_numbers_are_refused():
    module, X, _ = NETWORKS["mlp"]()
    module[2].weight.data[0, 0] = math.nan
    network = Network(module, (5,))
    for name in PRODUCTS:
        with pytest.raises(
            UnsupportedLayerError, match=r"in layer `2 \(Linear\)`: its weights are not finite. The network has div"
        ):
            MEASURES[name](network, Batch(network, X))


class _Outer(nn.Module):
    """A trained scale that blows one number up to three."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return x * self.scale


def test_a_scale_on_a_repeated_input_is_a_diagonal_layer():
    assert measure_module(_Outer(), torch.ones(2, 1), "spectral_norm").value == pytest.approx(3.0)


# Parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("frobenius_norm", {"view": "opertor"}, r"`view` must be one of 'kernel', 'operator', got 'opertor'. Did you"),
        ("l1_inf_norm", {"view": None}, "`view` must be one of 'kernel', 'operator', got None"),
        ("group_norm", {"p": 0}, r"`p` must lie in \(0, inf\], got 0"),
        ("group_norm", {"q": -1}, r"`q` must lie in \(0, inf\], got -1"),
        ("induced_norm", {"p": 0.5}, r"`p` must lie in \[1, inf\], got 0.5"),
        (
            "induced_norm",
            {"p": 2, "q": 3},
            "`p` and `q` must be a pair whose norm can be computed exactly, got 2 and 3",
        ),
        ("chain_norm", {"exponents": [2, 2]}, "`exponents` must hold 4 numbers for 3 weight layers, got 2"),
        ("chain_norm", {"exponents": [2, 3, INF, INF]}, "`exponents` 0 and 1 must be a pair whose norm .* got 2 and 3"),
        ("chain_norm", {"exponents": [2, 2, 2, 0]}, r"`exponents` must lie in \[1, inf\], got 0"),
        ("distance_from_initialization", {"norm": "l1"}, "`norm` must be one of 'frobenius', 'spectral', got 'l1'"),
    ],
)
def test_parameters_out_of_range_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        measure("mlp", name, **params)


@pytest.mark.parametrize("exponents", [2, "2222", iter([2, 2])])
def test_exponents_must_be_a_sequence(exponents):
    with pytest.raises(TypeError, match="`exponents` must be a sequence of 4 numbers, got"):
        measure("mlp", "chain_norm", exponents=exponents)


def test_parametrised_convolutions_count_with_their_effective_weight():
    build = lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(18, 3))  # noqa: E731
    module, X, _ = make(build, (1, 5, 5))
    expected = float(module[0].weight.norm() * module[2].weight.norm())
    assert measure_module(module, X, "frobenius_norm").value == pytest.approx(expected, rel=1e-10)
