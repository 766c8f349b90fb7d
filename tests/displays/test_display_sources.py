"""Models, searches and axes that displays refuse."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from sklearn_capacity import compare_capacity
from sklearn_capacity.displays import (
    BicriteriaDisplay,
    CapacityComparisonDisplay,
    CapacityGapDisplay,
    CapacityPathDisplay,
    FisherSpectrumDisplay,
    HessianSpectrumDisplay,
    InteractionConditionsDisplay,
    MarginDisplay,
    WeightHistogramDisplay,
)

CONDITIONS = pd.DataFrame({"condition": ["C1", "C2", "C3"], "value": [0.5, 1.0, 2.0]})
TABLE = compare_capacity([nn.Linear(2, 2)], measures=["frobenius_norm"])


@pytest.mark.parametrize("display", [CapacityGapDisplay, CapacityPathDisplay])
@pytest.mark.parametrize("search", [3, None, pd.DataFrame(), [1], np])
def test_a_search_must_have_been_fitted(display, search):
    with pytest.raises(TypeError, match="`search` must be a fitted search such as GridSearchCV, got"):
        display.from_search(search)


@pytest.mark.parametrize("display", [BicriteriaDisplay, MarginDisplay])
@pytest.mark.parametrize("models", [3, [nn.Linear(2, 2)], {"a": nn.Linear(2, 2)}, {"a": (nn.Linear(2, 2), np.eye(2))}])
def test_models_must_come_with_their_data(display, models):
    with pytest.raises(TypeError, match=r"`models` must be a dict of name to \(model, X, y\), got"):
        display.from_models(models)


NO_AXES = [3, "text", {1}, np.ones(2), [], [[3]], -torch.ones(2, requires_grad=True), torch.ones(2)._neg_view()]
NO_AXES += [torch.nested.nested_tensor([torch.ones(2)]), list(torch.ones(2)), 10**5000]


@pytest.mark.parametrize("ax", NO_AXES, ids=lambda ax: type(ax).__name__)
@pytest.mark.parametrize(
    "display", [CapacityComparisonDisplay(TABLE), HessianSpectrumDisplay([[1.0, 2.0]], [[0.5, 0.5]])]
)
def test_axes_must_be_matplotlibs(display, ax):
    with pytest.raises(TypeError, match="`ax` must be matplotlib's Axes, or None"):
        display.plot(ax)


@pytest.mark.parametrize("axes", NO_AXES, ids=lambda ax: type(ax).__name__)
def test_several_axes_must_be_matplotlibs(axes):
    with pytest.raises(TypeError, match="`axes` must be matplotlib's Axes, or None"):
        InteractionConditionsDisplay({"a": CONDITIONS}).plot(axes)


def test_axes_may_be_nested():
    _, axes = plt.subplots(1, 3)
    for given in (axes, axes[None], list(axes), [list(axes[:2]), [axes[2]]]):
        assert InteractionConditionsDisplay({"a": CONDITIONS}).plot(given).axes_.tolist() == list(axes)
    with pytest.raises(TypeError, match="`ax` must be one of matplotlib's Axes"):
        HessianSpectrumDisplay([[1.0, 2.0]], [[0.5, 0.5]]).plot(axes)


def test_flags_must_be_true_or_false():
    with pytest.raises(TypeError, match="`log` must be True or False"):
        WeightHistogramDisplay({"a": np.arange(3.0)}).plot(log="yes")
    with pytest.raises(TypeError, match="`initial` must be True or False"):
        WeightHistogramDisplay.from_estimator(nn.Linear(2, 2), initial=1)


NAMED = {
    MarginDisplay: lambda name: MarginDisplay.from_estimator(nn.Linear(2, 2), np.eye(2), [0, 1], name=name),
    BicriteriaDisplay: lambda name: BicriteriaDisplay.from_estimator(nn.Linear(2, 2), np.eye(2), [0, 1], name=name),
    WeightHistogramDisplay: lambda name: WeightHistogramDisplay.from_estimator(
        nn.Linear(2, 2), label=name, initial=False
    ),
}


@pytest.mark.parametrize("name", [3, torch.ones(2), np.ones(2), ["a"], RandomForestClassifier()])
@pytest.mark.parametrize("display", NAMED)
def test_a_name_must_be_text(display, name):
    with pytest.raises(TypeError, match=f"`(name|label)` must be text, got {type(name).__name__}"):
        NAMED[display](name)


@pytest.mark.parametrize(
    "display", [MarginDisplay({0: [1.0]}), FisherSpectrumDisplay({0: [1.0]}), BicriteriaDisplay({0: [[1.0, 1.0]]})]
)
def test_a_key_need_not_be_text_to_be_in_the_legend(display):
    shown = display.plot().ax_.get_legend()
    assert [text.get_text() for text in shown.get_texts()] == ["0"]
