"""Distributions of margins."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from sklearn_capacity import measure_capacity
from sklearn_capacity.displays import MarginDisplay


def test_curve_is_the_distribution_and_the_data_stay():
    margins = np.array([3.0, -1.0, 2.0, 2.5])
    display = MarginDisplay(margins.copy(), percentile=50).plot()
    x, share = display.lines_[""].get_data()
    assert x.tolist() == [-1.0, 2.0, 2.5, 3.0] and share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert (display.margins == margins).all()
    assert display.ax_.figure is display.figure_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_margins_of_models_are_those_that_are_measured():
    X, y = load_iris(return_X_y=True)
    models = {"weak": LogisticRegression(C=0.01).fit(X, y), "strong": LogisticRegression(C=10).fit(X, y)}
    display = MarginDisplay.from_estimators({name: (model, X, y) for name, model in models.items()})
    for name, model in models.items():
        assert display.margins[name].min() == measure_capacity(model, X, y, "min_margin")["min_margin"]
    alone = MarginDisplay.from_estimator(models["weak"], X, y, name="weak")
    assert (alone.margins["weak"] == display.margins["weak"]).all()
    assert set(display.plot().lines_) == set(models)


@pytest.mark.parametrize("margins", [np.array([]), np.array([1.0, np.nan]), {}])
def test_margins_that_cannot_be_drawn(margins):
    with pytest.raises(ValueError, match="`margins` must contain"):
        MarginDisplay(margins).plot()


def test_percentile_is_checked():
    with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got 150"):
        MarginDisplay(np.ones(3), percentile=150).plot()
