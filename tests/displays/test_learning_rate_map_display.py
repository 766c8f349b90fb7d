"""The learning-rate map as a picture."""

import matplotlib
import numpy as np
import pytest

from sklearn_capacity.displays.learning_rate_map import LearningRateMapDisplay
from sklearn_capacity.theory import LearningRateMap

matplotlib.use("Agg")


@pytest.fixture
def data():
    losses = np.array([[[0.1, 0.1], [1.0, 3.0], [np.inf, 2.0]], [[0.01, 0.01], [np.inf, np.inf], [np.inf, np.inf]]])
    return LearningRateMap(
        "width", np.array([50.0, 100.0]), np.array([1e-3, 1e-2, 1e-1]), losses, np.array([0.05, np.inf]), 0.9
    )


def test_artists_show_the_data(data):
    import matplotlib.pyplot as plt

    before = data.losses.copy()
    display = LearningRateMapDisplay(data)
    assert display.plot() is display
    shown = display.image_.get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isinf(data.mean_losses.T))
    np.testing.assert_allclose(shown.compressed(), np.log10(data.mean_losses.T[np.isfinite(data.mean_losses.T)]))
    borders = display.image_.get_coordinates()
    np.testing.assert_allclose(borders[0, :, 0], [25, 75, 125])
    np.testing.assert_allclose(borders[:, 0, 1], 10.0 ** np.array([-3.5, -2.5, -1.5, -0.5]))
    np.testing.assert_allclose(display.line_.get_ydata(), [0.05, np.nan])
    np.testing.assert_allclose(display.line_.get_xdata(), [50, 100])
    assert display.ax_.get_yscale() == "log" and display.figure_ is display.ax_.figure
    np.testing.assert_array_equal(data.losses, before)
    plt.close(display.figure_)


@pytest.mark.parametrize(("cmap", "message"), [("viridi", "'viridi' is not a valid value"), (0.5, "`cmap` must be")])
def test_a_colormap_that_is_none(data, cmap, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LearningRateMapDisplay(data).plot(cmap=cmap)


def test_given_axes_are_used(data):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    display = LearningRateMapDisplay(data).plot(ax=ax)
    assert display.ax_ is ax and display.figure_ is figure
    figure.canvas.draw()
    plt.close(figure)


def test_from_data_trains_the_map():
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 6)), rng.standard_normal(20)
    display = LearningRateMapDisplay.from_data(X, y, [1e-3], [5], n_steps=2, n_trials=1)
    assert display.learning_rate_map.losses.shape == (1, 1, 1)
    display.plot()  # a single cell has a size too
    assert (np.ptp(display.image_.get_coordinates(), axis=(0, 1)) > 0).all()
    plt.close(display.figure_)
