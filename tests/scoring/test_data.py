"""What may be given to the measures, and how they refuse what may not: names, columns, labels, containers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn import linear_model
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import RFE
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_capacity import CapacityScorer, NetworkClassifier, NotDefinedError, measure_capacity
from sklearn_capacity._validation import all_finite
from sklearn_capacity.scoring.data import subsample

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_numbers_are_told_from_others_also_where_their_sum_overflows(dtype):
    largest = torch.finfo(dtype).max
    for numbers in ([], [0.0], [largest] * 3, [largest, -largest]):
        assert all_finite(torch.tensor(numbers, dtype=dtype))
    for odd in (
        [torch.nan],
        [torch.inf, 1.0],
        [torch.inf, -torch.inf],
        [largest, largest, -torch.inf],
        [torch.nan] * 2,
    ):
        assert not all_finite(torch.tensor(odd, dtype=dtype))


@pytest.mark.parametrize(
    ("measures", "error", "message"),
    [
        ("fisher_rao_nrm", ValueError, "Did you mean 'fisher_rao_norm'"),
        (["margin", "margin"], ValueError, "'margin' twice"),
        ([], ValueError, "at least one measure"),
        (3, TypeError, "`measures` must be a name"),
        ([("path_norm", {})], TypeError, "must contain names and `Measure` objects if it is a list"),
        ({"a": 3}, TypeError, r"must be a name, a `Measure`, a function, or \(one of these, params\)"),
        ({"a": ("path_norm", {"q": 1})}, ValueError, "no parameter 'q'"),
        ({"a": ("path_norm", {"p": -1})}, ValueError, r"`p` must lie in \(0, inf\), got -1"),
        ({"a": ("margin", {"percentile": 150})}, ValueError, r"`percentile` must lie in \[0, 100\], got 150"),
    ],
)
def test_bad_measures(model, iris, measures, error, message):
    with pytest.raises(error, match=message):
        measure_capacity(model, *iris, measures)


def test_bad_data_and_options(model, iris):
    X, y = iris
    selected = RFE(LogisticRegression(), n_features_to_select=3)
    pairs = TensorDataset(torch.from_numpy(X), torch.zeros(len(X)))
    cases = [
        ((model, X, y[:-1]), {}, ValueError, "same length"),
        ((model, np.where(X == X[0, 0], np.nan, X), y), {}, ValueError, "NaN"),
        ((model, X, np.where(y == "setosa", "rose", y)), {}, ValueError, "does not know: 'rose'"),
        ((model, X[:0], y[:0]), {}, ValueError, "0 sample"),
        ((model, X, y), {"loss": "huber"}, ValueError, "`loss` must be one of"),
        ((model, X, y), {"random_state": None}, TypeError, "`random_state` must be an integer"),
        ((model, X, y), {"max_samples": 0}, ValueError, "`max_samples` must be at least 1"),
        ((model, X, y), {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ((model, None, y), {}, ValueError, "`X` must be given together with `y`"),
        ((NetworkClassifier(), X, y), {}, NotFittedError, "not fitted yet"),
        ((NetworkClassifier, X, y), {}, TypeError, "got the class"),
        ((object(), X, y), {}, TypeError, "must contain a network"),
        (
            (VotingClassifier([("a", GaussianNB())]).fit(X, y), X, y),
            {},
            TypeError,
            "Its models are not networks either",
        ),
        ((selected.fit(X, y == "setosa"), X, y), {}, TypeError, "got RFE. Measure its `estimator_`."),
        ((model, {"X": X}, y), {}, TypeError, "got a dict: networks with several inputs"),
        ((model, DataLoader(pairs)), {}, TypeError, r"got a DataLoader. Collect its batches: `X, y = map\(torch.cat"),
        ((model, pairs, y), {}, TypeError, "got a TensorDataset. Collect it"),
        ((model, pairs.tensors), {}, TypeError, "got a tuple. Pass its parts one by one, as `X` and `y`"),
    ]
    for args, options, error, message in cases:
        with pytest.raises(error, match=message):
            measure_capacity(*args, measures="margin", **options)
    with pytest.raises(ValueError, match="`log` must be False"):
        measure_capacity(model, X, y, "margin", log=True)
    fitted = NetworkClassifier((3,), max_epochs=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="4 features per sample"):
        measure_capacity(fitted, X[:, :3], y, "margin")
    with pytest.raises(NotDefinedError, match="needs labels"):
        measure_capacity(model, X, measures="margin")
    with pytest.raises(ValueError, match="`refit_measure` must be one of"):
        CapacityScorer(["margin"], refit_measure="accuracy")(model, X, y)


def test_columns_are_those_of_the_fit(iris):
    X, y = iris
    frame = pd.DataFrame(X, columns=list("abcd"))
    turned = frame[list("dcba")]
    for estimator in (NetworkClassifier((3,), max_epochs=2, random_state=0), linear_model.LogisticRegression()):
        plain, piped = estimator.fit(frame, y), make_pipeline(StandardScaler(), clone(estimator))
        piped.set_output(transform="pandas").fit(frame, y)
        for model in (plain, piped, FrozenEstimator(plain)):
            assert np.isfinite(measure_capacity(model, frame, y, "margin")["margin"])
            with pytest.raises(ValueError, match="must be in the same order|`X` must have 'a' as column 0"):
                measure_capacity(model, turned, y, "margin")


def test_labels_of_a_plain_module(iris):
    X, y = iris
    net = nn.Linear(4, 3)
    two, ones = nn.Linear(4, 2), np.ones(20)  # True is class 1, also where there is nothing else
    expected = measure_capacity(two, X[:20], ones.astype(int), "margin")
    assert measure_capacity(two, X[:20], ones > 0, "margin") == expected
    with pytest.raises(ValueError, match='3 columns, one per output.*got 1.*loss="cross_entropy"'):
        measure_capacity(net, X, ones[:1].repeat(len(X)))
    with pytest.raises(NotDefinedError, match='`y` has floats.*loss="cross_entropy"'):
        measure_capacity(net, X, np.eye(3)[:1].repeat(len(X), 0), "margin")
    with pytest.raises(NotDefinedError, match=r"`y.argmax\(axis=1\)`"):
        measure_capacity(net, X, np.eye(3, dtype=int)[:1].repeat(len(X), 0), "margin")


HOLLOW = {
    "sparse tensor": lambda data: torch.as_tensor(data).to_sparse(),
    "on the meta device": lambda data: torch.as_tensor(data).to("meta"),
    "complex tensor": lambda data: torch.as_tensor(data) + 1j,
    "sparse matrix": lambda data: scipy.sparse.coo_array(data),
    "sparse rows": lambda data: scipy.sparse.csr_array(data),
}


@pytest.mark.parametrize("max_samples", [None, 2])
@pytest.mark.parametrize("kind", HOLLOW)
@pytest.mark.parametrize("name", ["X", "y"])
def test_data_without_an_array_of_values_are_refused_before_any_is_taken(name, kind, max_samples):
    data = {"X": np.eye(4), "y": np.arange(4) % 2}
    data[name] = HOLLOW[kind](data[name])
    with pytest.raises(TypeError, match=f"`{name}` must be (a )?dense"):
        measure_capacity(nn.Linear(4, 2), **data, measures="margin", max_samples=max_samples)


@pytest.mark.parametrize("X", ["text", {1, 2, 3}, b"bytes"])
def test_what_has_a_length_but_no_entries_is_no_data(X):
    with pytest.raises(ValueError, match="must have one entry per sample, got"):
        subsample(X, None, 1, 0)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i4", np.longdouble])
def test_numbers_that_torch_does_not_have_are_converted(dtype):
    module, X, y = nn.Linear(4, 3), np.arange(24).reshape(6, 4) % 7, np.arange(6) % 3
    expected = measure_capacity(module, X, y, "margin")
    assert measure_capacity(module, X.astype(dtype), y, "margin") == pytest.approx(expected, rel=1e-6)
