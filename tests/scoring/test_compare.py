"""Several models of different kinds in one table, which ranks and figures accept unchanged."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, get_scorer, r2_score, roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    Measure,
    NetworkClassifier,
    NetworkRegressor,
    compare_capacity,
    measure_capacity,
)
from sklearn_capacity.displays import CapacityComparisonDisplay, CapacityGapDisplay
from sklearn_capacity.model_selection import capacity_table, rank_measures

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, y = load_iris(return_X_y=True)
X = X.astype("float32")
train, test = (X[::2], y[::2]), (X[1::2], y[1::2])
PARTS = {"X_test": test[0], "y_test": test[1]}
SPREAD = Measure("spread", lambda module, X, y: module(X).std(), lower_is_better=False, cost="forward")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net = NeuralNetClassifier(copy.deepcopy(module), criterion=nn.CrossEntropyLoss, max_epochs=3, verbose=0, lr=0.1)
    return {
        "ours": NetworkClassifier((6,), max_epochs=5, random_state=0).fit(*train),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(*train),
        "mlp": MLPClassifier((5,), max_iter=20, random_state=0).fit(*train),
        "skorch": net.fit(*train),
        "module": module,
    }


def test_one_row_per_model_with_the_values_of_each_call(models):
    measures = ["accuracy", "margin", SPREAD, "frobenius_norm"]
    table = compare_capacity(models, *train, measures, **PARTS)
    assert list(table.index) == list(models) and table.index.name == "model"
    columns = ["train_accuracy", "test_accuracy", "gap_accuracy", "margin", "spread", "frobenius_norm"]
    assert list(table.columns) == columns and np.isfinite(table.to_numpy()).all()
    for label, model in models.items():
        values = measure_capacity(model, *train, ["margin", SPREAD, "frobenius_norm"])
        assert table.loc[label, list(values)].to_dict() == values
        if not isinstance(model, nn.Module):
            assert table.loc[label, "test_accuracy"] == get_scorer("accuracy")(model, *test)
    with torch.no_grad():
        predicted = [models["module"](torch.from_numpy(part[0])).argmax(1).numpy() for part in (train, test)]
    expected = [accuracy_score(part[1], result) for part, result in zip((train, test), predicted, strict=True)]
    assert list(table.loc["module", ["train_accuracy", "test_accuracy"]]) == expected
    np.testing.assert_allclose(table["gap_accuracy"], table["train_accuracy"] - table["test_accuracy"])
    assert table.attrs["better"] == {"margin": "higher", "spread": "higher", "frobenius_norm": "lower"}


def test_two_jobs_give_the_same_table(models):
    measures = {
        "accuracy": "accuracy",
        "own": lambda network, batch: len(batch.X),
        "draws": ("expected_sharpness", {"n_draws": 4}),
    }
    one, two = (compare_capacity(models, *train, measures, **PARTS, n_jobs=n_jobs) for n_jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.filterwarnings("ignore:The margin at percentile")
def test_lists_defaults_and_progress(models, capsys):
    table = compare_capacity(list(models.values())[:2], *train, **PARTS, verbose=1)
    assert list(table.index) == [0, 1] and list(table.columns[:3]) == [
        "train_accuracy",
        "test_accuracy",
        "gap_accuracy",
    ]
    assert not table.isna().all().any() and "2/2" in capsys.readouterr().err
    without = compare_capacity(list(models.values())[:2], *train, ["margin"])
    assert list(without.columns) == ["margin"]
    named = compare_capacity(models, *train, ["accuracy"])
    assert list(named.columns) == ["train_accuracy"]


def test_regressors_are_scored_too():
    target = X[:, :1] @ np.ones((1, 1)) - X[:, 1:2]
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    models = {
        "ours": NetworkRegressor((4,), max_epochs=3, random_state=0).fit(X, target[:, 0]),
        "ridge": Ridge().fit(X, target[:, 0]),
        "module": module,
    }
    table = compare_capacity(models, X, target[:, 0], ["frobenius_norm"], X_test=X[:50], y_test=target[:50, 0])
    with torch.no_grad():
        expected = r2_score(target[:, 0], module(torch.from_numpy(X)).numpy()[:, 0])
    assert table.loc["module", "train_r2"] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(table.to_numpy()).all()


def test_probabilities_and_labels_of_a_plain_module(models):
    names = np.array(["setosa", "aster", "rose"])
    module = {"module": models["module"]}
    table = compare_capacity(module, train[0], names[train[1]], ["roc_auc_ovr", "accuracy"], classes=names)
    with torch.no_grad():
        p = models["module"](torch.from_numpy(train[0])).double().softmax(1).numpy()
    assert table.loc["module", "train_roc_auc_ovr"] == pytest.approx(roc_auc_score(train[1], p, multi_class="ovr"))
    as_tensors = compare_capacity(module, torch.from_numpy(train[0]), torch.from_numpy(train[1]), ["accuracy"])
    assert as_tensors.loc["module", "train_accuracy"] == table.loc["module", "train_accuracy"]


def test_a_scorer_takes_names_of_scores_for_a_plain_module(models):
    scores = CapacityScorer(["accuracy", "margin", "neg_log_loss"])(models["module"], *train)
    table = compare_capacity({"module": models["module"]}, *train, ["accuracy", "neg_log_loss"])
    assert scores["accuracy"] == table.loc["module", "train_accuracy"]
    assert scores["neg_log_loss"] == pytest.approx(table.loc["module", "train_neg_log_loss"])
    assert CapacityScorer("accuracy")(models["module"], *train) == scores["accuracy"]


def test_initial_states_by_label(models):
    torch.manual_seed(1)  # not the weights of the fixture, which every test starts at
    before = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    name = "distance_from_initialization"
    pair = {label: models[label] for label in ("ours", "module")}
    table = compare_capacity(pair, *train, [name], initial_states={"module": before})
    assert table.loc["ours", name] == measure_capacity(pair["ours"], *train, name)[name]
    expected = measure_capacity(pair["module"], *train, name, initial_state=before)[name]
    assert table.loc["module", name] == expected > 0
    as_list = compare_capacity(list(pair.values()), *train, [name], initial_states=[None, before.state_dict()])
    assert list(as_list[name]) == list(table[name])
    with pytest.raises(ValueError, match=r"the labels of `models` \('ours', 'module'\), got 'mod'"):
        compare_capacity(pair, *train, [name], initial_states={"mod": before})
    with pytest.raises(ValueError, match="Model 'module': `initial_state` must match .* `0.weight`"):
        state = {**before.state_dict(), "0.weight": torch.ones(2)}
        compare_capacity(pair, *train, [name], initial_states={"module": state})


def test_what_is_not_defined_is_nan_with_the_reason(models):
    with pytest.warns(CapacityWarning, match="No value of 'l2_path_norm' for model 'module': .*tanh") as shown:
        table = compare_capacity({k: models[k] for k in ("ours", "module")}, *train, ["l2_path_norm", "margin"])
    assert [warning.filename for warning in shown] == [__file__]
    assert np.isnan(table.loc["module", "l2_path_norm"]) and np.isfinite(table.loc["ours", "l2_path_norm"])
    with pytest.warns(CapacityWarning, match="No value of 'own' for model 'ours': ZeroDivisionError"):
        table = compare_capacity({"ours": models["ours"]}, *train, {"own": lambda n, b: 1 / 0, "margin": "margin"})
    assert np.isfinite(table.loc["ours", "margin"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": {"a": 3}}, TypeError, "Model 'a': `model` must contain a network"),
        ({"models": {"a": LogisticRegression()}}, NotFittedError, "Model 'a': .* not fitted"),
        ({"models": []}, ValueError, "`models` must hold at least one trained model"),
        ({"models": nn.Linear(4, 3)}, TypeError, "`models` must be a list, or a dict with a label for each entry, got"),
        ({"y_test": None}, ValueError, "`X_test` and `y_test` must be given together"),
        ({"X": None, "y": None}, ValueError, "`X` must be given, got None: scores need"),
        ({"measures": ["margn"]}, ValueError, "Did you mean 'margin'"),
        ({"measures": ["margin"], "log": True}, ValueError, "`log` must be False"),
        ({"loss": "huber"}, ValueError, "Model 0: `loss` must be one of"),
    ],
)
def test_refusals(change, error, message, models):
    options = {"models": [models["ours"]], "X": train[0], "y": train[1], "measures": ["margin"], **PARTS, **change}
    with pytest.raises(error, match=message):
        compare_capacity(**options)


# -- what takes the table ----------------------------------------------------------------------------------------------


def test_ranks_know_the_directions(models):
    table = compare_capacity(models, *train, ["accuracy", "margin", SPREAD, "frobenius_norm"], **PARTS)
    ranks = rank_measures(table).set_index("measure")
    assert set(ranks.index) == {"margin", "spread", "frobenius_norm"}
    assert ranks["better"].to_dict() == {"margin": "higher", "spread": "higher", "frobenius_norm": "lower"}
    width = table.assign(width=[6, 1, 5, 5, 5])
    assert rank_measures(width, "gap_accuracy", ["width"]).set_index("measure").loc["spread", "better"] == "higher"


def test_directions_of_measures_given_as_objects():
    table = pd.DataFrame({"gap": [0.1, 0.2, 0.3], "spread": [3.0, 2.0, 1.0], "path_norm": [1.0, 2.0, 3.0]})
    assert rank_measures(table, "gap").set_index("measure").loc["spread", "tau"] == -1
    for measures in ([SPREAD, "path_norm"], {"spread": SPREAD, "path_norm": "l2_path_norm"}):
        ranks = rank_measures(table, "gap", measures=measures).set_index("measure")
        assert ranks.loc["spread", "tau"] == ranks.loc["path_norm", "tau"] == 1
    assert rank_measures(table, "gap", measures=SPREAD)["tau"].tolist() == [1]
    assert rank_measures(table, "gap", measures="path_norm")["tau"].tolist() == [1]
    results = {"params": [{"a": 1}], "mean_test_spread": [2.0], "mean_train_spread": [3.0],
               "mean_test_neg_low": [-1.0], "mean_train_neg_low": [-4.0]}  # fmt: skip
    measures = {"spread": SPREAD, "low": lambda network, batch: 4.0}
    result = capacity_table(results, measures)
    assert result.loc[0, ["spread", "low"]].tolist() == [3.0, 4.0]
    assert result.attrs["better"] == {"spread": "higher", "low": "lower"}
    assert "test_spread" in capacity_table(results)


def test_heat_map_of_ranks(models):
    table = compare_capacity(models, *train, ["accuracy", "margin", "frobenius_norm"], **PARTS)
    table.loc["mlp", "margin"] = np.nan
    before = table.copy()
    display = CapacityComparisonDisplay(table).plot()
    pd.testing.assert_frame_equal(table, before)
    ranks = display.ranks_
    assert list(ranks.columns) == list(table.columns) and list(ranks.index) == list(models)
    assert ranks["margin"].idxmin() == table["margin"].idxmax()
    assert ranks["frobenius_norm"].idxmin() == table["frobenius_norm"].idxmin()
    assert ranks["gap_accuracy"].idxmin() == table["gap_accuracy"].idxmin()
    assert ranks["test_accuracy"].idxmin() == table["test_accuracy"].idxmax()
    assert np.isnan(ranks.loc["mlp", "margin"])
    shown = [text.get_text() for text in display.texts_.ravel()]
    assert len(shown) == table.size and f"{table.iloc[0, 3]:.3g}" in shown
    again = CapacityComparisonDisplay.from_estimators(models, *train, ["margin"], **PARTS)
    assert list(again.table.columns[-1:]) == ["margin"]
    with pytest.raises(TypeError, match="`table` must be a DataFrame"):
        CapacityComparisonDisplay([1.0])


def test_scatter_against_the_gap(models):
    display = CapacityGapDisplay.from_estimators(models, *train, ["margin", "frobenius_norm"], **PARTS).plot()
    assert set(display.points_) == {"margin", "frobenius_norm"}
    assert all(len(points.get_offsets()) == len(models) for points in display.points_.values())
