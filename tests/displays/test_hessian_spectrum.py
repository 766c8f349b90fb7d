"""HessianSpectrumDisplay: the density of all eigenvalues, exact and by random vectors, and the artists."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from torch import nn  # noqa: E402

from networks import NETWORKS, make  # noqa: E402
from reference_hessian import dense_hessian  # noqa: E402
from sklearn_capacity import NotDefinedError  # noqa: E402
from sklearn_capacity.displays import HessianSpectrumDisplay  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def wide():
    """Too many parameters for all eigenvalues."""
    return make(lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)), (6,))


def exact_density(module, X, y, t, width):
    values = np.linalg.eigvalsh(dense_hessian(module, X, y).numpy())
    return np.exp(-(((t[:, None] - values) / width) ** 2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))


def test_small_networks_exactly():
    module, X, y = NETWORKS["mlp"]()
    display = HessianSpectrumDisplay.from_estimator(module, X, y).plot(width=0.01)
    assert np.shape(display.nodes) == (1, 79) and display.band_ is None
    t, density, error = display.density(width=0.01)
    assert density == pytest.approx(exact_density(module, X, y, t, 0.01), rel=1e-6, abs=1e-9)
    assert not error.any()


def test_draws_are_covered_and_the_mean_is_the_trace():
    module, X, y = wide()
    display = HessianSpectrumDisplay.from_estimator(module, X, y, n_draws=40, n_steps=60, random_state=1)
    assert np.shape(display.nodes) == (40, 60)
    t, density, error = display.density(width=0.05)
    gap = np.abs(density - exact_density(module, X, y, t, 0.05))
    assert (gap <= 4 * error + 1e-3 * density.max()).mean() > 0.99
    assert np.trapezoid(density, t) == pytest.approx(1, rel=1e-3)
    means = (display.nodes * display.weights).sum(1)
    mean_eigenvalue = float(dense_hessian(module, X, y).diag().mean())
    assert abs(means.mean() - mean_eigenvalue) < 4 * means.std(ddof=1) / np.sqrt(40)


def test_what_is_drawn():
    _, ax = plt.subplots()
    nodes = np.array([[0.0, 1.0], [0.1, 0.9]])
    display = HessianSpectrumDisplay(nodes, [[0.5, 0.5], [0.8, 0.2]]).plot(ax, label="trained")
    assert display.ax_ is ax and display.figure_ is ax.figure and ax.get_yscale() == "log"
    assert display.line_.get_label() == "trained" and display.band_ is not None
    assert nodes.tolist() == [[0.0, 1.0], [0.1, 0.9]]
    assert HessianSpectrumDisplay([[2.0]], [[1.0]]).plot().line_.get_xdata().mean() == pytest.approx(2)


def test_batches_and_seeds():
    module, X, y = wide()
    options = {"n_draws": 2, "n_steps": 5, "random_state": 3}
    first = HessianSpectrumDisplay.from_estimator(module, X, y, **options)
    again = HessianSpectrumDisplay.from_estimator(module, X, y, batch_size=2, **options)
    assert again.nodes == pytest.approx(first.nodes, rel=1e-9)


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ([1.0], [1.0], r"one shape \(n_draws, n_nodes\), got shapes \(1,\) and \(1,\)"),
        ([[1.0, 2.0]], [[1.0]], r"got shapes \(1, 2\) and \(1, 1\)"),
        ([[np.nan]], [[1.0]], "must be finite"),
        ([[1.0, 2.0]], [[0.5, 0.6]], "sum to 1"),
        ([[1.0, 2.0]], [[-0.5, 1.5]], "at least 0"),
    ],
)
def test_what_is_no_quadrature_is_refused(nodes, weights, message):
    with pytest.raises(ValueError, match=message):
        HessianSpectrumDisplay(nodes, weights).plot()


def test_parameters_out_of_range():
    module, X, y = wide()
    with pytest.raises(ValueError, match="`n_draws` must be at least 1, got 0"):
        HessianSpectrumDisplay.from_estimator(module, X, y, n_draws=0)
    with pytest.raises(ValueError, match=r"`width` must lie in \(0, inf\), got 0"):
        HessianSpectrumDisplay([[0.0, 1.0]], [[0.5, 0.5]]).density(width=0.0)
    with pytest.raises(NotDefinedError, match="This measure needs labels|needs a loss"):
        HessianSpectrumDisplay.from_estimator(module, X, None)
    assert torch.is_grad_enabled()


def test_a_number_beyond_floats_is_refused():
    with pytest.raises(ValueError, match="`weights` must be an array of real numbers, got list: int too large"):
        HessianSpectrumDisplay([[1.0]], [[10**400]]).density()


@pytest.mark.parametrize(
    "nodes", [torch.ones(1, 2)._neg_view(), -torch.ones(1, 2, requires_grad=True), -torch.ones(1, 2).bfloat16()]
)
def test_tensors_are_read_as_arrays(nodes):
    weights = torch.full((1, 2), 0.5)
    expected = HessianSpectrumDisplay([[-1.0, -1.0]], [[0.5, 0.5]]).density()
    for values, reference in zip(HessianSpectrumDisplay(nodes, weights).density(), expected, strict=True):
        assert values.tolist() == reference.tolist()


@pytest.mark.parametrize("nodes", [torch.nested.nested_tensor([torch.ones(2)]), torch.ones(1, 2, device="meta")])
def test_tensors_without_an_array_are_refused(nodes):
    with pytest.raises(TypeError, match="`nodes` must be a dense real tensor with values"):
        HessianSpectrumDisplay(nodes, [[0.5, 0.5]]).density()
