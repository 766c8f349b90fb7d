"""Gradient norm, extreme eigenvalues and trace of the loss's Hessian against dense matrices, and what they state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import NETWORKS, make
from reference_hessian import dense_hessian
from sklearn_capacity import CapacityWarning, NotDefinedError, capacity_report, measure_capacity
from sklearn_capacity.derivatives.loss_hessian import LossHessian
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch, hessian_estimates

NAMES = ["hessian_max_eigenvalue", "hessian_min_eigenvalue", "hessian_trace"]


def measured(name, module, X, y, *, loss="cross_entropy", seed=0, **params):
    network = Network(module, tuple(X.shape[1:]))
    return MEASURES[name](network, Batch(network, X, y, loss=loss, random_state=seed), **params)


def wide(classes=3):
    """Too many parameters for the matrix itself, at a saddle: 8-30-10-classes, with labels of no meaning."""
    layers = lambda: (nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 10), nn.Tanh(), nn.Linear(10, classes))  # noqa: E731
    module, X, _ = make(lambda: nn.Sequential(*layers()), (8,), seed=3)
    return module, X, torch.arange(len(X)) % classes


def many_classes():
    """A thousand classes: the Hessian of the output alone has a thousand rows."""
    module, X, _ = make(lambda: nn.Linear(2, 1000), (2,), seed=1)
    return module, X, torch.arange(len(X)) * 131


@pytest.mark.parametrize("case", ["mlp", "mlp_tanh", "mlp_batch_norm", "tied", "conv_no_bias", "tokens"])
def test_small_networks_exactly(case):
    module, X, y = NETWORKS[case]()
    values = torch.linalg.eigvalsh(dense_hessian(module, X, y))
    result = measure_capacity(module, X, y, NAMES)
    assert result["hessian_max_eigenvalue"] == pytest.approx(float(values[-1]), rel=1e-9)
    assert result["hessian_min_eigenvalue"] == pytest.approx(float(values[0]), rel=1e-8)
    assert result["hessian_trace"] == pytest.approx(float(values.sum()), rel=1e-9)


@pytest.mark.parametrize("build", [wide, many_classes])
def test_lanczos_finds_both_ends_within_the_stated_error(build):
    module, X, y = build()
    values = torch.linalg.eigvalsh(dense_hessian(module, X, y))
    scale = float(values.abs().max())
    for name, true, sign in (("hessian_max_eigenvalue", values[-1], 1), ("hessian_min_eigenvalue", values[0], -1)):
        for tol in (1e-1, 1e-5):
            result = measured(name, module, X, y, tol=tol)
            assert result.info["method"] == "Lanczos" and result.info["products"] <= 200
            below = sign * (float(true) - result.value)  # Ritz values lie inside the spectrum
            assert -1e-12 * scale <= below <= result.info["error"] <= 1.01 * tol * scale
        assert result.value == pytest.approx(float(true), rel=1e-6, abs=1e-12 * scale)


@pytest.mark.parametrize("vectors", [0, 5, 40])
def test_the_ends_are_found_without_room_for_all_vectors(vectors, monkeypatch):
    """As with 25 million parameters."""
    module, X, y = wide()
    values = torch.linalg.eigvalsh(dense_hessian(module, X, y))
    monkeypatch.setattr(hessian_estimates, "BASIS", 8 * vectors * sum(p.numel() for p in module.parameters()))
    for name, true in (("hessian_max_eigenvalue", values[-1]), ("hessian_min_eigenvalue", values[0])):
        result = measured(name, module, X, y)
        assert abs(float(true) - result.value) <= result.info["error"] <= 1.01e-5 * float(values.abs().max())


@pytest.mark.parametrize("columns", [1, 7])
def test_a_trace_with_room_for_few_vectors_is_within_its_error(columns, monkeypatch):
    module, X, y = wide()
    true = float(dense_hessian(module, X, y).trace())
    monkeypatch.setattr(hessian_estimates, "SKETCH", 32 * columns * sum(p.numel() for p in module.parameters()))
    for seed in range(5):
        result = measured("hessian_trace", module, X, y, seed=seed)
        assert abs(result.value - true) <= 4 * result.standard_error


@pytest.mark.parametrize("sign", [1, -1])
def test_a_definite_hessian_has_no_eigenvalue_of_zero(sign, monkeypatch):
    """One product determines a multiple of the identity; no vector of zeros may be taken for an eigenvector."""
    monkeypatch.setattr(hessian_estimates, "SMALL", 0)
    X, y = torch.eye(4, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    name = "hessian_max_eigenvalue" if sign > 0 else "hessian_min_eigenvalue"
    result = measured(name, nn.Linear(4, 1, bias=False).double(), X, y, loss="squared")
    assert result.value == pytest.approx(0.5, rel=1e-12) and result.info["products"] == 1


def test_products_that_run_out_warn():
    module, X, y = wide()
    with pytest.warns(CapacityWarning, match="after 3 products"):
        measured("hessian_min_eigenvalue", module, X, y, max_products=3)


@pytest.mark.parametrize("case", ["conv_batch_norm", "mlp_batch_norm", "weight_norm"])
def test_rows_of_layers_are_diagonal_blocks(case):
    module, X, y = NETWORKS[case]()
    layers, sizes = [], []
    for name, parameter in module.named_parameters():
        layer = name.split(".parametrizations")[0].removesuffix(".weight").removesuffix(".bias")
        if layer not in layers:
            layers.append(layer)
            sizes.append([])
        start = sum(map(sum, sizes)) if case != "weight_norm" else None
        sizes[layers.index(layer)].append(parameter.numel() if start is not None else 0)
    result = {name: measured(name, module, X, y, per_layer=True) for name in NAMES}
    assert [row["layer"] for row in result["hessian_trace"].per_layer] == layers
    total = sum(row["value"] for row in result["hessian_trace"].per_layer)
    assert result["hessian_trace"].value == pytest.approx(total, rel=1e-12)
    assert result["hessian_trace"].value == pytest.approx(measured("hessian_trace", module, X, y).value, rel=1e-9)
    if case == "weight_norm":
        return
    H, start = dense_hessian(module, X, y), 0
    for i, size in enumerate(map(sum, sizes)):
        block = torch.linalg.eigvalsh(H[start : start + size, start : start + size])
        for name, value in zip(NAMES, (block[-1], block[0], block.sum()), strict=True):
            assert result[name].per_layer[i]["value"] == pytest.approx(float(value), rel=1e-7, abs=1e-12), name
        start += size


def test_rows_are_in_the_report():
    module, X, y = NETWORKS["mlp"]()
    request = {"trace": ("hessian_trace", {"per_layer": True})}
    report = capacity_report(module, X, y, request, per_layer=True)
    assert report.layer.tolist() == ["", "0", "2", "4"]
    assert report.value[0] == pytest.approx(report.value[1:].sum(), rel=1e-12)


@pytest.mark.parametrize("n_products", [6, 30, 200])
def test_trace_within_four_standard_errors_for_a_hundred_seeds(n_products):
    module, X, y = wide()
    H = dense_hessian(module, X, y)
    true, signs_alone = float(H.trace()), math.sqrt(2 * float((H - H.diag().diag()).square().sum()) / n_products)
    network = Network(module, tuple(X.shape[1:]))
    outside, spreads = 0, []
    for seed in range(100):
        batch = Batch(network, X, y, loss="cross_entropy", random_state=seed)
        result = MEASURES["hessian_trace"](network, batch, n_products=n_products)
        outside += abs(result.value - true) > 4 * result.standard_error
        spreads.append(result.standard_error)
    # With two probes the error has Student's distribution of one degree: beyond 4 in 16 of 100.
    assert outside <= (30 if n_products == 6 else 1)
    if n_products == 200:
        assert sum(spreads) / 100 < 0.8 * signs_alone


def test_one_seed_gives_one_estimate_and_batches_do_not_matter():
    module, X, y = wide()
    request = {"t": ("hessian_trace", {"n_products": 9}), "m": "hessian_max_eigenvalue", "g": "loss_gradient_norm"}
    first = measure_capacity(module, X, y, request, random_state=5)
    assert first == measure_capacity(module, X, y, request, random_state=5)
    assert measure_capacity(module, X, y, request, random_state=5, batch_size=2) == pytest.approx(first, rel=1e-9)
    assert first["t"] != measure_capacity(module, X, y, request, random_state=6)["t"]


def test_float32_networks():
    module, X, y = wide()
    expected = {name: measured(name, module, X, y).value for name in [*NAMES, "loss_gradient_norm"]}
    for name, value in expected.items():
        got = measured(name, module.float(), X.float(), y).value
        assert got == pytest.approx(value, rel=1e-4 if name != "hessian_min_eigenvalue" else 1e-3), name


def test_gradient_norm_of_the_raw_parameters():
    """Batch norm is not folded, and frozen parameters take no part."""
    module, X, y = NETWORKS["conv_batch_norm"]()
    module[0].weight.requires_grad_(False)
    F.cross_entropy(module(X), y).backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters() if p.requires_grad))
    assert measured("loss_gradient_norm", module, X, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [*NAMES, "loss_gradient_norm"])
def test_frozen_and_diverged_networks_are_refused(name):
    module, X, y = NETWORKS["mlp"]()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(NotDefinedError, match="needs trainable parameters"):
        measured(name, module, X, y)
    module.requires_grad_(True)[0].weight.data[0, 0] = math.nan
    with pytest.raises(NotDefinedError, match="of the loss is not finite"):
        measured(name, module, X, y)


def test_infinite_products_of_an_iteration_are_refused():
    module, X, y = wide()
    module[0].weight.data[0, 0] = math.nan
    with pytest.raises(NotDefinedError, match="not finite"):
        measured("hessian_max_eigenvalue", module, X, y)
    with pytest.raises(NotDefinedError, match="not finite"):
        measured("hessian_trace", module, X, y, n_products=6)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("hessian_max_eigenvalue", {"tol": 0.0}, r"`tol` must lie in \(0, 1\), got 0"),
        ("hessian_min_eigenvalue", {"max_products": 0}, "`max_products` must be at least 1, got 0"),
        ("hessian_trace", {"n_products": 5}, "`n_products` must be at least 6, got 5"),
    ],
)
def test_parameters_out_of_range(name, params, message):
    with pytest.raises(ValueError, match=message):
        measured(name, *NETWORKS["mlp"](), **params)


def test_the_gradient_of_all_samples_is_formed_once(monkeypatch):
    """Where all samples fit, a product costs no forward pass."""
    module, X, y = wide()
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1))
    network = Network(module, tuple(X.shape[1:]))
    derivative: LossHessian = hessian_estimates.loss_hessian(network, Batch(network, X, y, loss="cross_entropy"))
    derivative.product(torch.ones(derivative.size))
    passes.clear()
    derivative.product(torch.ones(derivative.size))
    assert not passes
