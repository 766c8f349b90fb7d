"""CapacityScorer in scikit-learn's searches, and measure_capacity on what it must refuse."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score, cross_validate, learning_curve
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NotDefinedError,
    capacity_report,
    list_measures,
    measure_capacity,
)
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.model_selection import capacity_refit

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# -- as a scorer -------------------------------------------------------------------------------------------------------


def test_one_name_gives_a_float_and_several_a_dict(model, iris):
    assert type(CapacityScorer("margin")(model, *iris)) is float
    scores = CapacityScorer(["accuracy", "l2_path_norm", "margin"])(model, *iris)
    assert list(scores) == ["accuracy", "neg_l2_path_norm", "margin"]
    assert scores["accuracy"] == model.score(*iris)
    values = measure_capacity(model, *iris, ["l2_path_norm", "margin"])
    assert scores["neg_l2_path_norm"] == -values["l2_path_norm"] and scores["margin"] == values["margin"]


def test_labels_parameters_and_logarithms(model, iris):
    scorer = CapacityScorer({"p1": ("path_norm", {"p": 1}), "auc": "roc_auc_ovr"}, log=True)
    scores = scorer(model, *iris)
    assert scores["neg_p1"] == pytest.approx(-np.log(measure_capacity(model, *iris, "l1_path_norm")["l1_path_norm"]))
    assert 0.5 < scores["auc"] <= 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search(model, iris, n_jobs):
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm"])
    grid = {"networkclassifier__weight_decay": [0.0, 0.1]}
    search = GridSearchCV(model, grid, scoring=scorer, refit="accuracy", cv=2, return_train_score=True, n_jobs=n_jobs)
    search.fit(*iris)
    assert np.isfinite(search.cv_results_["mean_train_neg_fisher_rao_norm"]).all()
    again = pickle.loads(pickle.dumps(search))
    assert (again.predict(iris[0]) == search.predict(iris[0])).all()
    assert measure_capacity(search, *iris, "margin") == measure_capacity(search.best_estimator_, *iris, "margin")


def test_searches_that_need_one_number(model, iris):
    scorer = CapacityScorer(["accuracy", "margin"], refit_measure="margin")
    assert cross_val_score(model, *iris, scoring=scorer, cv=2).shape == (2,)
    grid = {"networkclassifier__weight_decay": [0.0, 0.1]}
    halving = HalvingGridSearchCV(model, grid, scoring=scorer, cv=2, random_state=0).fit(*iris)
    assert np.isfinite(halving.best_score_)
    order = np.random.default_rng(0).permutation(len(iris[0]))
    X, y = iris[0][order], iris[1][order]
    _, train, _ = learning_curve(model, X, y, scoring=CapacityScorer("spectral_norm"), cv=2, train_sizes=[30, 60])
    assert np.isfinite(train).all() and (train < 0).all()


def test_capacity_refit_in_a_search_and_around_it(iris):
    X, y = iris
    refit = capacity_refit("accuracy", "neg_l2_path_norm", rule=1000.0)
    search = GridSearchCV(
        NetworkClassifier((4,), max_epochs=3, random_state=0),
        {"weight_decay": [0.0, 0.1, 1.0]},
        scoring=CapacityScorer(["accuracy", "l2_path_norm"]),
        refit=refit,
        cv=2,
        return_train_score=True,
    )
    fitted = pickle.loads(pickle.dumps(clone(search).fit(X, y)))
    assert fitted.best_index_ == fitted.cv_results_["mean_train_neg_l2_path_norm"].argmax()
    assert fitted.score(X, y) == fitted.best_estimator_.score(X, y)
    assert np.isfinite(cross_val_score(search, X, y, cv=2, error_score="raise")).all()
    assert refit == clone(search).refit != capacity_refit("accuracy", "margin")


def test_clone_repr_and_nested_parameters():
    scorer = CapacityScorer(["accuracy", "margin"], max_samples=7)
    assert clone(scorer).get_params() == scorer.get_params()
    assert "max_samples=7" in repr(scorer)
    search = GridSearchCV(NetworkClassifier(), {}, scoring=scorer, refit=False)
    search.set_params(scoring__max_samples=9)
    assert scorer.max_samples == 9
    assert pickle.loads(pickle.dumps(scorer)).get_params() == scorer.get_params()


def test_a_failure_gives_nan_for_every_declared_name(iris):
    class Fails(nn.Module):
        def __init__(self, n_features, n_outputs):
            super().__init__()
            self.fc = nn.Linear(n_features, n_outputs)

        def forward(self, x):
            return torch.tanh(self.fc(x))

    fitted = NetworkClassifier(module=Fails, max_epochs=1, random_state=0).fit(*iris)
    scorer = CapacityScorer(["accuracy", "path_norm", "l1_path_norm", "margin"])
    with pytest.warns(CapacityWarning, match="No score for neg_path_norm, neg_l1_path_norm"):
        scores = scorer(fitted, *iris)
    assert np.isnan(scores["neg_path_norm"]) and np.isfinite(scores["margin"]) and np.isfinite(scores["accuracy"])
    with pytest.raises(ValueError, match="A path norm is not defined"):
        scorer.set_params(on_error="raise")(fitted, *iris)
    with pytest.warns(CapacityWarning, match="not fitted yet") as shown:
        scores = CapacityScorer(["spectral_norm", "margin"])(NetworkClassifier(), *iris)
    assert [warning.filename for warning in shown] == [__file__]  # the user's line, not one of ours
    assert list(scores) == ["neg_spectral_norm", "margin"] and all(np.isnan(list(scores.values())))


@pytest.mark.parametrize("on_error", ["nan", "raise"])
def test_the_default_measures_are_those_that_apply(iris, on_error, recwarn):
    fitted = NetworkClassifier(max_epochs=30, learning_rate=0.03, random_state=0).fit(*iris)
    scores = CapacityScorer("cheap", on_error=on_error)(fitted, *iris)
    assert np.isnan(scores["neg_data_path_norm"]) and np.isfinite(scores["neg_l2_path_norm"])  # it has biases
    assert not [str(w.message) for w in recwarn if "No score" in str(w.message)]


def test_a_failing_scorer_does_not_stop_cross_validation(iris):
    X, y = iris
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm"])
    base = linear_model.RidgeClassifier()  # refused by name in every fold
    with pytest.warns(CapacityWarning):
        result = cross_validate(base, X, y, scoring=scorer, cv=2)
    assert np.isnan(result["test_neg_fisher_rao_norm"]).all() and np.isfinite(result["test_accuracy"]).all()


def test_sample_weight_goes_to_sklearn_scores_only(model, iris):
    X, y = iris
    weight = (y == "setosa").astype(float)
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm"])
    weighted, plain = scorer(model, X, y, sample_weight=weight), scorer(model, X, y)
    assert weighted["accuracy"] == model.score(X[y == "setosa"], y[y == "setosa"])
    assert weighted["neg_fisher_rao_norm"] == plain["neg_fisher_rao_norm"]
    network = NetworkClassifier((4,), max_epochs=1)
    result = cross_validate(network, X, y, scoring={"own": CapacityScorer("margin")}, cv=2)
    assert np.isfinite(result["test_own"]).all()


def test_metadata_routing(iris):
    import sklearn

    X, y = iris
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = CapacityScorer(["accuracy", "margin"]).set_score_request(sample_weight=True)
        network = NetworkClassifier((4,), max_epochs=2, random_state=0).set_fit_request(sample_weight=False)
        search = GridSearchCV(network, {"weight_decay": [0.0]}, scoring=scorer, refit="accuracy", cv=2)
        search.fit(X, y, sample_weight=np.ones(len(y)))
    assert np.isfinite(search.best_score_)


def test_sklearn_scores_share_the_forward_pass(iris, monkeypatch):
    estimator = NetworkClassifier((8,), max_epochs=2, random_state=0).fit(*iris)
    monkeypatch.setattr(type(estimator), "predict", lambda *args: pytest.fail("a second forward pass"))
    scores = CapacityScorer(["accuracy", "margin"])(estimator, *iris)
    assert 0 < scores["accuracy"] <= 1


def test_no_measure_at_all_leaves_sklearn_scorers(model, iris):
    assert CapacityScorer("accuracy")(model, *iris) == model.score(*iris)


# -- as a transformer --------------------------------------------------------------------------------------------------


def test_transformer_of_models(model, iris):
    models = [model, linear_model.LogisticRegression().fit(*iris)]
    scorer = CapacityScorer(["spectral_norm", "margin"]).fit(*iris).set_output(transform="pandas")
    table = scorer.transform(models)
    assert isinstance(table, pd.DataFrame) and list(table.columns) == ["spectral_norm", "margin"]
    for row, m in zip(table.to_numpy(), models, strict=True):
        assert row.tolist() == list(measure_capacity(m, *iris, ["spectral_norm", "margin"]).values())
    with pytest.raises(NotFittedError):
        CapacityScorer("margin").transform(models)
    with pytest.raises(ValueError, match="must be capacity measures to transform"):
        CapacityScorer(["accuracy"]).fit(*iris)


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn_capacity._validation.CapacityWarning")
def test_report_and_list(model, iris):
    report = capacity_report(model, *iris, "all", per_layer=True, per_class=True)
    assert set(report["measure"]) >= set(MEASURES)
    missing = report["value"].isna() & (report["layer"] == "")
    assert (report.loc[missing, "reason"] != "").all()
    assert {f"class {c}" for c in ("setosa", "versicolor", "virginica")} <= set(report["layer"])
    assert set(list_measures()["name"]) == set(MEASURES)


@pytest.mark.filterwarnings("ignore::sklearn_capacity._validation.CapacityWarning")
def test_cheap_leaves_out_what_does_not_apply(model, iris):
    values = measure_capacity(model, *iris, "cheap")
    assert "margin" in values and all(MEASURES[name].cheap for name in values)
    weights_only = measure_capacity(model, measures="cheap")
    assert "margin" not in weights_only and "spectral_norm" in weights_only


def test_subsample_is_seeded(model, iris):
    a = measure_capacity(model, *iris, "margin", max_samples=20, random_state=1)
    assert a == measure_capacity(model, *iris, "margin", max_samples=20, random_state=1)
    assert a != measure_capacity(model, *iris, "margin", max_samples=20, random_state=2)


def test_out_of_memory_halves_the_batch(model, iris, monkeypatch):
    from sklearn_capacity.graph import Network

    expected = measure_capacity(model, *iris, "margin")
    forward, sizes = Network.forward, []

    def limited(self, X):
        sizes.append(len(X))
        if len(X) > 40:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, X)

    monkeypatch.setattr(Network, "forward", limited)
    assert measure_capacity(model, *iris, "margin") == pytest.approx(expected)
    assert max(sizes) == 150 and set(sizes) >= {150, 75, 37}


def test_strength_lowers_the_jacobian(iris):
    X, y = iris
    values = []
    for strength in (0.0, 0.01, 0.1, 1.0):
        est = JacobianRegularizedClassifier((16,), jacobian_penalty=strength, max_epochs=30, random_state=0).fit(X, y)
        values.append(measure_capacity(est, X, y, "jacobian_frobenius")["jacobian_frobenius"])
    assert values == sorted(values, reverse=True)


# -- losses, failures, and objects that are not models -----------------------------------------------------------------


def small_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, X = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(30, 4)
    return module, X, torch.arange(30) % 3


FISHER = [name for name, measure in MEASURES.items() if "loss" in measure.parameters]


@pytest.mark.parametrize("name", FISHER)
def test_the_loss_of_the_call_is_the_default_of_every_measure(name):
    module, X, y = small_network()
    separate = {loss: measure_capacity(module, X, y, {"m": (name, {"loss": loss})})["m"] for loss in LOSSES}
    assert separate["squared"] != pytest.approx(separate["cross_entropy"])
    assert measure_capacity(module, X, y, name, loss="cross_entropy")[name] == separate["cross_entropy"]
    assert measure_capacity(module, X, y, name)[name] == separate["squared"]
    request = {"m": (name, {"loss": "squared"})}
    assert measure_capacity(module, X, y, request, loss="cross_entropy")["m"] == separate["squared"]
    sign = -1 if MEASURES[name].lower_is_better else 1
    scorer = CapacityScorer(name, loss="cross_entropy")
    assert scorer(module, X, y) == sign * separate["cross_entropy"]
    assert scorer.fit(X, y).transform([module])[0, 0] == separate["cross_entropy"]
    with pytest.raises(NotDefinedError, match='under loss="squared" or "cross_entropy", got "absolute". Give the'):
        measure_capacity(module, X, torch.zeros(30, 3), name, loss="absolute")


LOSSES = ("squared", "cross_entropy")


def test_the_report_says_which_loss_was_used():
    module, X, y = small_network()
    names = {"t": "fisher_trace", "own": ("fisher_trace", {"loss": "squared"}), "fr": "fisher_rao_norm", "m": "margin"}
    losses = lambda **call: dict(capacity_report(module, X, y, names, **call).set_index("measure")["loss"])  # noqa: E731
    assert losses() == {"t": "squared", "own": "squared", "fr": "cross_entropy", "m": ""}
    assert losses(loss="cross_entropy") == {"t": "cross_entropy", "own": "squared", "fr": "cross_entropy", "m": ""}


@pytest.mark.filterwarnings("always::sklearn_capacity.CapacityWarning")  # these data are not separated
@pytest.mark.parametrize("error", [KeyError("batch_norm"), RuntimeError("no"), ValueError("odd"), ZeroDivisionError()])
def test_an_unexpected_exception_costs_one_row(monkeypatch, error):
    def fail(network, batch):
        raise error

    broken = dataclasses.replace(MEASURES["parameter_norm"], function=fail)
    monkeypatch.setitem(MEASURES, "parameter_norm", broken)
    module, X, y = small_network()
    reason = f"{type(error).__name__}: {error}"
    for measures in ("cheap", ["parameter_norm", "margin"]):
        report = capacity_report(module, X, y, measures).set_index("measure")
        assert report.loc["parameter_norm", "reason"] == reason and np.isnan(report.loc["parameter_norm", "value"])
        assert report.loc["margin", "reason"] == "" and np.isfinite(report.loc["margin", "value"])
    with pytest.warns(CapacityWarning, match="No value of 'parameter_norm': " + type(error).__name__):
        values = measure_capacity(module, X, y, "cheap")
    assert "parameter_norm" not in values and "margin" in values
    with pytest.raises(type(error)):
        measure_capacity(module, X, y, ["margin", "parameter_norm"])


def test_a_wrong_parameter_is_an_error_in_a_report_too():
    module, X, y = small_network()
    with pytest.raises(ValueError, match="`percentile` must lie in"):
        capacity_report(module, X, y, {"m": ("margin", {"percentile": 150})})


@pytest.mark.parametrize("bad", [{"a": 1}, "abc", 3.0, [1, 2], np.zeros((3, 2)), None, [nn.Linear(4, 3), "abc"]])
def test_only_models_are_transformed(bad):
    _, X, y = small_network()
    with pytest.raises(TypeError, match="`model` must contain a network"):
        CapacityScorer("margin").fit(X, y).transform(bad)


def test_a_transform_needs_a_model_that_is_fitted():
    _, X, y = small_network()
    with pytest.raises(NotFittedError):
        CapacityScorer("margin").fit(X, y).transform([linear_model.LogisticRegression()])
    with pytest.raises(ValueError, match="`X` must hold at least one fitted model, got none"):
        CapacityScorer("margin").fit(X, y).transform([])
