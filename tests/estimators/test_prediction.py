"""Predictions skip scikit-learn's checks of X only where these would return it as it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils.validation import validate_data
from torch import nn

from sklearn_capacity import NetworkClassifier, NetworkRegressor
from sklearn_capacity.estimators import _data

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


@pytest.fixture
def checks(monkeypatch):
    """The arrays that scikit-learn checks."""
    seen = []
    monkeypatch.setattr(
        _data, "validate_data", lambda *args, **options: seen.append(args[1]) or validate_data(*args, **options)
    )
    return seen


def by_hand(model, X):
    """The logits of a fitted MLP, from its weights in float64."""
    hidden, last = (layer for layer in model.module_ if isinstance(layer, nn.Linear))
    weights = [t.detach().double().numpy() for layer in (hidden, last) for t in (layer.weight, layer.bias)]
    return np.maximum(X @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sound_arrays_pass(checks, dtype):
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X.astype(dtype), y)
    checks.clear()
    logits = model.decision_function(X.astype(dtype))
    assert not checks
    np.testing.assert_allclose(logits, by_hand(model, X), rtol=1e-3, atol=1e-4)
    assert (model.predict(X.astype(dtype)) == logits.argmax(axis=1)).all()


def test_images_pass_in_both_shapes(checks):
    module = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model = NetworkClassifier(module=module, input_shape=(1, 2, 3), max_epochs=2, random_state=0).fit(X, y)
    checks.clear()
    as_images = model.predict_proba(X.reshape(-1, 1, 2, 3))
    np.testing.assert_array_equal(as_images, model.predict_proba(X))
    assert not checks
    with pytest.raises(ValueError, match=r"X must contain samples of shape \(1, 2, 3\), got \(1, 3, 2\)"):
        model.predict(X.reshape(-1, 1, 3, 2))


def test_an_axis_of_length_1_may_run_backwards():
    images = X.reshape(-1, 1, 2, 3)
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(images, y)
    np.testing.assert_array_equal(model.predict_proba(images[:, ::-1]), model.predict_proba(images))
    np.testing.assert_array_equal(model.predict_proba(images[:1][::-1]), model.predict_proba(images[:1]))


@pytest.mark.parametrize("kinds", [nn.Module, nn.Dropout])
def test_a_module_that_the_user_has_switched_to_training_predicts_in_eval_mode(kinds):
    model = NetworkClassifier((5,), dropout=0.5, batch_norm=True, max_epochs=2, random_state=0).fit(X, y)
    expected = model.predict_proba(X)
    statistics = [buffer.clone() for buffer in model.module_.buffers()]
    for layer in model.module_.modules():
        layer.training = isinstance(layer, kinds)
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    assert all(map(torch.equal, model.module_.buffers(), statistics))


def changed(value, dtype=None):
    array = X.astype(dtype or X.dtype)
    array[3, 2] = value
    return array


def read_only():
    array = X.copy()
    array.flags.writeable = False
    return array


CONVERTED = {
    "another precision": X.astype(np.float32),
    "integers": np.round(X).astype(int),
    "truth values": X > 0,
    "another byte order": X.astype(">f8"),
    "columns first": np.asfortranarray(X),
    "every second row": X[::2],
    "backwards": X[::-1, ::-1],
    "read-only": read_only(),
    "more digits": X.astype(np.longdouble),
}
CHECKED = {
    "a matrix of objects": X.astype(object),
    "a list": X.tolist(),
    "a sum that overflows": np.where(np.arange(6) == 0, 1e308, X),
}


@pytest.mark.parametrize("array", [*CONVERTED.values(), *CHECKED.values()], ids=[*CONVERTED, *CHECKED])
def test_other_arrays(checks, array):
    model = NetworkRegressor((5,), max_epochs=2, random_state=0).fit(X, X[:, 0])
    with torch.no_grad():
        model.module_[1].weight[:, 0] = 0  # so that outputs are finite where X is huge
    checks.clear()
    before = np.array(array)
    values = model.predict(array)
    assert len(checks) == any(array is other for other in CHECKED.values())
    expected = by_hand(model, np.asarray(array, np.float64))[:, 0]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(array, before)
    assert values.flags.c_contiguous


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # from scikit-learn
def test_a_value_too_large_for_the_network_is_refused():
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X.astype(np.float32), y)
    with pytest.raises(ValueError, match="Input X contains infinity or a value too large for dtype"):
        model.predict(changed(1e300))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_data_are_predicted_in_parts(dtype):
    """Each part is checked, and the parts come together in order."""
    many = rng.normal(size=(20_001, 6)).astype(dtype)
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X.astype(dtype), y)
    for data in (many, np.asfortranarray(many)):
        logits = model.decision_function(data)
        np.testing.assert_allclose(logits, by_hand(model, many.astype(float)), rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(model.predict(data), logits.argmax(axis=1))
        assert logits.flags.c_contiguous
        p = np.exp(logits.astype(float))
        np.testing.assert_allclose(model.predict_proba(data), p / p.sum(axis=1, keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(np.exp(model.predict_log_proba(data)), model.predict_proba(data), rtol=1e-5)
    many[-1, 2] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(many)


FRAMES = {
    "one block": lambda X: pd.DataFrame(X, columns=list("abcdef")),
    "two types": lambda X: pd.DataFrame(X, columns=list("abcdef")).astype({"b": np.float32, "d": np.float64}),
    "whole numbers": lambda X: pd.DataFrame(X, columns=list("abcdef")).round().astype({"a": int, "c": np.int8}),
}
OTHER_FRAMES = {
    "nullable": lambda X: pd.DataFrame(X, columns=list("abcdef")).astype({"b": "Float64"}),
    "objects": lambda X: pd.DataFrame(X, columns=list("abcdef")).astype({"b": object}),
    "sparse": lambda X: pd.DataFrame(X, columns=list("abcdef")).astype({"b": pd.SparseDtype(float, 0.0)}),
}


@pytest.mark.filterwarnings("ignore:pandas.DataFrame with sparse columns found:UserWarning")
@pytest.mark.parametrize("name", [*FRAMES, *OTHER_FRAMES])
def test_frames_with_the_columns_of_the_fit(name, checks):
    frame = {**FRAMES, **OTHER_FRAMES}[name](X)
    model = NetworkRegressor((5,), max_epochs=2, random_state=0).fit(frame, X[:, 0])
    checks.clear()
    values = model.predict(frame)
    assert bool(checks) == (name in OTHER_FRAMES)
    np.testing.assert_allclose(values, by_hand(model, frame.to_numpy(float))[:, 0], rtol=1e-6)


def test_frames_with_other_columns_or_values_are_refused():
    frame = FRAMES["one block"](X)
    model = NetworkRegressor((5,), max_epochs=2, random_state=0).fit(frame, X[:, 0])
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("abcdfe")])
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(frame.mask(frame > 2))
    unnamed = NetworkRegressor((5,), max_epochs=2, random_state=0).fit(X, X[:, 0])
    with pytest.warns(UserWarning, match="X has feature names, but"):
        unnamed.predict(frame)


BAD = {
    "nan": (changed(np.nan), "Input X contains NaN"),
    "infinite": (changed(np.inf), "Input X contains infinity"),
    "both infinities": (np.where(np.arange(6) < 2, [[np.inf, -np.inf] * 3], X), "Input X contains infinity"),
    "a column too few": (X[:, :5], "X has 5 features, but .* is expecting 6 features"),
    "no row": (X[:0], "Found array with 0 sample"),
    "one row alone": (X[0], "Expected 2D array, got 1D array"),
    "one number": (np.ones(()), "Expected 2D array, got scalar array"),
    "complex": (X + 0j, "Complex data not supported"),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from scikit-learn's sum
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_scikit_learns_errors_stay(name, method):
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X, y)
    array, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(array)


def test_a_model_of_named_columns_still_warns():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(frame, y)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        values = model.predict_proba(X)
    np.testing.assert_array_equal(values, model.predict_proba(frame))


def zeroed(module, args):
    args[0].zero_()


class Clipping(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp_(-0.5, 0.5))


MODULES = {
    "an operation in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)),
    "after a view": lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Hardtanh(inplace=True)), nn.Linear(6, 3)),
    "a layer of the user": lambda: nn.Sequential(Clipping(6, 3)),
    "a linear layer": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_the_users_array_is_left_alone(module):
    data = X.copy()
    model = NetworkClassifier(module=module, max_epochs=1, random_state=0).fit(data, y)
    model.predict(data)
    np.testing.assert_array_equal(data, X)
    model.module_[0].register_forward_pre_hook(zeroed)
    model.predict(data)
    np.testing.assert_array_equal(data, X)
