"""Every function and display that takes a plain module and labels takes the labels' order as well."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity import bicriteria_curve
from sklearn_capacity.displays import (
    BicriteriaDisplay,
    HessianSpectrumDisplay,
    HiddenMarginDisplay,
    MarginDisplay,
    NormGeometryDisplay,
)

matplotlib.use("Agg")
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
X = torch.randn(20, 4)
INDEX = np.arange(20) % 3
CLASSES = np.array(["wolf", "cat", "ant"])  # not in alphabetical order
LABELS = CLASSES[INDEX]

CALLS = {
    "bicriteria_curve": lambda y, **k: bicriteria_curve(MODULE, X, y, [0.01], n_draws=4, random_state=0, **k),
    "BicriteriaDisplay": lambda y, **k: BicriteriaDisplay.from_estimator(
        MODULE, X, y, [0.01], n_draws=4, random_state=0, **k
    ).curves[""],
    "MarginDisplay": lambda y, **k: MarginDisplay.from_estimator(MODULE, X, y, **k).margins[""],
    "MarginDisplay of several": lambda y, **k: MarginDisplay.from_estimators({"a": (MODULE, X, y)}, **k).margins["a"],
    "HiddenMarginDisplay": lambda y, **k: np.array(
        list(HiddenMarginDisplay.from_estimator(MODULE, X, y, **k).margins.values())
    ),
    "HessianSpectrumDisplay": lambda y, **k: HessianSpectrumDisplay.from_estimator(MODULE, X, y, **k).nodes,
    "NormGeometryDisplay": lambda y, **k: NormGeometryDisplay.from_estimator(
        MODULE, X, y, measures=["fisher_rao_norm"], resolution=3, **k
    ).landscape.values["fisher_rao_norm"],
}


@pytest.mark.parametrize("call", CALLS)
def test_the_order_of_the_outputs_can_be_given(call):
    loss = {} if "Margin" in call else {"loss": "cross_entropy"}
    expected = CALLS[call](INDEX, **loss)
    np.testing.assert_array_equal(CALLS[call](LABELS, classes=CLASSES, **loss), expected)
    assert not np.array_equal(CALLS[call](INDEX, classes=[2, 0, 1], **loss), expected)  # it is not passed over
    with pytest.raises(ValueError, match="classes"):
        CALLS[call](LABELS, **loss)
