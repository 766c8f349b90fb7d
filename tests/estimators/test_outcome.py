"""Warnings of trainings that fail and of modules whose outputs are not logits, and no warning for other trainings."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_capacity import CapacityWarning, JacobianRegularizedClassifier, NetworkClassifier, NetworkRegressor
from sklearn_capacity.losses import CRITERIA, is_classification

DIGITS = load_digits(return_X_y=True)
WINE = load_wine(return_X_y=True)
X, y = DIGITS[0] / 16, DIGITS[1]
rng = np.random.default_rng(0)


def with_warnings(model, X, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.set_params(random_state=0).fit(X, y)
    return [w for w in caught if issubclass(w.category, (ConvergenceWarning, CapacityWarning))]


@pytest.mark.parametrize(
    ("model", "X", "y", "message"),
    [
        (NetworkClassifier(learning_rate=1000.0, max_epochs=5), X, y, r"same output.*Lower `learning_rate` \(1000\)"),
        (NetworkClassifier(max_epochs=5), *WINE, "root mean square is .*StandardScaler"),
        (NetworkRegressor(max_epochs=100), X[:300], y[:300] + 1e6, "TransformedTargetRegressor"),
        (NetworkClassifier(optimizer="sgd", learning_rate=1e-6), X, y, "train for more epochs"),
        (NetworkRegressor(loss="absolute", optimizer="sgd", learning_rate=1e6, max_epochs=3), X, y, "Lower"),
        (NetworkRegressor((), optimizer="sgd", learning_rate=1e3, max_epochs=1, batch_size=2000), X, y, "Lower"),
        (NetworkClassifier((), optimizer="sam", learning_rate=1e3, max_epochs=1, batch_size=2000), X, y, "Lower"),
        (
            NetworkClassifier(optimizer="sgd", learning_rate=100.0, max_epochs=20, early_stopping=True),
            X,
            y,
            "best constant prediction",
        ),
    ],
)
def test_a_failed_training_is_warned_of_with_losses_and_cure(model, X, y, message):
    (caught,) = with_warnings(model, X, y)
    assert caught.category is ConvergenceWarning
    assert caught.filename == __file__  # the user's line
    assert re.search(message, str(caught.message))
    assert "training loss of" in str(caught.message)


@pytest.mark.parametrize("epochs", [1, 2, 5, 60])
@pytest.mark.parametrize(
    ("model", "data"),
    [
        (NetworkClassifier(), DIGITS),
        (NetworkClassifier(dropout=0.5), (X, y)),
        (NetworkClassifier(), load_iris(return_X_y=True)),
        (NetworkClassifier(weight_decay=1.0), load_iris(return_X_y=True)),
        (JacobianRegularizedClassifier(jacobian_penalty=1e4), load_iris(return_X_y=True)),
        (NetworkClassifier(class_weight="balanced"), (X[:200], y[:200] == 0)),
        (NetworkRegressor(), (X[:6], y[:6])),
        (NetworkRegressor(loss="absolute"), (X[:200], y[:200])),
        (NetworkRegressor(early_stopping=True, n_iter_no_change=1), (X[:200], rng.normal(size=200))),
        (NetworkRegressor(), (X[:200], np.full(200, 5.0))),
        (NetworkClassifier(()), (rng.normal(size=(2000, 3)), rng.integers(0, 2, 2000))),
    ],
)
def test_an_ordinary_training_is_not(model, data, epochs):
    assert not with_warnings(model.set_params(max_epochs=epochs), *data)


def test_a_search_is_warned_once():
    search = GridSearchCV(NetworkClassifier(learning_rate=1000.0, max_epochs=3), {"momentum": [0.8, 0.9]}, cv=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(X, y)
    assert [w.category for w in caught if w.category is ConvergenceWarning] == [ConvergenceWarning]


def test_calls_of_partial_fit_are_warned_once():
    model = NetworkClassifier(random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model.partial_fit(*WINE, classes=range(3))
    assert [w.category for w in caught] == [ConvergenceWarning]


@pytest.mark.parametrize("targets", [np.full(20, 0.01), np.zeros(20), 1e-3 * np.random.default_rng(1).normal(size=20)])
def test_a_call_of_partial_fit_may_have_nearly_equal_targets(targets):
    model = NetworkRegressor(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(0, 20, 5):
            model.partial_fit(X[start : start + 5], targets[start : start + 5])


class Normalized(nn.Module):
    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, x):
        exponentials = self.linear(x).exp()
        return exponentials / exponentials.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(64, 10), nn.Softmax(dim=1)), r"softmax, in its layer '1' \(Softmax\)"),
        (nn.Sequential(nn.Sequential(nn.Linear(64, 10), nn.LogSoftmax(-1))), r"log-softmax, in its layer '0.1'"),
        (nn.Sequential(nn.Linear(64, 10), nn.Sigmoid()), r"sigmoid, in its layer '1' \(Sigmoid\)"),
        (Normalized, "softmax, in its `forward`"),
    ],
)
def test_a_module_that_ends_in_a_softmax_is_warned_of(module, message):
    (caught,) = with_warnings(NetworkClassifier(module=module, max_epochs=2), X, y)
    assert caught.category is CapacityWarning and re.search(message, str(caught.message))


@pytest.mark.parametrize("ending", [nn.Identity(), nn.Tanh(), nn.Hardsigmoid()])
def test_a_module_that_ends_otherwise_is_not(ending):
    module = nn.Sequential(nn.Linear(64, 10), ending)
    assert not with_warnings(NetworkClassifier(module=module, max_epochs=2), X, y)
    module = nn.Sequential(nn.Linear(64, 1), nn.Sigmoid())
    assert not with_warnings(NetworkRegressor(module=module, max_epochs=2), X, y / 10)


@pytest.mark.parametrize("loss", CRITERIA)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_other_constant_has_a_smaller_loss(loss, weighted):
    n, n_outputs = 41, 3
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(n, generator=draw, dtype=torch.float64, device="cpu")
    weight = weight / weight.mean() if weighted else None
    target = torch.randn(n, n_outputs, generator=draw, dtype=torch.float64, device="cpu")
    target = target[:, 0].argsort() % n_outputs if is_classification(loss) else target
    criterion = CRITERIA[loss]()
    best = criterion.best_constant(target, n_outputs, weight).to(torch.float64)
    least = criterion(best.expand(n, -1), target, sample_weight=weight)
    for step in 0.05 * torch.randn(50, n_outputs, generator=draw, dtype=torch.float64, device="cpu"):
        assert criterion((best + step).expand(n, -1), target, sample_weight=weight) >= least - 1e-6
