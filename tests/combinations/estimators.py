"""Cases of estimators: random parameters, data and module, then the calls that follow a fit."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from typing import Any

import cloudpickle
import numpy as np
import torch
from sklearn.base import clone

import sklearn_capacity as package

from .case import RANDOM_NUMBERS, REFUSALS, Case, Fault, check_finite, state_of
from .data import pick_weights, pick_X, pick_y
from .values import anything, parameters, pick_module

ESTIMATORS = [
    package.NetworkClassifier,
    package.NetworkRegressor,
    package.JacobianRegularizedClassifier,
    package.JacobianRegularizedRegressor,
    package.GeneralizationLayerClassifier,
    package.GeneralizationLayerRegressor,
]
#: where a value of anything would only make a network, or a training, that is too large to wait for
SIZES = ("hidden_layer_sizes", "max_epochs")
USUAL = {"hidden_layer_sizes": (3,), "max_epochs": 1, "random_state": 0, "dtype": "float32"}
OFFERED = parameters()  # only its keys and lengths are used; every case makes its own


def _is_large(value: Any) -> bool:
    try:
        return bool(np.any(np.asarray(value, float) > 100))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return isinstance(value, int)


def pick_parameters(case: Case, kind: type) -> dict[str, Any]:
    """Parameters of an estimator, a few of which are unusual."""
    names = sorted(set(kind._get_param_names()) - {"module"})
    params = {name: value for name, value in USUAL.items() if case.happens(0.9)}
    params["max_epochs"] = 1
    if case.happens(0.35):
        params["module"] = pick_module(case)
        params.pop("hidden_layer_sizes", None)
    values, objects = parameters(), anything()
    for name in case.random.sample(names, case.random.choice([0, 1, 1, 2, 2, 3, 4])):
        value = case.pick(objects if case.happens(0.15) else values[name], name)
        if name in SIZES and _is_large(value):
            continue
        params[name] = value
    return params


def run_case(case: Case) -> None:
    """Fit an estimator of random parameters, then use it."""
    torch.manual_seed(0)
    kind = case.pick(ESTIMATORS)
    case.choices.append(kind.__name__)
    params = pick_parameters(case, kind)
    estimator = case.call("constructor", kind, **params)
    given = params.get("module")
    before = state_of(given)
    _allow_errors_of_folders(case, params)
    X, y, weights = pick_X(case), pick_y(case), pick_weights(case)
    if case.happens(0.3):
        _ask(case, estimator)
    if case.happens(0.2):
        classes = (np.unique([0, 1, 2]),) if hasattr(estimator, "decision_function") and case.happens(0.8) else ()
        fitted = _partial_fit(case, estimator, X, y, *classes)
    else:
        fitted = case.call("fit", estimator.fit, X, y, sample_weight=weights)
    if state_of(given) != before:
        raise Fault("fit changed the user's module")
    if fitted is None:
        if "net_" in vars(estimator):
            raise Fault("a refused fit left a network behind")
        case.call("predict before fit", estimator.predict, X)
        _ask(case, estimator)
        return
    _use(case, estimator, X, y)


def _allow_errors_of_folders(case: Case, params: dict[str, Any]) -> None:
    if params.get("checkpoint_dir") is not None:
        case.refusals = (*REFUSALS, OSError)  # of a folder that cannot be


def _partial_fit(case: Case, estimator: Any, X: Any, y: Any, *classes: Any) -> Any:
    try:
        method = estimator.partial_fit
    except AttributeError as error:  # as documented
        if "early_stopping" not in f"{error} {error.__cause__}":
            raise Fault(f"partial_fit: {error!r}") from error
        return None
    return case.call("partial_fit", method, X, y, *classes)


def _ask(case: Case, estimator: Any) -> None:
    """What a notebook or a search asks of an estimator, fitted or not."""
    name = case.pick(["repr", "get_params", "clone", "pickle", "deepcopy", "html"])
    asked = {
        "repr": lambda: repr(estimator),
        "get_params": estimator.get_params,
        "clone": lambda: clone(estimator),
        "pickle": lambda: pickle.loads(pickle.dumps(estimator)),
        "deepcopy": lambda: copy.deepcopy(estimator),
        "html": lambda: estimator._repr_html_() if hasattr(estimator, "_repr_html_") else "",
    }
    try:
        case.call(name, asked[name])
    except Fault:
        if _can_copy(estimator.get_params()):
            raise


def _can_copy(params: dict[str, Any]) -> bool:
    """Whether the parameters can be copied, which is all that scikit-learn's `clone` does."""
    try:
        copy.deepcopy(params), pickle.loads(cloudpickle.dumps(params))
    except Exception:
        return False
    return True


def _use(case: Case, estimator: Any, X: Any, y: Any) -> None:
    """Predictions are finite, copies predict the same, and nothing changes the network."""
    before = state_of(estimator.module_)
    random = "module=random" in case.choices
    case.may_change = (RANDOM_NUMBERS,) if random else ()  # which its predictions depend on
    predicted = case.call("predict", estimator.predict, X)
    if predicted is not None:
        check_finite("predict", predicted)
    for name in ("predict_proba", "predict_log_proba", "decision_function"):
        if hasattr(estimator, name) and case.happens(0.4):
            answer = case.call(name, getattr(estimator, name), X)
            check_finite(name, answer)
    if case.happens(0.5):
        check_finite("score", case.call("score", estimator.score, X, y))
    if case.happens(0.5):
        other = pick_X(case, hostile=0.8)
        answer = case.call("predict others", estimator.predict, other)
        check_finite("predict others", answer)
    if case.happens(0.5):
        _ask(case, estimator)
    if case.happens(0.3):
        copied = case.call("pickle", lambda: pickle.loads(pickle.dumps(estimator)))
        _same(case, copied, X, predicted, random)
    if case.happens(0.3):
        copied = case.call("save and load", _saved, estimator)
        _same(case, copied, X, predicted, random)
    if case.happens(0.2):
        answer = case.call("measure_capacity", package.measure_capacity, estimator, X, y, "frobenius_norm")
        check_finite("measure_capacity", answer)
    if case.happens(0.05):
        case.call("model_card", package.model_card, estimator, measures=["frobenius_norm"])
    if state_of(estimator.module_) != before:
        raise Fault("a call changed the network")
    if case.happens(0.25):
        _again(case, estimator, X, y)


def _saved(estimator: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        package.save(estimator, path)
        module = estimator.module
        return package.load(path, module=module) if callable(module) else package.load(path)


def _same(case: Case, copied: Any, X: Any, predicted: Any, random: bool) -> None:
    if copied is None or predicted is None or random:
        return
    answer = case.call("predict of a copy", copied.predict, X)
    if answer is None or not np.array_equal(answer, predicted):
        raise Fault("a copy predicts something else")


def _again(case: Case, estimator: Any, X: Any, y: Any) -> None:
    """Change a parameter of a fitted estimator, and fit again."""
    names = sorted(set(estimator._get_param_names()) - {"module", *SIZES})
    name = case.pick(names)
    changed = {name: case.pick(parameters()[name], f"then {name}")}
    _allow_errors_of_folders(case, changed)
    case.call("set_params", estimator.set_params, **changed)
    if case.happens(0.5):
        estimator.warm_start = True
    fitted = case.call("fit again", estimator.fit, X, y) if case.happens(0.7) else _partial_fit(case, estimator, X, y)
    if fitted is not None:
        check_finite("predict again", case.call("predict again", estimator.predict, X))
