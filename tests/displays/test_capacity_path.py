"""The path of a search: the chosen candidate, the better direction, and axes that suit the values."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier
from sklearn_capacity.displays import CapacityPathDisplay

matplotlib.use("Agg")
LOWER, HIGHER = r"$\leftarrow$ lower is better", r"higher is better $\rightarrow$"
TABLE = pd.DataFrame(
    {
        "alpha": [0.0, 0.1, 1.0],
        "test_f1": [0.8, 0.9, 0.7],
        "l2_path_norm": [900.0, 4.0, 3.0],
        "margin": [-1.0, 1.0, 2.0],
    }
)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_measures_say_which_direction_is_better_and_other_columns_do_not():
    display = CapacityPathDisplay(TABLE.assign(mine=1.0), strength="alpha", score="f1").plot()
    assert [texts(ax) for ax in display.axes_] == [[], [LOWER], [HIGHER], []]


def test_a_user_s_measure_has_the_direction_of_the_table():
    table = TABLE.assign(mine=1.0)
    table.attrs["better"] = {"mine": "higher"}
    display = CapacityPathDisplay(table, strength="alpha", score="f1", capacities=["mine"]).plot()
    assert texts(display.axes_[1]) == [HIGHER]


def test_axes_name_units():
    table = TABLE.assign(jacobian_frobenius=1.0, parameter_count=9, mine=1.0)
    display = CapacityPathDisplay(table, strength="alpha", score="f1").plot()
    units = {"margin": "[logit]", "jacobian_frobenius": "[(logit / input)²]"}
    for ax, name in zip(display.axes_[1:], ["l2_path_norm", "margin", *table.columns[4:]], strict=True):
        assert " ".join(ax.get_ylabel().split()) == f"{name} {units.get(name, '')}".replace("_", " ").strip()


def test_wide_positive_ranges_are_logarithmic():
    display = CapacityPathDisplay(TABLE, strength="alpha", score="f1").plot()
    assert [ax.get_yscale() for ax in display.axes_] == ["linear", "log", "linear"]


def test_words_are_not_broken():
    display = CapacityPathDisplay(TABLE, strength="alpha", score="f1").plot()
    assert display.axes_[1].get_ylabel().split() == ["l2", "path", "norm"]
    assert all(len(line) <= 14 for line in display.axes_[1].get_ylabel().splitlines())


@pytest.mark.parametrize("chosen", [0.1, 0.0])
def test_the_choice_is_marked_in_every_panel(chosen):
    display = CapacityPathDisplay(TABLE, strength="alpha", score="f1", chosen=chosen).plot()
    for ax in display.axes_:
        assert any(line.get_label() == "chosen" and set(line.get_xdata()) == {chosen} for line in ax.lines)
    assert "chosen" in [text.get_text() for text in display.axes_[0].get_legend().get_texts()]
    assert "chosen" not in CapacityPathDisplay(TABLE, strength="alpha", score="f1").plot().lines_


def test_a_search_brings_its_choice():
    X, y = load_iris(return_X_y=True)
    network = JacobianRegularizedClassifier((4,), max_epochs=2, random_state=0)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), network),
        {"jacobianregularizedclassifier__jacobian_penalty": [0.0, 0.1]},
        scoring=CapacityScorer(["accuracy", "l2_path_norm"]),
        refit="accuracy",
        return_train_score=True,
        cv=2,
    ).fit(X, y)
    (best,) = search.best_params_.values()
    assert CapacityPathDisplay.from_search(search).chosen == best
    assert CapacityPathDisplay.from_search(search, chosen=0.1).chosen == 0.1


def test_a_strength_without_numbers_is_refused():
    table = pd.DataFrame({"hidden_layer_sizes": [(5,), (5, 5)], "test_accuracy": [0.5, 0.6], "margin": [1.0, 2.0]})
    with pytest.raises(
        ValueError, match=r"`strength` must be a column of numbers, and 'hidden_layer_sizes' contains \(5,\)"
    ):
        CapacityPathDisplay(table, strength="hidden_layer_sizes").plot()
