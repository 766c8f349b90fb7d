"""Ranks and tails of the layers' singular values against dense matrices, kernels and WeightWatcher."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import reference
from networks import NETWORKS, make, measure, measure_module
from sklearn_capacity import CapacityWarning, NotDefinedError, capacity_report, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.linalg import fit_power_law
from sklearn_capacity.measures import MEASURES, Batch

SHAPES = ["stable_rank", "effective_rank", "log_norm", "log_spectral_norm"]
TAILS = ["power_law_alpha", "alpha_weighted", "log_alpha_norm"]


def by_definition(matrix: np.ndarray) -> dict[str, float]:
    s = np.linalg.svd(matrix, compute_uv=False)
    p = [value / sum(s) for value in s if value > 0]
    return {
        "stable_rank": sum(value**2 for value in s) / max(s) ** 2,
        "effective_rank": math.exp(-sum(share * math.log(share) for share in p)),
        "log_norm": math.log10(float((matrix**2).sum())),
        "log_spectral_norm": 2 * math.log10(max(s)),
    }


def matrices(name: str, view: str) -> list[np.ndarray]:
    module, X, _ = NETWORKS[name]()
    if view == "operator":
        chain = reference.matrices(name, module, X)
    else:
        kernels, layers = reference.kernels(name, module), reference.LAYERS[name]
        alone = [len(parts) == 1 and isinstance(module.get_submodule(parts[0]), nn.BatchNorm2d) for parts in layers]
        chain = [np.diag(W[:, 0]) if diagonal else W for W, diagonal in zip(kernels, alone, strict=True)]
    if name == "binary":
        chain[-1] = np.array([[-0.5], [0.5]]) @ chain[-1]
    return chain


@pytest.mark.parametrize("view", ["kernel", "operator"])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_dense_matrices(name, view):
    expected = [by_definition(matrix) for matrix in matrices(name, view)]
    for shape in SHAPES:
        measured = measure(name, shape, view=view)
        rows = [values[shape] for values in expected]
        assert [row["value"] for row in measured.per_layer] == pytest.approx(rows, rel=1e-8, abs=1e-8)
        assert measured.value == pytest.approx(np.mean(rows), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("view", ["kernel", "operator"])
@pytest.mark.parametrize("name", ["mlp", "residual", "conv_strided_grouped", "residual_preactivation", "tokens"])
def test_tails_are_those_of_dense_matrices(name, view):
    """Of every layer whose eigenvalues are two or more; the eigenvalues come from the Gram matrix here."""
    chain = matrices(name, "kernel" if name == "tokens" else view)  # copies at other positions do not count
    alphas, weighted, norms = [], [], []
    for matrix in chain:
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        values = np.linalg.eigvalsh(gram)
        values = values[values > 1e-12 * values.max()]
        alpha = fit_power_law(values).alpha
        alphas.append(alpha)
        weighted.append(alpha * math.log10(values.max()))
        norms.append(math.log10(sum(value**alpha for value in values)))
    for shape, rows in zip(TAILS, (alphas, weighted, norms), strict=True):
        measured = measure(name, shape, view=view, min_eigenvalues=2)
        assert [row["value"] for row in measured.per_layer] == pytest.approx(rows, rel=1e-6, abs=1e-6)
        assert measured.value == pytest.approx(np.mean(rows), rel=1e-6, abs=1e-6)


def with_eigenvalues(*spectra):
    """Square linear layers whose matrices have given eigenvalues of W^T W."""
    rotate = np.random.default_rng(0)
    layers = []
    for values in spectra:
        n = len(values)
        left, right = (np.linalg.qr(rotate.normal(size=(n, n)))[0] for _ in range(2))
        layer = nn.Linear(n, n, bias=False).double()
        layer.weight.data = torch.from_numpy(left @ np.diag(np.sqrt(values)) @ right)
        layers.append(layer)
    return nn.Sequential(*layers)


def test_errors_of_the_means_follow_from_those_of_the_exponents():
    rng = np.random.default_rng(3)
    spectra = [(1 - rng.random(40)) ** (-1 / 2.0), 0.1 * (1 - rng.random(40)) ** (-1 / 1.0)]
    laws = [fit_power_law(values) for values in spectra]
    net = with_eigenvalues(*spectra)

    def moved(name, values, steps):
        """The mean over the layers with the exponents `steps` higher."""
        alphas = [law.alpha + step for law, step in zip(laws, steps, strict=True)]
        if name == "power_law_alpha":
            return np.mean(alphas)
        if name == "alpha_weighted":
            return np.mean([a * math.log10(max(v)) for a, v in zip(alphas, values, strict=True)])
        return np.mean([math.log10(sum(x**a for x in v)) for a, v in zip(alphas, values, strict=True)])

    for name in TAILS:
        measured = measure_module(net, torch.zeros(1, 40), name)
        slopes = [
            (moved(name, spectra, [1e-5 * (i == j) for i in range(2)]) - moved(name, spectra, [0, 0])) / 1e-5
            for j in range(2)
        ]
        squared = sum((slope * law.standard_error) ** 2 for slope, law in zip(slopes, laws, strict=True))
        assert measured.value == pytest.approx(moved(name, spectra, [0, 0]), rel=1e-8)
        assert measured.standard_error == pytest.approx(math.sqrt(squared), rel=1e-3)


def test_layers_that_are_too_small_are_left_out_and_named():
    module = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    with pytest.warns(CapacityWarning, match="leave out 1 of 2 layers.*fewer than 20 .*`2` \\(5\\)") as seen:
        report = capacity_report(module, measures=TAILS, per_layer=True)
    assert len([w for w in seen if w.category is CapacityWarning]) == 1  # once for all measures
    assert report[report["layer"] != ""]["layer"].tolist() == ["0", "0", "0"]
    with pytest.raises(NotDefinedError, match=r"layer with 31 positive eigenvalues .*`0` \(30\), `2` \(5\). Lower"):
        measure_capacity(module, measures={"a": ("power_law_alpha", {"min_eigenvalues": 31})})
    assert "Lower `min_eigenvalues`" in capacity_report(nn.Linear(3, 2), measures="alpha_weighted").loc[0, "reason"]


def test_no_tail_where_all_eigenvalues_are_the_same_or_few_are_positive():
    rng = np.random.default_rng(0)
    low_rank = np.concatenate([rng.random(10) + 1, np.zeros(30)])
    spectra = [np.full(40, 2.0), low_rank, (1 - rng.random(40)) ** -1.0]
    with pytest.warns(CapacityWarning, match=r"`0` \(all equal\), `1` \(10\)"):
        measured = measure_module(with_eigenvalues(*spectra), torch.zeros(1, 40), "power_law_alpha")
    assert measured.value == pytest.approx(fit_power_law(spectra[2]).alpha)


def test_layers_of_zeros():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    net[0].weight.data.zero_()
    net[2].weight.data.copy_(torch.eye(3))
    result = measure_capacity(net, measures=SHAPES)
    assert result == pytest.approx(
        {"stable_rank": 1.5, "effective_rank": 1.5, "log_norm": -math.inf} | {"log_spectral_norm": -math.inf}
    )


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_weights_whose_squares_are_out_of_range(scale):
    net = with_eigenvalues(np.linspace(1, 3, 30) ** 4)
    expected = {name: measure_module(net, torch.zeros(1, 30), name).value for name in SHAPES + TAILS}
    net[0].weight.data *= scale
    result = {name: measure_module(net, torch.zeros(1, 30), name).value for name in SHAPES + TAILS}
    shift = 2 * math.log10(scale)
    expected["log_norm"] += shift
    expected["log_spectral_norm"] += shift
    expected["alpha_weighted"] += shift * expected["power_law_alpha"]
    expected["log_alpha_norm"] += shift * expected["power_law_alpha"]
    assert result == pytest.approx(expected, rel=1e-8)


def test_large_operators_are_refused_and_large_kernels_are_not():
    module, X, y = make(
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5120, 2)), (3, 32, 32)
    )
    module_wide, X_wide, _ = make(lambda: nn.Conv2d(5, 5, 3, padding=1), (5, 32, 32))
    assert measure_module(module, X, "effective_rank", view="operator").value > 0
    with pytest.raises(
        NotDefinedError, match="5120 by 5120, but the shorter side may be at most 4096. Use view=.kernel"
    ):
        measure_module(module_wide, X_wide, "effective_rank", view="operator")
    for shape in ("stable_rank", "log_norm", "log_spectral_norm"):
        assert math.isfinite(measure_module(module_wide, X_wide, shape, view="operator").value)


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("stable_rank", {"view": "kernal"}, ValueError, "`view` must be one of .* Did you mean 'kernel'?"),
        ("effective_rank", {"view": None}, ValueError, "`view` must be one of"),
        ("power_law_alpha", {"min_eigenvalues": 1}, ValueError, "`min_eigenvalues` must be at least 2, got 1."),
        ("alpha_weighted", {"min_eigenvalues": 2.5}, TypeError, "`min_eigenvalues` must be an integer, got 2.5."),
        ("log_alpha_norm", {"view": "x"}, ValueError, "`view` must be one of"),
    ],
)
def test_wrong_parameters(name, params, error, message):
    with pytest.raises(error, match=message):
        measure("mlp", name, **params)


def test_no_layers():
    network = Network(nn.Flatten(), (3,))
    for name in SHAPES + TAILS:
        with pytest.raises(NotDefinedError, match="needs a (weight )?layer"):
            MEASURES[name](network, Batch(network))


def test_equals_weightwatcher():
    """Its fit, its threshold and its standard error, on linear layers."""
    weightwatcher = pytest.importorskip("weightwatcher", reason="WeightWatcher is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(120, 80), nn.ReLU(), nn.Linear(80, 60), nn.ReLU(), nn.Linear(60, 60))
    with torch.no_grad():
        net[2].weight.mul_((torch.arange(1, 61) / 60)[:, None] ** -0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        details = weightwatcher.WeightWatcher(model=net).analyze(min_evals=0)
    ours = capacity_report(net, measures=[*SHAPES, *TAILS], per_layer=True)
    columns = {
        name: name for name in ("stable_rank", "log_norm", "log_spectral_norm", "alpha_weighted", "log_alpha_norm")
    }
    for name, column in {**columns, "power_law_alpha": "alpha"}.items():
        rows = ours[(ours["measure"] == name) & (ours["layer"] != "")]["value"]
        assert rows.tolist() == pytest.approx(details[column].tolist(), rel=1e-4), name
    errors = [row["standard_error"] for row in measure_module(net, torch.zeros(1, 120), "power_law_alpha").per_layer]
    assert errors == pytest.approx(details["sigma"].tolist(), rel=1e-4)
