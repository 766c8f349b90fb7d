"""save and load: the same predictions to the bit; see also test_persistence_files.py."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_capacity import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
    load,
    measure_capacity,
    save,
)
from sklearn_capacity.storage import files

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 16))
LABELS = {
    "int": np.arange(30) % 3,
    "str": np.array(["a", "bb", "ccc"])[np.arange(30) % 3],
    "object": np.array(["a", "bb", "ccc"], object)[np.arange(30) % 3],
    "bool": np.arange(30) % 2 == 0,
    "int8": (np.arange(30) % 3).astype("int8"),
}


class TwoLayers(nn.Module):
    """A network of the user's, with buffers and tied weights."""

    def __init__(self, n_features, n_outputs, width=5):
        super().__init__()
        self.first = nn.Linear(n_features, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = self.second
        self.head = nn.Linear(width, n_outputs)
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def forward(self, X):
        return self.head(self.third(self.second(torch.relu(self.norm(self.first(X))))))


def lazy(n_outputs):
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(n_outputs))


def same_bits(a, b, X=X):
    for name in ("predict", "predict_proba"):
        if hasattr(a, name):
            np.testing.assert_array_equal(getattr(a, name)(X), getattr(b, name)(X))
    assert list(a.module_.state_dict()) == list(b.module_.state_dict())
    for key, value in a.initial_state_.items():
        torch.testing.assert_close(b.initial_state_[key], value, rtol=0, atol=0)


@pytest.fixture(scope="module")
def model():
    return NetworkClassifier((6,), max_epochs=3, random_state=0).fit(X, LABELS["str"])


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(model, path)
    return path


@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_any_dtype(labels, tmp_path):
    model = NetworkClassifier((6,), max_epochs=2, random_state=0).fit(X, LABELS[labels])
    save(model, tmp_path / "model")
    same = load(tmp_path / "model")
    same_bits(model, same)
    assert same.classes_.dtype == model.classes_.dtype
    assert vars(same).keys() == vars(model).keys()


@pytest.mark.parametrize(
    "estimator",
    [
        NetworkClassifier((6, 4), batch_norm=True, dropout=0.2, weight_norm=True, class_weight={0: 1.0, 1: 2.5, 2: 1}),
        NetworkClassifier(np.array([3]), "tanh", learning_rate=np.float64(0.1), dtype=np.float32, tol=np.float32(0.1)),
        NetworkClassifier(module="conv", input_shape=(1, 4, 4)),
        NetworkClassifier(early_stopping=True, learning_rate_schedule=[(0, 1.0), (1, 0.5)], dtype=torch.float32),
        NetworkRegressor((), loss="absolute", optimizer_params={"betas": (0.8, 0.9)}),
        JacobianRegularizedClassifier((4,), jacobian_norm="projection", n_projections=2),
        GeneralizationLayerClassifier((4,), nu_end=0.5),
        GeneralizationLayerRegressor((4,), variant="dropout"),
    ],
    ids=["mlp", "numpy", "conv", "early", "linear", "jacobian", "layer", "layer dropout"],
)
def test_everything_comes_back(estimator, tmp_path):
    estimator.set_params(max_epochs=2, random_state=0).fit(pd.DataFrame(X).rename(columns=str), LABELS["int"])
    save(estimator, tmp_path / "model")
    before = torch.random.get_rng_state()
    same = load(tmp_path / "model")
    assert torch.equal(before, torch.random.get_rng_state())
    same_bits(estimator, same, pd.DataFrame(X).rename(columns=str))
    for key, value in estimator.get_params().items():
        assert getattr(same, key) == value and (type(getattr(same, key)) is type(value) or key == "dtype")
    assert same.history_.to_list() == estimator.history_.to_list()
    assert list(same.feature_names_in_) == list(estimator.feature_names_in_)
    assert same.n_iter_ == estimator.n_iter_ and same.n_samples_fit_ == estimator.n_samples_fit_
    for measure in ("parameter_count", "spectral_norm"):
        assert measure_capacity(same, X, measures=measure) == measure_capacity(estimator, X, measures=measure)
    clone(same).fit(X, LABELS["int"])


def test_several_targets(tmp_path):
    model = NetworkRegressor((4,), max_epochs=2, random_state=0).fit(X, X[:, :2])
    save(model, tmp_path / "model")
    same_bits(model, load(tmp_path / "model"))


def test_training_goes_on(model, saved):
    same = load(saved)
    for estimator in (same, load(saved)):
        estimator.set_params(warm_start=True).fit(X, LABELS["str"])
        estimator.partial_fit(X, LABELS["str"])
        assert estimator.n_iter_ == 7
    assert "dur" in same.history_[-1]


@pytest.mark.parametrize("module", [TwoLayers, lazy, TwoLayers(16, 3), lambda n_outputs: nn.Linear(16, n_outputs)])
def test_a_user_s_modules_are_passed_to_load(module, tmp_path):
    model = NetworkClassifier(module=module, max_epochs=2, random_state=0).fit(X.astype("float32"), LABELS["int"])
    save(model, tmp_path / "model")
    same_bits(model, load(tmp_path / "model", module=module), X.astype("float32"))
    with pytest.raises(ValueError, match=r"needs the network's class.*load\(path, module="):
        load(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be loaded: the network (lacks|has the unexpected tensors)"):
        load(tmp_path / "model", module=nn.Sequential(nn.Linear(16, 7), nn.Linear(7, 3)))


def test_needless_module_is_refused(saved):
    with pytest.raises(ValueError, match="`module` must be None for"):
        load(saved, module=nn.Linear(2, 2))


class Recorder:
    """A callback that only has to be there."""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"callbacks": [Recorder()]}, r"`callbacks\[0\]` is .*set_params\(callbacks=None\)"),
        ({"optimizer": torch.optim.SGD}, '`optimizer` is .*optimizer="sgd"'),
        ({"activation": nn.Mish}, "`activation` is .*define the network as a `module`"),
        ({"learning_rate_schedule": abs}, "`learning_rate_schedule` is .*list of factors"),
        ({"random_state": np.random.RandomState(0)}, "`random_state` is .*Use an integer"),
        ({"module_params": {"act": nn.ReLU}}, r"`module_params\['act'\]` is .*Fix it in the function"),
        ({"optimizer_params": {"foo": abs}}, "`optimizer_params.*set_params"),
    ],
)
def test_parameters_without_text_are_refused(model, tmp_path, params, message):
    other = pickle.loads(pickle.dumps(model)).set_params(**params)
    with pytest.raises(TypeError, match=message + ".*Or pickle"):
        save(other, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved(model, tmp_path):
    pipe = make_pipeline(StandardScaler(), model)
    cases = [
        (pipe, TypeError, r"got a Pipeline. Save its last step, `save\(pipeline\[-1\], path\)`.*skops"),
        (GridSearchCV(model, {}), TypeError, "Save its `best_estimator_`"),
        (NetworkClassifier(), NotFittedError, "not fitted yet. Call `fit` before saving"),
        (NetworkClassifier, TypeError, "got the class NetworkClassifier"),
        (LogisticRegression(), TypeError, "got LogisticRegression"),
        (nn.Linear(2, 2), TypeError, "state_dict.*safetensors.torch.save_file"),
    ]
    for thing, error, message in cases:
        with pytest.raises(error, match=message):
            save(thing, tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        save(model, tmp_path / "nowhere" / "model")


def test_failed_save_keeps_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def broken(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        save(model, saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
