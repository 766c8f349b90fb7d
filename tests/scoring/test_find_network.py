"""measure_capacity on the models of scikit-learn and skorch: converted exactly, or refused by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn import linear_model, svm
from sklearn.base import is_classifier
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sklearn_capacity import NetworkClassifier, NetworkRegressor, NotDefinedError, measure_capacity
from sklearn_capacity.measures import MEASURES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_sklearn_mlp_has_its_own_margins(iris, n_classes, activation):
    X, y = iris[0][: 50 * n_classes], iris[1][: 50 * n_classes]
    mlp = MLPClassifier((5, 4), activation=activation, max_iter=30, random_state=0).fit(X, y)
    log_p = mlp.predict_log_proba(X)
    index = np.searchsorted(mlp.classes_, y)
    known = log_p[np.arange(len(y)), index]
    log_p[np.arange(len(y)), index] = -np.inf
    got = measure_capacity(mlp, X, y, "min_margin")["min_margin"]
    assert got == pytest.approx((known - log_p.max(1)).min(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [linear_model.LogisticRegression(), linear_model.SGDClassifier(random_state=0), svm.LinearSVC()],
    ids=lambda e: type(e).__name__,
)
def test_binary_linear_models_are_two_opposite_rows(iris, estimator):
    X, y = iris[0][:100], iris[1][:100]
    estimator.fit(X, y)
    w = np.linalg.norm(estimator.coef_)
    values = measure_capacity(estimator, X, y, ["spectral_norm", "jacobian_spectral", "min_margin"])
    assert values["spectral_norm"] == pytest.approx(w / np.sqrt(2))
    z = estimator.decision_function(X) * np.where(y == estimator.classes_[1], 1, -1)
    assert values["min_margin"] == pytest.approx(z.min())


def test_regressors(iris):
    X, y = iris[0][:, :3], iris[0][:, 3]
    perceptron = MLPRegressor(hidden_layer_sizes=(4,), max_iter=50)
    for estimator in (linear_model.LinearRegression(), linear_model.Ridge(), perceptron):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(X, y)
        value = measure_capacity(estimator, X, y, "fisher_rao_norm")["fisher_rao_norm"]
        direct = measure_capacity(estimator, X, y, "fisher_rao_norm", loss="squared")["fisher_rao_norm"]
        assert value == direct > 0
    line = linear_model.LinearRegression().fit(X, y)
    u = line.predict(X)  # J theta . theta of a linear model with bias is the prediction
    expected = np.sqrt(np.mean(((line.predict(X) - y) * u) ** 2))
    assert measure_capacity(line, X, y, "fisher_rao_norm")["fisher_rao_norm"] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:No value of")  # a linear model has a bias
@pytest.mark.parametrize(
    ("estimator", "known"),
    [
        (linear_model.SGDClassifier(random_state=0), "hinge"),
        (linear_model.SGDClassifier(loss="squared_hinge", random_state=0), None),
        (linear_model.SGDClassifier(loss="log_loss", random_state=0), "cross_entropy"),
        (linear_model.Perceptron(), None),
        (svm.LinearSVC(), None),
        (linear_model.SGDRegressor(random_state=0), "squared"),
        (linear_model.SGDRegressor(loss="huber", random_state=0), None),
        (svm.LinearSVR(random_state=0), "absolute"),
        (svm.LinearSVR(epsilon=0.1, random_state=0), None),
        (svm.LinearSVR(loss="squared_epsilon_insensitive", random_state=0), None),
    ],
    ids=repr,
)
def test_an_unknown_loss_has_to_be_named(iris, estimator, known):
    X, y = iris[0][:100], iris[1][:100]
    classifies = is_classifier(estimator)
    y = y if classifies else X[:, 3]
    estimator.fit(X, y)
    named = known or ("cross_entropy" if classifies else "squared")
    expected = measure_capacity(estimator, X, y, "fisher_rao_norm", loss=named)
    if known is not None:
        assert measure_capacity(estimator, X, y, "fisher_rao_norm") == expected
        return
    with pytest.raises(NotDefinedError, match="is not defined for the model's own loss, '.*'. Set `loss`"):
        measure_capacity(estimator, X, y, "fisher_rao_norm")
    cheap, all_cheap = (measure_capacity(estimator, X, y, "cheap", loss=loss) for loss in (None, named))
    assert all_cheap.keys() - cheap.keys() == {name for name in all_cheap if "loss" in MEASURES[name].needs}
    same = [name for name in cheap if "loss" not in MEASURES[name].parameters]  # others follow the loss that is named
    assert [cheap[name] for name in same] == [all_cheap[name] for name in same]


def test_transformed_target(iris):
    X, y = iris[0][:, :3], iris[0][:, 3]
    inner = NetworkRegressor((4,), max_epochs=3, random_state=0)
    whole = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, y)
    scaled = whole.transformer_.transform(y[:, None])[:, 0]
    got = measure_capacity(whole, X, y, "fisher_rao_norm")
    assert got == measure_capacity(whole.regressor_, X, scaled, "fisher_rao_norm")


def test_skorch_nets(iris):
    X, y = iris[0].astype("float32"), np.searchsorted(["setosa", "versicolor", "virginica"], iris[1])
    torch.manual_seed(0)
    logits = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    options = {"max_epochs": 1, "verbose": 0, "train_split": None}
    ce = NeuralNetClassifier(logits, criterion=nn.CrossEntropyLoss, **options).fit(X, y)
    nll = NeuralNetClassifier(nn.Sequential(logits, nn.Softmax(1)), lr=0.0, **options).fit(X, y)
    plain = ce.module_
    expected = measure_capacity(plain, X, y, ["margin", "fisher_rao_norm"])
    assert measure_capacity(ce, X, y, ["margin", "fisher_rao_norm"]) == expected
    same = NeuralNetClassifier(nn.Sequential(plain, nn.Softmax(1)), **options).initialize()
    got = measure_capacity(same, X, y, ["margin", "fisher_rao_norm"])
    assert got == pytest.approx(expected, rel=1e-5)  # log softmax differs by a constant per sample
    assert np.isfinite(measure_capacity(nll, X, y, "margin")["margin"])
    two = y < 2
    one = NeuralNetBinaryClassifier(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), **options).fit(X[two], y[two] * 1.0)
    w = one.module_[0].weight.detach().double().norm().item()
    got = measure_capacity(one, X[two], y[two], "spectral_norm")["spectral_norm"]
    assert got == pytest.approx(w / 2**0.5, rel=1e-6)
    regressor = NeuralNetRegressor(nn.Linear(4, 1), **options).fit(X, X[:, :1])
    assert measure_capacity(regressor, X, X[:, :1], "fisher_rao_norm")["fisher_rao_norm"] > 0


@pytest.mark.parametrize("tuned", [TunedThresholdClassifierCV, FixedThresholdClassifier])
def test_a_tuned_threshold_leaves_the_logits(iris, tuned):
    X, y = iris[0][:100], iris[1][:100]
    model = tuned(linear_model.LogisticRegression())
    with pytest.raises(NotFittedError, match=f"{tuned.__name__} is not fitted yet"):
        measure_capacity(model, X, y, "margin")
    model.fit(X, y)
    assert measure_capacity(model, X, y, "margin") == measure_capacity(model.estimator_, X, y, "margin")


@pytest.mark.parametrize("params", [{"solver": "liblinear"}, {"multi_class": "ovr"}])
def test_one_versus_rest_logistic_regression_is_refused(iris, params):
    """As scikit-learn before 1.8 fits it; later ones have a row per class only for the softmax."""
    X, y = iris
    estimator = linear_model.LogisticRegression(max_iter=1000).fit(X, y)
    assert np.isfinite(measure_capacity(estimator, X, y, "margin")["margin"])
    vars(estimator).update(params)
    with pytest.raises(NotDefinedError, match="LogisticRegression with 3 classes is one-versus-rest"):
        measure_capacity(estimator, X, y, "margin")


def test_two_classes_by_the_softmax_are_two_opposite_rows(iris):
    """As `multi_class="multinomial"` of scikit-learn before 1.8: the logits are [-z, z]."""
    X, y = iris[0][:100], iris[1][:100]
    estimator = linear_model.LogisticRegression().fit(X, y)
    known = measure_capacity(estimator, X, y, "min_margin")["min_margin"]
    estimator.multi_class = "multinomial"
    assert measure_capacity(estimator, X, y, "min_margin")["min_margin"] == pytest.approx(2 * known)


def test_refused_models_are_named(iris):
    X, y = iris
    refusals = {
        linear_model.RidgeClassifier(): "targets -1 and 1",
        svm.LinearSVC(): "one-versus-rest",
        linear_model.SGDClassifier(): "one-versus-rest",
        linear_model.SGDClassifier(loss="huber", epsilon=0.1): "targets -1 and 1",
    }
    for estimator, reason in refusals.items():
        with pytest.raises(NotDefinedError, match=reason):
            measure_capacity(estimator.fit(X, y), X, y, "margin")
    multilabel = MLPClassifier((3,), max_iter=5, random_state=0)
    Y = np.stack([y == "setosa", y != "virginica"], 1).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        multilabel.fit(X, Y)
    with pytest.raises(NotDefinedError, match="multilabel"):
        measure_capacity(multilabel, X, Y, "margin")


def test_ensembles_are_refused_with_what_can_be_measured(iris):
    X, y = iris
    bagged = BaggingClassifier(NetworkClassifier((4,), max_epochs=1, random_state=0), 2, random_state=0).fit(X, y)
    with pytest.raises(
        TypeError, match=r"measure each of them by `compare_capacity\(list\(model.estimators_\), X, y\)`"
    ):
        measure_capacity(bagged, X, y)
    assert measure_capacity(bagged.estimators_[0], X, bagged.estimators_[0].classes_[[0] * len(X)], "margin")
    with pytest.raises(TypeError, match="Its models are not networks either"):
        measure_capacity(RandomForestClassifier(2).fit(X, y), X, y)
