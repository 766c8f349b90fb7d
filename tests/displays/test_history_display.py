"""HistoryDisplay: panels, lines and marks of trainings, and what it refuses."""

from __future__ import annotations

import copy
import math

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from sklearn.compose import TransformedTargetRegressor  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from skorch import NeuralNetClassifier  # noqa: E402
from torch import nn  # noqa: E402

from sklearn_capacity import (  # noqa: E402
    CapacityCallback,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
)
from sklearn_capacity.displays import HistoryDisplay  # noqa: E402

X, y = load_iris(return_X_y=True)
EPOCHS = [
    {"epoch": 1, "train_loss": 900.0, "valid_loss": 3.0, "valid_acc": 0.5, "margin": -1.0, "dur": 0.1, "ok": True},
    {"epoch": 2, "train_loss": 1.0, "valid_loss": 2.0, "valid_acc": 0.6, "margin": math.nan, "dur": 0.1, "ok": True},
    {"epoch": 3, "train_loss": 0.5, "valid_loss": 4.0, "valid_acc": 0.7, "margin": 2.0, "dur": 0.1, "ok": False},
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def legend(display):
    return [text.get_text() for legend in display.figure_.legends for text in legend.get_texts()]


def titles(display):
    return [ax.get_title() for ax in display.axes_]


def test_a_panel_for_each_quantity():
    given = copy.deepcopy(EPOCHS)
    display = HistoryDisplay(given).plot()
    assert titles(display) == ["loss", "accuracy", "margin"]
    loss, accuracy, margin = display.axes_
    assert legend(display) == ["training", "validation", "lowest validation loss"]
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert display.lines_[""]["train_loss"].get_xydata().tolist() == [[1, 900], [2, 1], [3, 0.5]]
    assert display.lines_[""]["margin"].get_xydata().tolist() == [[1, -1], [3, 2]]  # not measured in epoch 2
    assert [set(line.get_xdata()) for line in loss.lines if line.get_linestyle() == ":"] == [{2}]
    assert {ax.get_title(): ax.texts[0].get_text() for ax in display.axes_} == {
        "loss": r"$\leftarrow$ lower is better",
        "accuracy": r"higher is better $\rightarrow$",
        "margin": r"higher is better $\rightarrow$",
    }
    assert [ax.get_ylabel() for ax in display.axes_] == ["", "", "[logit]"]
    assert str(given) == str(EPOCHS)


def test_several_models_share_the_panels():
    other = [{"train_loss": 2.0, "train_penalty": 5.0}, {"train_loss": 1.0, "train_penalty": 4.0}]
    display = HistoryDisplay({"a": EPOCHS, "b": pd.DataFrame(other)}, columns=["train_loss", "train_penalty"]).plot()
    assert titles(display) == ["loss", "penalty"]
    assert {name: list(lines) for name, lines in display.lines_.items()} == {
        "a": ["train_loss"],
        "b": ["train_loss", "train_penalty"],
    }
    assert display.lines_["b"]["train_penalty"].get_xdata().tolist() == [1, 2]
    assert legend(display) == ["a", "b"]
    assert display.lines_["a"]["train_loss"].get_color() != display.lines_["b"]["train_loss"].get_color()


def test_a_training_with_everything():
    model = JacobianRegularizedClassifier(
        (4,), max_epochs=4, early_stopping=True, callbacks=[CapacityCallback(["accuracy", "margin"])], random_state=0
    )
    display = HistoryDisplay.from_estimator(make_pipeline(StandardScaler(), model).fit(X, y)).plot()
    assert titles(display) == ["loss", "penalty", "accuracy", "margin"]
    assert set(display.lines_[""]) == {"train_loss", "valid_loss", "train_penalty", "valid_acc", "accuracy", "margin"}
    assert display.lines_[""]["valid_acc"].get_linestyle() == "--" and display.axes_[2].lines[1].get_linestyle() == "-"


def test_a_callback_on_validation_data_shares_the_panel():
    rows = [{"margin": 1.0, "valid_margin": 0.5, "train_loss": 1.0}, {"margin": 2.0, "valid_margin": 0.7}]
    display = HistoryDisplay(rows).plot()
    assert titles(display) == ["loss", "margin"]
    assert display.axes_[1].texts[0].get_text() == r"higher is better $\rightarrow$"
    assert legend(display) == ["training", "validation"]


def search():
    return GridSearchCV(NetworkClassifier((2,), random_state=0), {"max_epochs": [1, 2]}, cv=2)


def skorch_net():
    return NeuralNetClassifier(nn.Linear(4, 3), criterion=nn.CrossEntropyLoss, max_epochs=2, verbose=0)


@pytest.mark.parametrize(
    "model",
    [
        search(),
        skorch_net(),
        make_pipeline(StandardScaler(), search()),
        TransformedTargetRegressor(NetworkRegressor((2,), max_epochs=2, random_state=0)),
    ],
    ids=["search", "skorch", "search in a pipeline", "transformed target"],
)
def test_models_that_contain_a_network(model):
    model.fit(X.astype(np.float32), y)
    display = HistoryDisplay.from_estimators({"it": model}).plot()
    assert "loss" in titles(display) and len(display.lines_["it"]["train_loss"].get_xdata()) >= 1


@pytest.mark.parametrize("model", [LogisticRegression(), search(), skorch_net(), nn.Linear(2, 2), 3, None])
def test_models_without_a_history(model):
    with pytest.raises(
        TypeError, match="`estimator` must be a fitted estimator of this package or a fitted skorch net"
    ):
        HistoryDisplay.from_estimator(model)


def test_given_axes_and_one_epoch():
    _, axes = plt.subplots(2)
    display = HistoryDisplay([{"train_loss": 1.0, "nu": 0.5}]).plot(axes)
    assert list(display.axes_) == list(axes)
    assert len(display.lines_[""]["nu"].get_xdata()) == 1 and display.lines_[""]["nu"].get_marker() != "None"
    assert HistoryDisplay({"a": EPOCHS}, columns=["valid_loss"]).plot(axes[0]).axes_[0].get_legend() is not None
    with pytest.raises(ValueError, match=r"`axes` must contain 2 Axes, one for each of \['loss', 'nu'\], got 1"):
        display.plot(axes[0])


def test_values_that_are_never_finite_leave_an_empty_panel():
    display = HistoryDisplay([{"train_loss": 1.0, "valid_loss": math.nan, "bound": math.inf}] * 2).plot()
    assert titles(display) == ["loss", "bound"]
    assert len(display.lines_[""]["bound"].get_xdata()) == 0


@pytest.mark.parametrize(
    ("histories", "error", "message"),
    [
        ({}, ValueError, "at least one history, got none"),
        ([], ValueError, "at least one epoch, got none"),
        ({"a": []}, ValueError, "at least one epoch, got none for 'a'"),
        ([1, 2], TypeError, "a list with one dict per epoch, or a DataFrame, got list"),
        (skorch_net(), TypeError, "got NeuralNetClassifier.*Use `from_estimator`"),
        ([{"name": "a", "epoch": 1}], ValueError, "a column of numbers per epoch to draw, got none"),
    ],
)
def test_what_is_no_history(histories, error, message):
    with pytest.raises(error, match=message):
        HistoryDisplay(histories).plot()


def test_unknown_columns():
    with pytest.raises(ValueError, match="No history has a column 'valid_los'. Did you mean 'valid_loss'"):
        HistoryDisplay(EPOCHS, columns=["valid_los"]).plot()
