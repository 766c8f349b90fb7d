"""Norms over two weights, histograms of weights: the data behind the figures, and the figures."""

from __future__ import annotations

import copy

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from networks import NETWORKS, measure_module
from sklearn_capacity import NetworkClassifier, NotDefinedError
from sklearn_capacity.displays import NormGeometryDisplay, WeightHistogramDisplay
from sklearn_capacity.scoring.landscape import MeasureLandscape, measure_landscape, network_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()


@pytest.fixture
def X():
    return torch.randn(10, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted():
    X = np.random.default_rng(0).normal(size=(30, 4))
    return NetworkClassifier((5,), batch_norm=True, max_epochs=2, random_state=0).fit(X, (X[:, 0] > 0).astype(int))


def test_every_point_is_the_measure_of_that_network(net, X):
    before = copy.deepcopy(net.state_dict())
    weights = [("0.weight", (1, 0)), ("2.weight", (0, 2))]
    land = measure_landscape(net, X, weights=weights, half_width=1.5, resolution=3, loss="absolute")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert land.names == ("0.weight[1, 0]", "2.weight[0, 2]")
    assert land.here == (float(before["0.weight"][1, 0]), float(before["2.weight"][0, 2]))
    np.testing.assert_allclose(land.x, [-1.5, 0, 1.5])
    for i, j in [(0, 0), (2, 1), (1, 2)]:
        moved = copy.deepcopy(net)
        moved[0].weight.data[1, 0], moved[2].weight.data[0, 2] = land.x[j], land.y[i]
        for name in ("fisher_rao_norm", "l2_path_norm"):
            assert land.values[name][i, j] == pytest.approx(measure_module(moved, X, name).value, rel=1e-12)


def test_default_weights_and_width(net, X):
    land = measure_landscape(net, X, measures="l1_path_norm", resolution=2)
    assert land.names == ("0.weight[0, 0]", "2.weight[0, 0]")
    assert land.x[-1] == pytest.approx(2 * max(map(abs, land.here)))
    one = measure_landscape(nn.Linear(2, 3), X.float(), measures="l1_path_norm", resolution=2)
    assert one.names == ("weight[0, 0]", "weight[2, 1]")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"resolution": 1}, "`resolution` must be at least 2, got 1"),
        ({"half_width": 0}, r"`half_width` must lie in \(0, inf\), got 0"),
        ({"weights": [("0.weight", (0, 0))]}, "`weights` must be two pairs"),
        (
            {"weights": [("0.wight", (0, 0)), ("2.weight", (0, 0))]},
            "must name trained parameters, got '0.wight'. Did you mean '0.we",
        ),
        (
            {"weights": [("0.weight", (0, 2)), ("2.weight", (0, 0))]},
            r"index `0.weight` of shape \(3, 2\), got \(0, 2\)",
        ),
        ({"weights": [("0.weight", (0,)), ("2.weight", (0, 0))]}, r"index `0.weight` of shape \(3, 2\), got \(0,\)"),
        ({"measures": ["no_norm"]}, "Unknown measure 'no_norm'"),
    ],
)
def test_landscape_refuses(net, X, params, message):
    with pytest.raises(ValueError, match=message):
        measure_landscape(net, X, **params)


def test_landscape_needs_two_weights(X):
    with pytest.raises(NotDefinedError, match="no two trained weights to vary. Name them with `weights`"):
        measure_landscape(nn.Flatten(), X, measures="margin")


def test_norm_geometry_draws_one_panel_per_measure(net, X):
    display = NormGeometryDisplay.from_estimator(net, X, loss="absolute", resolution=7)
    before = {name: values.copy() for name, values in display.landscape.values.items()}
    assert display.plot(levels=5) is display
    assert [ax.get_title() for ax in display.axes_] == ["fisher rao norm", "l2 path norm"]
    assert display.axes_[0].get_xlabel() == "0.weight[0, 0]" and display.axes_[0].get_ylabel() == "2.weight[0, 0]"
    for name, values in display.landscape.values.items():
        np.testing.assert_array_equal(values, before[name])
        levels = display.contours_[name].levels
        assert levels.min() <= values.max() and levels.max() >= values.min() and len(levels) > 2
        np.testing.assert_allclose(display.points_[name].get_xydata(), [display.landscape.here])
    assert display.figure_ is display.axes_[0].figure
    plt.close(display.figure_)


def test_norm_geometry_uses_given_axes_and_leaves_infinities_out():
    grid = np.linspace(-1, 1, 4)
    values = np.add.outer(grid**2, grid**2)
    values[0, 0] = np.inf
    display = NormGeometryDisplay(MeasureLandscape(("a", "b"), grid, grid, (0.0, 0.0), {"norm": values}))
    figure, ax = plt.subplots()
    assert display.plot(ax).axes_[0] is ax
    assert np.isfinite(display.contours_["norm"].levels).all()
    with pytest.raises(ValueError, match="`axes` must contain 1 Axes, got 2"):
        display.plot([ax, ax])
    with pytest.raises(ValueError, match="`levels` must be at least 1, got 0"):
        display.plot(levels=0)
    plt.close(figure)


def test_network_weights_are_matrices_and_kernels(fitted):
    matrices = [p.detach().numpy().ravel() for p in fitted.module_.parameters() if p.dim() > 1]
    np.testing.assert_array_equal(network_weights(fitted), np.concatenate(matrices))
    start = [v.numpy().ravel() for k, v in fitted.initial_state_.items() if v.dim() > 1]
    np.testing.assert_array_equal(network_weights(fitted, initial=True), np.concatenate(start))
    assert len(network_weights(NETWORKS["tied"]()[0])) == 16 + 12  # the tied matrix once
    normed = parametrizations.weight_norm(nn.Linear(3, 2))
    np.testing.assert_allclose(network_weights(normed), normed.weight.detach().numpy().ravel())
    with pytest.raises(NotDefinedError, match="known only for estimators of this package. Pass initial=False"):
        network_weights(normed, initial=True)
    iterating = parametrizations.spectral_norm(nn.Linear(3, 2)).train()
    before = {name: value.clone() for name, value in iterating.state_dict().items()}
    network_weights(iterating)
    assert all(torch.equal(value, before[name]) for name, value in iterating.state_dict().items())
    with pytest.raises(NotDefinedError, match="`ReLU` has no matrix or kernel"):
        network_weights(nn.ReLU())


def test_histograms_are_densities_on_common_bins(fitted):
    display = WeightHistogramDisplay.from_estimator(fitted).plot(bins=12, log=False)
    assert list(display.patches_) == ["initialization", "trained"]
    assert len(display.edges_) == 13 and display.ax_.figure is display.figure_
    for label, values in display.weights.items():
        density, _ = np.histogram(values, bins=display.edges_, density=True)
        heights = display.patches_[label].get_xy()[1:-1:2, 1]
        np.testing.assert_allclose(heights, density)
        shown = next(t.get_text() for t in display.ax_.get_legend().get_texts() if t.get_text().startswith(label))
        assert f"sd {values.std():.3g}" in shown
    plt.close(display.figure_)


def test_histogram_of_several_models_in_given_axes(fitted, net):
    figure, ax = plt.subplots()
    display = WeightHistogramDisplay.from_estimators({"one": fitted, "two": net}).plot(ax)
    assert display.ax_ is ax and ax.get_yscale() == "log" and list(display.patches_) == ["one", "two"]
    assert list(WeightHistogramDisplay.from_estimator(net, label="net", initial=False).weights) == ["net"]
    plt.close(figure)


def test_kurtosis_in_the_legend_is_that_of_the_distribution():
    flat, gaussian = np.tile([-1.0, 1.0], 50), np.random.default_rng(0).normal(size=20000)
    display = WeightHistogramDisplay({"coin": flat, "bell": gaussian, "constant": np.ones(3)}).plot()
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "kurtosis -2)" in texts[0] and "kurtosis 0)" in texts[2]
    assert abs(float(texts[1].split("kurtosis ")[1].rstrip(")"))) < 4 * np.sqrt(24 / 20000)  # its standard error
    plt.close(display.figure_)


@pytest.mark.parametrize("values", [[], [np.nan, 1.0]])
def test_histogram_refuses_what_are_no_numbers(values):
    with pytest.raises(ValueError, match="`weights` of 'net' must be finite numbers, at least one"):
        WeightHistogramDisplay({"net": values}).plot()
    with pytest.raises(ValueError, match="`weights` must contain at least one network's weights, got none"):
        WeightHistogramDisplay({}).plot()
    with pytest.raises(ValueError, match="`bins` must be at least 1, got 0"):
        WeightHistogramDisplay({"net": [1.0]}).plot(bins=0)
