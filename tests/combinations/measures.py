"""Cases of scorers and measures: random models, data and options."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

import sklearn_capacity as package
from sklearn_capacity.measures import MEASURES

from .case import Case, Fault, check_finite, state_of
from .data import CLASSES, FEATURES, N, normal, pick_weights, pick_X, pick_y
from .modules import MODULES, mlp
from .values import anything

X, Y = normal(N, FEATURES), np.arange(N) % CLASSES


def _network(kind: type, **params: Any) -> Any:
    target = np.sin(np.arange(N)) if "Regressor" in kind.__name__ else Y
    return kind(hidden_layer_sizes=(3,), max_epochs=1, random_state=0, **params).fit(X, target)


def _skorch() -> Any:
    net = NeuralNetClassifier(
        nn.Linear(FEATURES, CLASSES), criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None, verbose=0
    )
    return net.fit(X.astype("f4"), Y)


FITTED: dict[str, Callable[[], Any]] = {
    "classifier": lambda: _network(package.NetworkClassifier),
    "batch norm classifier": lambda: _network(package.NetworkClassifier, batch_norm=True),
    "regressor": lambda: _network(package.NetworkRegressor),
    "layer classifier": lambda: _network(package.GeneralizationLayerClassifier),
    "jacobian classifier": lambda: _network(package.JacobianRegularizedClassifier),
    "not fitted": package.NetworkClassifier,
    "class": lambda: package.NetworkClassifier,
    "skorch": _skorch,
    "skorch not initialised": lambda: NeuralNetClassifier(nn.Linear(FEATURES, CLASSES)),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y),
    "empty pipeline": lambda: make_pipeline("passthrough"),
    "logistic": lambda: LogisticRegression().fit(X, Y),
    "binary logistic": lambda: LogisticRegression().fit(X, Y > 0),
    "linear": lambda: LinearRegression().fit(X, X[:, :2]),
    "ridge": lambda: Ridge().fit(X, X[:, 0]),
    "sgd": lambda: SGDClassifier(random_state=0).fit(X, Y),
    "scikit-learn's network": lambda: MLPClassifier((3,), max_iter=1, random_state=0).fit(X, Y),
    "scikit-learn's regressor": lambda: MLPRegressor(hidden_layer_sizes=(3,), max_iter=1, random_state=0).fit(
        X, X[:, 0]
    ),
    "transformed target": lambda: TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(X, X[:, 0]),
    "frozen": lambda: FrozenEstimator(LogisticRegression().fit(X, Y)),
    "forest": lambda: RandomForestClassifier(2).fit(X, Y),
    "clusters": lambda: KMeans(2, n_init=1).fit(X),
    "none": lambda: None,
    "text": lambda: "model",
    "function": lambda: torch.relu,
    "list": lambda: [nn.Linear(FEATURES, CLASSES)],
}


@functools.cache
def fitted(name: str) -> Any:
    """A model that was fitted once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FITTED[name]()


#: without an ascent or many draws, and all that end soon
CHEAP = sorted(name for name, measure in MEASURES.items() if measure.cheap)
QUICK = sorted(set(MEASURES) - {name for name in MEASURES if "sharpness" in name})


def _measures(case: Case) -> Any:
    names = case.random.sample(QUICK if case.happens(0.3) else CHEAP, case.random.choice([1, 1, 2]))
    kinds = {
        "names": names,
        "cheap": "cheap",
        "dict": dict.fromkeys("ab", names[0]),
        "params": {"a": (names[0], _params(case, names[0]))},
        "unknown": "nothing",
        "anything": case.pick(anything()),
        "list of anything": [case.pick(anything())],
        "anything with params": {"a": (names[0], case.pick(anything()))},
    }
    return case.pick({**kinds, "the names": names, "some names": names}, f"measures {names}")


def _params(case: Case, name: str) -> dict[str, Any]:
    """Random parameters of a measure."""
    known = sorted(MEASURES[name].parameters)
    if not known:
        return {"nothing": 1}
    chosen = case.pick(known)
    usual = MEASURES[name].parameters[chosen]
    value = case.pick([*anything(), usual, usual], f"{name}.{chosen}")
    return {chosen: usual if _is_slow(value) else value}


def _is_slow(value: Any) -> bool:
    return isinstance(value, int) and value > 1000


OPTIONS: dict[str, Callable[[], list[Any]]] = {
    "loss": lambda: [None, "cross_entropy", "squared", "absolute", "hinge", 3, nn.MSELoss()],
    "log": lambda: [False, True, "yes", 1, None],
    "max_samples": lambda: [None, 1, 5, 0, -1, 2.5, "many", 2**70, np.int64(3), True],
    "batch_size": lambda: [None, 1, 7, 0, 2.5, "x", 2**70, True],
    "max_memory": lambda: [None, "1 GB", 10**9, 1, 0, "1", "-1 GB", "x", True, 10**30, float("nan")],
    "max_seconds": lambda: [None, 5.0, 1, 1e-9, 0, -1, float("inf"), float("nan"), "x", True, 10**400],
    "classes": lambda: [None, [0, 1, 2], [0, 1], "abc", ["a", "a", "b"], np.arange(3.0), [[0]], 3],
    "initial_state": lambda: [None, mlp(), mlp().state_dict(), nn.Linear(2, 2), {}, 3, "text"],
    "random_state": lambda: [0, 1, -1, None, "seed", 2**70, np.int64(3), 1.5, np.random.RandomState(0)],
    "device": lambda: [None, "cpu", "cpu:7", "nowhere", 3, "cuda:99", "mps", "meta", torch.device("cpu"), ""],
}


def random_options(case: Case, *names: str) -> dict[str, Any]:
    chosen = [name for name in names if case.happens(0.2)]
    return {name: case.pick(anything() if case.happens(0.2) else OPTIONS[name](), name) for name in chosen}


ALL = tuple(OPTIONS)


def run_case(case: Case) -> None:
    """One call on a random model."""
    torch.manual_seed(0)
    if case.happens(0.5):
        model = case.pick(MODULES, "module")()
        if case.happens(0.3) and isinstance(model, nn.Module):
            model.eval()
    else:
        name = case.pick(sorted(FITTED), "model")
        model = fitted(name)
    module = getattr(model, "module_", model) if not isinstance(model, type) else model
    before = state_of(module)
    name, call = case.pick(sorted(CALLS.items()))
    case.choices.append(name)
    call(case, model)
    if state_of(module) != before:
        raise Fault(f"{name} changed the model")


def _measure(case: Case, model: Any) -> None:
    X, y = pick_X(case), pick_y(case)
    measures = _measures(case)
    values = case.call(
        "measure_capacity", package.measure_capacity, model, X, y, measures, **random_options(case, *ALL)
    )
    check_finite("measure_capacity", values, infinite=True)


def _without_y(case: Case, model: Any) -> None:
    X = pick_X(case) if case.happens(0.5) else None
    values = case.call("measure_capacity", package.measure_capacity, model, X, None, _measures(case))
    check_finite("measure_capacity", values, infinite=True)


def _report(case: Case, model: Any) -> None:
    options = random_options(case, *ALL)
    if case.happens(0.5):
        options |= {"per_layer": case.pick([True, "x"]), "per_class": case.pick([True, False, None])}
    case.call("capacity_report", package.capacity_report, model, pick_X(case), pick_y(case), _measures(case), **options)


def _card(case: Case, model: Any) -> None:
    case.call("model_card", package.model_card, model, pick_X(case), pick_y(case), ["frobenius_norm"])


def _score(case: Case, model: Any) -> None:
    options = random_options(case, *ALL)
    if case.happens(0.3):
        options |= {"refit_measure": case.pick([None, "margin", 3]), "on_error": case.pick(["raise", "nan", "x", None])}
    scorer = package.CapacityScorer(_measures(case), **options)
    X, y, weights = pick_X(case), pick_y(case), pick_weights(case)
    scores = case.call("CapacityScorer", scorer, model, X, y, sample_weight=weights)
    for key, value in scores.items() if isinstance(scores, dict) else [("", scores)]:
        if scores is not None and type(value) is not float:
            raise Fault(f"CapacityScorer: the score {key} is {value!r}")
    asked = case.pick([repr, copy.deepcopy, lambda scorer: scorer.get_params()])
    case.call("of a scorer", asked, scorer)


def _transform(case: Case, model: Any) -> None:
    scorer = package.CapacityScorer(_measures(case))
    if case.call("CapacityScorer.fit", scorer.fit, pick_X(case), pick_y(case)) is not None:
        models = case.pick([[model], [model, model], model, [], np.array([model, None], object)])
        case.call("transform", scorer.transform, models)
        case.call("names", scorer.get_feature_names_out)


def _spectrum(case: Case, model: Any) -> None:
    options = random_options(case, "loss", "batch_size", "device", "random_state")
    if case.happens(0.3):
        options["n_largest"] = case.pick([None, 1, 3, 0, 2.5, "x", 10**6])
    check_finite(
        "fisher_spectrum", case.call("fisher_spectrum", package.fisher_spectrum, model, pick_X(case), **options)
    )


def _curve(case: Case, model: Any) -> None:
    alphas = case.pick(
        [
            [0.1],
            [0.1, 0.2],
            [],
            0.1,
            [-1],
            ["x"],
            [float("nan")],
            None,
            np.array([0.1]),
            [[0.1]],
            "text",
            [0.0],
            [1e300],
        ]
    )
    options = {
        "n_draws": case.pick([2, 5, 2, 0, 1.5, "x"]),
        **random_options(case, "loss", "max_samples", "batch_size", "device", "random_state"),
    }
    answer = case.call(
        "bicriteria_curve", package.bicriteria_curve, model, pick_X(case), pick_y(case), alphas, **options
    )
    check_finite("bicriteria_curve", answer, infinite=True)


def _conditions(case: Case, model: Any) -> None:
    deltas = case.pick([[0.1], [0.1], [], 0.1, [-1], ["x"], [float("nan")], None, [0.0], [2.0], [1e300]])
    options = random_options(case, "max_samples", "batch_size", "device")
    case.call("interaction_conditions", package.interaction_conditions, model, pick_X(case), deltas=deltas, **options)


CALLS: dict[str, Callable[[Case, Any], None]] = {
    "measure": _measure, "again": _measure, "without y": _without_y, "report": _report, "card": _card, "score": _score,
    "transform": _transform, "spectrum": _spectrum, "curve": _curve, "conditions": _conditions,
}  # fmt: skip
