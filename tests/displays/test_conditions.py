"""The display of the conditions C1 to C3."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sklearn_capacity import interaction_conditions
from sklearn_capacity.displays import InteractionConditionsDisplay

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def chain(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)
    )


X = torch.linspace(-1, 1, 12).reshape(4, 3)


def test_curves_are_the_distributions_of_the_table():
    display = InteractionConditionsDisplay.from_estimators({"a": chain(0), "b": chain(1)}, X, deltas=[0.1, 1.0])
    assert display.plot() is display and len(display.axes_) == 3
    table = interaction_conditions(chain(1), X, deltas=[0.1, 1.0])
    for condition in ("C1", "C2", "C3"):
        values = table["value"][table["condition"] == condition]
        line = display.lines_["b"][condition]
        np.testing.assert_array_equal(line.get_xdata(), np.sort(values[np.isfinite(values)]))
        expected = [np.mean(values <= value) for value in line.get_xdata()]
        ties = np.r_[np.diff(line.get_xdata()) > 0, True]  # at a tie the last step counts
        np.testing.assert_allclose(line.get_ydata()[ties], np.array(expected)[ties])
    labels = [text.get_text() for text in display.axes_[-1].get_legend().get_texts()]
    assert labels == ["a", "b"]


def test_infinite_constants_are_missing_from_a_curve():
    table = pd.DataFrame({"condition": ["C1", "C2", "C3", "C3", "C3", "C3"], "value": [1.0, 2, np.inf, 3, 1, np.inf]})
    before = table.copy()
    line = InteractionConditionsDisplay(table).plot().lines_[""]["C3"]
    np.testing.assert_array_equal(line.get_xdata(), [1, 3])
    np.testing.assert_array_equal(line.get_ydata(), [0.25, 0.5])
    pd.testing.assert_frame_equal(table, before)


def test_given_axes_are_used_and_one_network_has_no_legend():
    figure, axes = plt.subplots(3, 1)
    display = InteractionConditionsDisplay.from_estimator(chain(0), X).plot(axes)
    assert display.figure_ is figure and list(display.axes_) == list(axes)
    assert axes[-1].get_legend() is None
    assert InteractionConditionsDisplay.from_estimator(chain(0), X, name="a").plot().axes_[-1].get_legend()


@pytest.mark.parametrize(
    "tables, error, message",
    [
        ({}, ValueError, "`tables` must contain at least one network's table, got none."),
        (
            {"a": np.ones(3)},
            TypeError,
            "`tables` must contain results of `interaction_conditions`, got ndarray for 'a'.",
        ),
        (pd.DataFrame({"value": [1.0]}), TypeError, "got DataFrame for ''."),
        (
            pd.DataFrame({"condition": ["C1"], "value": [np.nan]}),
            ValueError,
            "`tables` must not contain NaN, got some for",
        ),
    ],
)
def test_other_tables_are_refused(tables, error, message):
    with pytest.raises(error, match=re.escape(message)):
        InteractionConditionsDisplay(tables).plot()


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="`axes` must contain 3 Axes, one for each of C1, C2 and C3, got 1."):
        InteractionConditionsDisplay.from_estimator(chain(0), X).plot(plt.subplots()[1])
    with pytest.raises(TypeError, match="`estimators` must be a dict of name to model, got Sequential."):
        InteractionConditionsDisplay.from_estimators(chain(0), X)


def test_a_name_is_text():
    with pytest.raises(TypeError, match="`name` must be text, got int"):
        InteractionConditionsDisplay.from_estimator(nn.Linear(2, 2), [[0.0, 1.0]], name=3)
