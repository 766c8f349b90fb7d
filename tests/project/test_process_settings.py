"""Whatever is called, and however it ends, every setting of the process is as it was."""

from __future__ import annotations

import contextlib
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV
from torch import nn

import sklearn_capacity as sc
from process_settings import changes, delicate_moments, interrupt_at, interrupt_when, settings
from sklearn_capacity import penalties
from sklearn_capacity.graph import trace
from sklearn_capacity.scoring.landscape import measure_landscape

X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
y, target = np.arange(20) % 3, X[:, :2]
ESTIMATORS = [
    *(sc.NetworkClassifier, sc.JacobianRegularizedClassifier, sc.GeneralizationLayerClassifier),
    *(sc.NetworkRegressor, sc.JacobianRegularizedRegressor, sc.GeneralizationLayerRegressor),
]
MEASURES = ["margin", "fisher_rao_norm", "jacobian_frobenius"]
pytestmark = pytest.mark.filterwarnings("ignore")


class Attention(nn.Module):
    """A network with attention; it fails at a call that the test names, and draws numbers where the test wants it."""

    calls, fails_at, draws = 0, None, False

    def __init__(self, input_shape=(6,), n_outputs=3):
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, n_outputs)

    def forward(self, x):
        Attention.calls += 1
        if Attention.draws:
            x = torch.dropout(x, 0.5, True) + np.random.rand() + random.random()  # noqa: NPY002
        if Attention.calls == Attention.fails_at:
            raise ValueError("The user's module fails.")
        tokens = x.unsqueeze(1).repeat(1, 3, 1)
        return self.out(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def estimator(kind, **params):
    layers = {} if kind.__name__.startswith("General") else {"module": Attention}
    return kind(max_epochs=2, batch_size=10, random_state=0, **layers, **params)


def data(kind):
    return (X, y) if kind.__name__.endswith("Classifier") else (X, target)


def partly_fitted(kind):
    classes = {"classes": [0, 1, 2]} if kind.__name__.endswith("Classifier") else {}
    return estimator(kind).partial_fit(*data(kind), **classes)


def search():
    with parallel_config(backend="threading", n_jobs=2):
        scorer = sc.CapacityScorer(["accuracy", "margin"], on_error="raise")
        model = estimator(sc.NetworkClassifier)
        GridSearchCV(model, {"learning_rate": [0.1, 0.01]}, cv=2, scoring=scorer, refit=False, error_score="raise").fit(
            X, y
        )


def saved(path):
    fitted = sc.NetworkClassifier((4,), max_epochs=1, random_state=0).fit(X, y)
    sc.save(fitted, path)
    return sc.load(path)


def entry_points():
    module, points = Attention(), torch.from_numpy(X)
    chain = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    calls = {
        "measure_capacity": lambda path: sc.measure_capacity(module, X, y, MEASURES),
        "capacity_report": lambda path: sc.capacity_report(module, X, y, MEASURES, per_layer=True),
        "CapacityScorer": lambda path: sc.CapacityScorer(MEASURES, on_error="raise")(module, X, y),
        "transform": lambda path: sc.CapacityScorer(MEASURES, on_error="raise").fit(X, y).transform([module]),
        "fisher_spectrum": lambda path: sc.fisher_spectrum(module, X),
        "bicriteria_curve": lambda path: sc.bicriteria_curve(module, X, y, [0.1, 1.0], n_draws=4, random_state=0),
        "interaction_conditions": lambda path: sc.interaction_conditions(chain, X, max_samples=5),
        "measure_landscape": lambda path: measure_landscape(module, X, y, measures=["margin"], resolution=2),
        "model_card": lambda path: sc.model_card(module, X, y, MEASURES),
        "trace": lambda path: trace(module, (6,)),
        "save and load": lambda path: saved(path / "model.safetensors"),
        "fit with a folder": lambda path: estimator(sc.NetworkClassifier, checkpoint_dir=path).fit(X, y),
        "search": lambda path: search(),
    }
    for name in ("frobenius_penalty", "projection_penalty", "spectral_penalty", "per_layer_penalty"):
        calls[name] = lambda path, name=name: getattr(penalties, name)(module, points).backward()
    for kind in ESTIMATORS:
        calls[kind.__name__] = lambda path, kind=kind: estimator(kind).fit(*data(kind)).predict(X)
        calls[f"{kind.__name__}.partial_fit"] = lambda path, kind=kind: partly_fitted(kind)
    return calls


CALLS = entry_points()


@pytest.fixture(autouse=True)
def behave(monkeypatch):
    for name, value in {"calls": 0, "fails_at": None, "draws": False}.items():
        monkeypatch.setattr(Attention, name, value)
    return monkeypatch


@pytest.mark.parametrize("name", CALLS)
def test_nothing_changes_where_it_works_or_fails(name, tmp_path, behave):
    CALLS[name](tmp_path)  # imports what it needs, and counts the calls of the module
    forward_passes = Attention.calls
    before = settings()
    CALLS[name](tmp_path)
    assert changes(before) == {}
    for fails_at in sorted({1, 2, forward_passes // 2, forward_passes} - {0}):
        Attention.calls, Attention.fails_at = 0, fails_at
        with contextlib.suppress(ValueError, sc.UnsupportedLayerError):
            CALLS[name](tmp_path)
        assert changes(before) == {}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_changes_where_it_is_interrupted(name, tmp_path):
    CALLS[name](tmp_path)
    with interrupt_at(0) as moments:
        CALLS[name](tmp_path)
    before, draw = settings(), random.Random(name)
    for number in [draw.randint(1, moments[0]) for _ in range(3)]:
        with contextlib.suppress(KeyboardInterrupt), interrupt_at(number):
            CALLS[name](tmp_path)
        assert changes(before) == {}, number


@pytest.mark.parametrize("name", [name for name in CALLS if name != "search"])  # its changes are in other threads
def test_nothing_changes_where_it_is_interrupted_as_a_change_begins_or_ends(name, tmp_path):
    def call():
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # a new one, so that the fit in it starts anew
            CALLS[name](Path(folder))

    call()
    moments = delicate_moments(call)
    if name not in ("NetworkClassifier", "save and load"):  # all moments of all calls take minutes
        moments = random.Random(name).sample(moments, min(len(moments), 3))
    before = settings()
    for moment in moments:
        with contextlib.suppress(KeyboardInterrupt), interrupt_when(moment):
            call()
        assert changes(before) == {}, moment
