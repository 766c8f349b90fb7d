"""The estimators inside scikit-learn's tools, and pickled."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score, learning_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_capacity import JacobianRegularizedClassifier, JacobianRegularizedRegressor, NetworkClassifier
from sklearn_capacity.training.devices import worker_number


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True, as_frame=True)
    return X, load_iris().target_names[y]


def network(**params) -> JacobianRegularizedClassifier:
    return JacobianRegularizedClassifier((20,), **{"max_epochs": 20, "random_state": 0, **params})


def test_grid_search_in_processes_equals_the_serial_one(iris):
    X, y = iris
    pipe = make_pipeline(StandardScaler(), network(dropout=0.2))
    grid = {"jacobianregularizedclassifier__jacobian_penalty": [0.0, 0.1]}
    serial, parallel = (
        GridSearchCV(pipe, grid, cv=3, return_train_score=True, n_jobs=n_jobs).fit(X, y) for n_jobs in (1, 2)
    )
    for key in ("mean_test_score", "mean_train_score"):
        np.testing.assert_array_equal(serial.cv_results_[key], parallel.cv_results_[key])
    assert parallel.best_score_ > 0.85
    assert set(parallel.predict(X)) == {"setosa", "versicolor", "virginica"}
    again = pickle.loads(pickle.dumps(parallel))
    np.testing.assert_array_equal(again.predict_proba(X), serial.predict_proba(X))
    numbers = Parallel(n_jobs=2)(delayed(worker_number)() for _ in range(2))
    assert worker_number() == 0 and all(number >= 0 for number in numbers)


def test_halving_and_curves_and_scores(iris):
    X, y = iris
    grid = {"jacobian_penalty": [0.0, 0.01, 0.1]}
    search = HalvingGridSearchCV(network(max_epochs=60), grid, cv=3, random_state=0, min_resources=50)
    assert search.fit(X, y).best_score_ > 0.85
    by_epochs = HalvingGridSearchCV(
        network(), {"jacobian_penalty": [0.0, 0.1]}, resource="max_epochs", max_resources=20, min_resources=5, factor=2
    ).fit(X, y)
    assert by_epochs.best_estimator_.n_iter_ == 10
    sizes, train, test = learning_curve(network(), X, y, train_sizes=[0.5, 1.0], cv=3, shuffle=True, random_state=0)
    assert train.shape == test.shape == (2, 3) and np.isfinite(test).all()
    assert cross_val_score(network(max_epochs=40), X, y, scoring="roc_auc_ovr", cv=3).min() > 0.9


def test_binary_problem_with_roc_auc_calibration_and_voting():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)[:200]
    y = y[:200]
    assert cross_val_score(network(max_epochs=5), X, y, scoring="roc_auc", cv=3).min() > 0.95
    calibrated = CalibratedClassifierCV(network(max_epochs=5), cv=3).fit(X, y, sample_weight=np.ones(200))
    assert calibrated.score(X, y) > 0.9
    voting = VotingClassifier(
        [("net", network(max_epochs=5)), ("linear", LogisticRegression())], voting="soft", n_jobs=2
    ).fit(X, y)
    assert voting.score(X, y) > 0.9


def test_a_diverging_candidate_gets_the_error_score(iris):
    X, y = iris
    grid = {"learning_rate": [0.01, 1e200]}
    with pytest.warns(Warning, match="Training diverged in epoch"):
        search = GridSearchCV(network(optimizer="sgd", max_epochs=10), grid, cv=2).fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"][1])
    assert search.best_params_ == {"learning_rate": 0.01}


def test_transformed_targets_and_several_outputs():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    inner = JacobianRegularizedRegressor((20,), max_epochs=20, random_state=0)
    model = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, y)
    assert model.score(X, y) > 0.5
    several = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, np.c_[y, -2 * y])
    assert several.predict(X).shape == (442, 2) and several.score(X, np.c_[y, -2 * y]) > 0.5


def test_metadata_routing_of_sample_weights(iris):
    X, y = iris
    weight = np.where(y == "setosa", 1.0, 2.0)
    with config_context(enable_metadata_routing=True):
        model = network(max_epochs=3).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        search = GridSearchCV(model, {"jacobian_penalty": [0.1]}, cv=2).fit(X, y, sample_weight=weight)
    alone = network(max_epochs=3, jacobian_penalty=0.1).fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(search.predict_proba(X), alone.predict_proba(X))


def test_clone_of_a_fitted_estimator_is_unfitted_with_equal_parameters(iris):
    X, y = iris
    model = JacobianRegularizedClassifier(module=nn.Linear(4, 3), jacobian_norm="projection").fit(X, y)
    copy = clone(model)
    assert not hasattr(copy, "net_") and copy.jacobian_norm == "projection"
    assert {k: v for k, v in copy.get_params().items() if k != "module"} == {
        k: v for k, v in model.get_params().items() if k != "module"
    }


def test_local_classes_and_lambdas_pickle(iris):
    X, y = iris

    class Local(nn.Module):
        def __init__(self, n_features, n_outputs):
            super().__init__()
            self.linear = nn.Linear(n_features, n_outputs)

        def forward(self, X):
            return self.linear(X)

    for module in (Local, lambda n_outputs: nn.Linear(4, n_outputs), Local(4, 3)):
        model = NetworkClassifier(
            module=module, learning_rate_schedule=lambda epoch: 1.0, max_epochs=2, random_state=0
        ).fit(X, y)
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        assert again.net_.module_ is again.module_
        again.partial_fit(X, y)
        assert again.n_iter_ == 3
        for key, value in model.initial_state_.items():
            assert torch.equal(value, again.initial_state_[key])


def test_a_pickle_holds_no_data(iris):
    X, y = iris
    small = NetworkClassifier((5,), max_epochs=2, early_stopping=True).fit(X, y)
    X, y = np.tile(X.to_numpy(), (200, 1)), np.tile(y, 200)
    large = NetworkClassifier((5,), max_epochs=2, early_stopping=True).fit(X, y)
    assert len(pickle.dumps(large)) < 1.2 * len(pickle.dumps(small))


def test_modules_of_the_main_script_travel_by_value(iris, monkeypatch):
    X, y = iris

    class Mine(nn.Linear):
        def __init__(self, n_features, n_outputs):
            super().__init__(n_features, n_outputs)

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "Mine", Mine, raising=False)
    model = NetworkClassifier(module=Mine, max_epochs=2).fit(X, y)
    data = pickle.dumps(model)
    monkeypatch.delattr(main, "Mine")  # as in another process, whose main script is another
    np.testing.assert_array_equal(pickle.loads(data).predict_proba(X), model.predict_proba(X))
