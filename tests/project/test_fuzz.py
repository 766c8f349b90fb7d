"""Whatever comes in: a right answer, or a ValueError or TypeError with a message; never a changed model."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hostile import matrices, targets, weights
from sklearn_capacity import (
    CapacityScorer,
    GeneralizationLayerClassifier,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
    capacity_report,
    measure_capacity,
)
from sklearn_capacity.measures import MEASURES

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

rng = np.random.default_rng(0)
X, y = rng.normal(size=(24, 4)), np.arange(24) % 3

ESTIMATORS = [
    NetworkClassifier((3,), max_epochs=1, random_state=0),
    NetworkClassifier((3,), max_epochs=1, batch_size=5, batch_norm=True, class_weight="balanced", random_state=0),
    NetworkClassifier((3,), max_epochs=2, early_stopping=True, validation_fraction=0.3, random_state=0),
    JacobianRegularizedClassifier((3,), max_epochs=1, dtype="float32", random_state=0),
    GeneralizationLayerClassifier((3,), max_epochs=1, random_state=0),
    NetworkRegressor((3,), max_epochs=1, random_state=0),
    NetworkRegressor((3,), max_epochs=1, input_shape=(4,), loss="absolute", random_state=0),
]


def attempt(function, *args, **kwargs):
    """The result, or None if the input was refused with a message; anything else is a fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 10, f"{error!r} has no message"
        return None


def state(module):
    return [(key, value.numpy().tobytes()) for key, value in module.state_dict().items()] + [
        (name, part.training) for name, part in module.named_modules()
    ]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)).eval()
    return {
        "classifier": NetworkClassifier((5,), batch_norm=True, max_epochs=2, random_state=0).fit(X, y),
        "labels": NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X, np.array(["a", "b", "c"])[y]),
        "regressor": NetworkRegressor((5,), max_epochs=2, random_state=0).fit(X, X[:, :2]),
        "module": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        "conv": conv,
    }


@given(data=st.data())
def test_fit(data):
    A = data.draw(matrices(), label="X")
    n = A.shape[0] if hasattr(A, "shape") and len(A.shape) else 12
    b, w = data.draw(targets(n), label="y"), data.draw(weights(n), label="sample_weight")
    estimator = data.draw(st.sampled_from(ESTIMATORS), label="estimator").__sklearn_clone__()
    random = torch.random.get_rng_state()
    fitted = attempt(estimator.fit, A, b, sample_weight=w)
    assert torch.equal(random, torch.random.get_rng_state())
    if fitted is None:
        assert "net_" not in vars(estimator)
        return
    predicted = estimator.predict(A)
    assert len(predicted) == n
    if hasattr(estimator, "predict_proba"):
        assert set(np.unique(predicted)) <= set(estimator.classes_)
        np.testing.assert_allclose(estimator.predict_proba(A).sum(1), 1, rtol=1e-4)
    else:
        assert np.isfinite(predicted).all()


@given(data=st.data())
def test_predict(models, data):
    model = models[data.draw(st.sampled_from(["classifier", "labels", "regressor"]), label="model")]
    A = data.draw(matrices(), label="X")
    before = state(model.module_)
    predicted = attempt(model.predict, A)
    assert state(model.module_) == before
    if predicted is not None:
        assert len(predicted) == len(A) and predicted.shape[1:] == ((2,) if model is models["regressor"] else ())


FEWER = settings(max_examples=settings().max_examples // 2 + 1)  # these cases cost most


@FEWER
@given(data=st.data())
def test_measures(models, data):
    name = data.draw(st.sampled_from(sorted(models)), label="model")
    model = models[name]
    A = data.draw(matrices(), label="X")
    n = A.shape[0] if hasattr(A, "shape") and len(A.shape) else 12
    b = data.draw(targets(n), label="y")
    names = st.lists(st.sampled_from(sorted(MEASURES)), min_size=1, max_size=2, unique=True)
    chosen = data.draw(names, label="measures")
    module = getattr(model, "module_", model)
    before, random = state(module), torch.random.get_rng_state()
    values = attempt(measure_capacity, model, A, b, chosen, max_samples=6)
    assert state(module) == before and torch.equal(random, torch.random.get_rng_state())
    if values is not None:
        assert list(values) == chosen
        assert not any(math.isnan(value) for value in values.values()), values


@given(data=st.data())
def test_scorer_always_has_every_key(models, data):
    name = data.draw(st.sampled_from(sorted(set(models) - {"module", "conv"})), label="model")
    A = data.draw(matrices(), label="X")
    n = A.shape[0] if hasattr(A, "shape") and len(A.shape) else 12
    b, w = data.draw(targets(n), label="y"), data.draw(weights(n), label="sample_weight")
    before = state(models[name].module_)
    scorer = CapacityScorer(["r2" if name == "regressor" else "accuracy", "margin", "l2_path_norm"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = scorer(models[name], A, b, sample_weight=w)
    assert list(scores) == [scorer.measures[0], "margin", "neg_l2_path_norm"]
    assert all(type(value) is float for value in scores.values())
    assert state(models[name].module_) == before


OPTIONS = {
    "measures": [
        *("margin", "frobenius_norm", "nothing", [], {}, None, 3),
        *({"a": ("margin", {"percentile": 101})}, ["margin", 3]),
    ],
    "loss": [None, "cross_entropy", "squared", "absolute", "hinge", 3],
    "log": [False, True],
    "max_samples": [None, 1, 5, 0, -1, 2.5, "many"],
    "batch_size": [None, 1, 7, 0, 2.5],
    "random_state": [0, 1, -1, None, "seed", 2**70],
    "device": [None, "cpu", "nowhere", 3, "cuda:99", "mps"],
}


@FEWER
@given(options=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in OPTIONS.items()}))
def test_options(models, options):
    function = capacity_report if options.get("log") else measure_capacity
    attempt(function, models["classifier"], X, y, **{"measures": "margin", **options})


PARAMETERS = {
    "hidden_layer_sizes": [(), (2,), 3, [2, 2], (0,), "wide", None, (2.5,), np.array([2])],
    "activation": ["relu", "tanh", "steep", None, nn.ReLU, 3],
    "dropout": [0.0, 0.5, 1.0, np.nan, "half"],
    "learning_rate": [0.01, 1e-300, 1e300, 0.0, -1, np.inf, np.nan, None, np.float32(0.1)],
    "learning_rate_schedule": [None, "cosine", [1.0, 0.1], [(0, 1.0)], [], "step", 3, [np.nan], abs],
    "optimizer": ["adam", "sgd", "lbfgs", "best", None, torch.optim.SGD, int],
    "optimizer_params": [None, {}, {"nothing": 3}, 3, {1: 2}],
    "momentum": [0.9, 0.0, 1.0, -0.1],
    "weight_decay": [0.0, 0.1, -0.1, np.inf, 1e300, {"*": 0.1}, {"nothing": 0.1}, {1: 0.1}, {"*": -1}],
    "max_epochs": [1, 2, 0, 1.5, None],
    "batch_size": [1, 5, 100, 0, "auto"],
    "batch_norm": [False, True, 1],
    "stop_below": [None, 0.5, -1, np.inf],
    "early_stopping": [False, True, "yes"],
    "validation_fraction": [0.1, 0.9, 0.0, 1.0, 0.99],
    "stop_at_error": [None, 0.0, 0.5, 1.0, -0.1],
    "class_weight": [None, "balanced", {0: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0}, {0: -1}, "equal", {9: 1.0}],
    "dtype": ["auto", "float32", "float16", np.int64, "f8", None],
    "device": ["auto", "cpu", "cuda:99", "nowhere", 3],
    "random_state": [0, None, -1, "seed", 2.5, 2**40],
    "module": [None, "mlp", "nothing", nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear, 3, lambda: nn.Linear(4, 3), int],
    "module_params": [None, {}, {"in_features": 4, "out_features": 3}, 3],
    "input_shape": [None, (4,), (1, 2, 2), (5,), (0,), 4, (-1, -4)],
    "warm_start": [False, True, None],
    "callbacks": [None, [], 3, [3]],
    "verbose": [0, -1, 1.5],
    "checkpoint_dir": [None, 3, ""],
    "checkpoint_every": [1, 0, 1.5],
}


@given(
    params=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in PARAMETERS.items()}),
    kept=st.sets(st.sampled_from(sorted(PARAMETERS)), min_size=1, max_size=3),
)
def test_parameters(params, kept):
    params = {"max_epochs": 1, **{key: value for key, value in params.items() if key in kept}}
    estimator = NetworkClassifier(**params)
    if attempt(estimator.fit, X, y) is not None:
        assert np.isfinite(estimator.predict_proba(X)).all()
