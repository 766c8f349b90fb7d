"""Every caller of scikit-learn that expects one number raises a clear error for several scores; others accept them."""

from __future__ import annotations

import pickle

import matplotlib
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFECV, SequentialFeatureSelector
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifierCV
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    LearningCurveDisplay,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    ValidationCurveDisplay,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import scale

from sklearn_capacity import CapacityScorer
from sklearn_capacity.scoring.scores import Scores

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

CURE = "Set `refit_measure` to one of 'accuracy', 'neg_spectral_norm'"
SENTENCE = f"One number is required here, but the scorer returns 2 scores. {CURE}"
GRID = {"C": [0.1, 1.0]}


def model():
    return LogisticRegression(max_iter=200)


def boosting(scoring, **options):
    return HistGradientBoostingClassifier(scoring=scoring, early_stopping=True, max_iter=3, **options)


def scorer(**options):
    return CapacityScorer(["accuracy", "spectral_norm"], **options)


def shuffled(iris):
    order = np.random.default_rng(0).permutation(len(iris[0]))
    return scale(np.asarray(iris[0])[order]), np.asarray(iris[1])[order]


WANT_ONE = {
    "halving": lambda s, X, y, n: HalvingGridSearchCV(model(), GRID, scoring=s, cv=2, n_jobs=n).fit(X, y),
    "halving at random": lambda s, X, y, n: HalvingRandomSearchCV(
        model(), GRID, n_candidates=2, scoring=s, cv=2, n_jobs=n, random_state=0
    ).fit(X, y),
    "halving, no training scores": lambda s, X, y, n: HalvingGridSearchCV(
        model(), GRID, scoring=s, cv=2, n_jobs=n, return_train_score=False, refit=False
    ).fit(X, y),
    "learning curve": lambda s, X, y, n: learning_curve(model(), X, y, scoring=s, cv=2, train_sizes=[30, 60], n_jobs=n),
    "incremental": lambda s, X, y, n: learning_curve(
        GaussianNB(), X, y, scoring=s, cv=2, train_sizes=[30, 60], n_jobs=n, exploit_incremental_learning=True
    ),
    "validation curve": lambda s, X, y, n: validation_curve(
        model(), X, y, scoring=s, cv=2, param_name="C", param_range=[0.1, 1.0], n_jobs=n
    ),
    "cross_val_score": lambda s, X, y, n: cross_val_score(model(), X, y, scoring=s, cv=2, n_jobs=n),
    "permutation test": lambda s, X, y, n: permutation_test_score(
        model(), X, y, scoring=s, cv=2, n_permutations=2, n_jobs=n
    ),
    "sequential": lambda s, X, y, n: SequentialFeatureSelector(
        model(), n_features_to_select=2, scoring=s, cv=2, n_jobs=n
    ).fit(X, y),
    "recursive": lambda s, X, y, n: RFECV(model(), scoring=s, cv=2, n_jobs=n).fit(X, y),
    "learning curve display": lambda s, X, y, n: LearningCurveDisplay.from_estimator(
        model(), X, y, scoring=s, cv=2, train_sizes=[30, 60], n_jobs=n
    ),
    "validation curve display": lambda s, X, y, n: ValidationCurveDisplay.from_estimator(
        model(), X, y, scoring=s, cv=2, param_name="C", param_range=[0.1, 1.0], n_jobs=n
    ),
    "logistic": lambda s, X, y, n: LogisticRegressionCV(Cs=[0.1, 1.0], scoring=s, cv=2, n_jobs=n).fit(X, y),
}
SEARCHES = {
    "no choice": lambda s, X, y, n: GridSearchCV(model(), GRID, scoring=s, cv=2, n_jobs=n).fit(X, y),
    "no such score": lambda s, X, y, n: GridSearchCV(model(), GRID, scoring=s, cv=2, n_jobs=n, refit="f1").fit(X, y),
    "no choice, at random": lambda s, X, y, n: RandomizedSearchCV(
        model(), GRID, n_iter=2, scoring=s, cv=2, n_jobs=n, random_state=0
    ).fit(X, y),
    "ridge by a search": lambda s, X, y, n: RidgeClassifierCV(scoring=s, cv=2).fit(X, y),
}
ONLY_HERE = {
    "boosting": lambda s, X, y: boosting(s).fit(X, y),
    "boosting, compared": lambda s, X, y: boosting(s, n_iter_no_change=1).fit(X, y),
    "ridge": lambda s, X, y: RidgeClassifierCV(scoring=s).fit(X, y),
    "score of a search": lambda s, X, y: (
        GridSearchCV(model(), GRID, scoring=s, cv=2, refit=lambda results: 0).fit(X, y).score(X, y)
    ),
    "score of a logistic path": lambda s, X, y: (
        LogisticRegressionCV(Cs=[1.0], cv=2, max_iter=200).fit(X, y).set_params(scoring=s).score(X, y)
    ),
}


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("name", WANT_ONE)
def test_callers_of_one_number_name_the_cure(name, n_jobs, iris):
    with pytest.raises(TypeError, match=SENTENCE):
        WANT_ONE[name](scorer(), *shuffled(iris), n_jobs)


@pytest.mark.parametrize("name", ["halving", "learning curve", "validation curve", "cross_val_score", "sequential"])
def test_and_take_the_one_that_is_chosen(name, iris):
    WANT_ONE[name](scorer(refit_measure="neg_spectral_norm"), *shuffled(iris), 1)


def test_a_display_of_curves_names_the_score(iris):
    display = LearningCurveDisplay.from_estimator(
        model(), *shuffled(iris), scoring=CapacityScorer("margin"), cv=2, train_sizes=[30, 60]
    )
    assert display.ax_.get_ylabel() == "Margin"
    assert CapacityScorer(["margin"]).__name__ == "capacity" and CapacityScorer.__name__ == "CapacityScorer"


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_have_to_know_by_which_they_choose(name, n_jobs, iris):
    with pytest.raises(TypeError, match=f"^{SENTENCE}, or `refit` of the search.$"):
        SEARCHES[name](scorer(), *shuffled(iris), n_jobs)


@pytest.mark.parametrize("name", ONLY_HERE)
def test_callers_without_workers(name, iris):
    with pytest.raises(TypeError, match=f"^{SENTENCE}.$"):
        ONLY_HERE[name](scorer(on_error="nan"), *shuffled(iris))


def test_a_threshold_is_not_tuned_by_capacity(iris):
    X, y = shuffled(iris)
    for scoring in (scorer(), CapacityScorer("margin")):
        with pytest.raises(AttributeError, match="give TunedThresholdClassifierCV a scorer of scikit-learn in place"):
            TunedThresholdClassifierCV(model(), scoring=scoring, cv=2).fit(X, y == 0)


INNER = {
    "curve": lambda search, X, y: learning_curve(search, X, y, cv=2, train_sizes=[40, 70], error_score="raise"),
    "search": lambda search, X, y: GridSearchCV(search, {"refit": ["accuracy"]}, cv=2, error_score="raise").fit(X, y),
    "halving": lambda search, X, y: HalvingGridSearchCV(
        search, {"n_jobs": [None, 1]}, cv=2, error_score="raise", min_resources=60, random_state=0
    ).fit(X, y),
}


@pytest.mark.parametrize("name", INNER)
def test_a_search_that_chooses_may_be_inside_of_a_caller_of_one_number(name, iris):
    INNER[name](GridSearchCV(model(), GRID, scoring=scorer(), refit="accuracy", cv=2), *shuffled(iris))


def test_one_of_the_scores_is_a_number_for_every_caller(iris):
    several = scorer()
    boosting(lambda estimator, X, y: several(estimator, X, y)["accuracy"]).fit(*shuffled(iris))


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_searches_and_cross_validation_take_them_all(n_jobs, train, iris):
    X, y = shuffled(iris)
    kept = {"cv": 2, "n_jobs": n_jobs, "return_train_score": train}
    for search in (
        GridSearchCV(model(), GRID, scoring=scorer(), refit="accuracy", **kept),
        RandomizedSearchCV(model(), GRID, n_iter=2, scoring=scorer(), refit=False, **kept),
    ):
        results = search.fit(X, y).cv_results_
        assert (results["mean_test_neg_spectral_norm"] < 0).all() and (results["mean_test_accuracy"] > 0.7).all()
        assert ("mean_train_neg_spectral_norm" in results) == train
    folds = cross_validate(model(), X, y, scoring=scorer(), **kept)
    assert folds["test_accuracy"].dtype == float and folds["test_accuracy"].shape == (2,)
    one = cross_validate(model(), X, y, scoring=scorer(refit_measure="neg_spectral_norm"), cv=2)
    assert (folds["test_neg_spectral_norm"] == one["test_score"]).all()


def test_a_failed_fit_gives_nan_for_every_score(iris):
    grid = {"C": [-1.0, 1.0]}  # the first is refused by the fit
    search = GridSearchCV(model(), grid, scoring=scorer(), refit=False, cv=2).fit(*shuffled(iris))
    assert np.isnan(search.cv_results_["mean_test_accuracy"]).tolist() == [True, False]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_permutation_importance_takes_them_all(n_jobs, iris):
    X, y = shuffled(iris)
    fitted = model().fit(X, y)
    result = permutation_importance(
        fitted, X, y, scoring=CapacityScorer(["accuracy", "margin"]), n_repeats=2, random_state=0, n_jobs=n_jobs
    )
    one = permutation_importance(fitted, X, y, scoring="accuracy", n_repeats=2, random_state=0)
    assert (result["accuracy"].importances == one.importances).all()
    assert result["margin"].importances.shape == (4, 2)


def test_scores_are_a_dict_otherwise(iris):
    X, y = shuffled(iris)
    scores = scorer()(model().fit(X, y), X, y)
    assert isinstance(scores, dict) and repr(scores) == repr(dict(scores))
    again = pickle.loads(pickle.dumps(scores))
    assert type(again) is Scores and again == scores == dict(scores)
    for misuse in (float, abs, sum, np.mean, lambda s: s > 0, lambda s: 2 * s, lambda s: np.mean([s, s])):
        with pytest.raises(TypeError, match=SENTENCE):
            misuse(scores if misuse is not sum else [scores])
    assert cross_val_predict(model(), X, y, cv=2).shape == y.shape  # scores nothing
