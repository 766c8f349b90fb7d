"""Cases of scikit-learn's tools around estimators and scorers: searches, validation, ensembles, pipelines."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingClassifier, BaggingRegressor, VotingClassifier
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
    validation_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sklearn_capacity as package
from sklearn_capacity.model_selection import capacity_refit, capacity_table

from .case import REFUSALS, Case
from .data import CLASSES, FEATURES, normal, pick_X, pick_y
from .estimators import ESTIMATORS, SIZES, USUAL
from .measures import CHEAP, random_options
from .modules import FACTORIES, MODULES
from .values import anything, parameters

N = 18

#: an estimator inside another one, and what precedes the names of its parameters there
WRAPPERS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "alone": lambda model: (model, ""),
    "pipeline": lambda model: (make_pipeline(StandardScaler(), model), f"{type(model).__name__.lower()}__"),
    "bagging": lambda model: (_bagging(model), "estimator__"),
    "calibrated": lambda model: (CalibratedClassifierCV(model, cv=2), "estimator__"),
    "one against the rest": lambda model: (OneVsRestClassifier(model), "estimator__"),
    "voting": lambda model: (VotingClassifier([("a", model)]), "a__"),
    "scaled target": lambda model: (TransformedTargetRegressor(model, transformer=StandardScaler()), "regressor__"),
}
#: What scikit-learn itself raises for wrong names of scores, parameters and methods.
OF_SCIKIT_LEARN = (*REFUSALS, KeyError, IndexError, AttributeError, NotImplementedError)


#: Modules that `clone` cannot copy, in scikit-learn's own code.
UNCOPIED = ("cannot be copied", "old weight norm", "pruned")


def _bagging(model: Any) -> Any:
    return (BaggingClassifier if hasattr(model, "decision_function") else BaggingRegressor)(model, 2)


def _of_numpy(data: Any) -> Any:
    """Data that reaches this package: scikit-learn fails at odd tensors before."""
    return np.zeros(N) if isinstance(data, torch.Tensor) else data


def _scorer(case: Case, names: list[str]) -> Any:
    measures = case.pick([names, names[0], "cheap", {"a": names[0]}, ["nothing"], [], {}], "measures")
    options = random_options(
        case, "loss", "log", "max_samples", "batch_size", "classes", "random_state", "max_memory", "max_seconds"
    )
    options["on_error"] = case.pick(["nan", "raise"])
    if case.happens(0.2):
        options["refit_measure"] = case.pick([names[0], f"neg_{names[0]}", "nothing"], "refit_measure")
    return package.CapacityScorer(measures, **options)


def _scoring(case: Case, scorer: Any, name: str) -> Any:
    return case.pick(
        {
            "the scorer": scorer,
            "a dict": {"accuracy": "accuracy", "capacity": scorer},
            "R²": "r2",
            "none": None,
            "a measure's name": {"a": name},
        },
        "scoring",
    )


def _refit(case: Case, name: str) -> Any:
    rules = {
        f"{score} within {rule}": capacity_refit(score, f"neg_{name}", rule=rule)
        for score in ("accuracy", "score", "nothing")
        for rule in ("one_standard_error", 0.0, -1.0, "best")
    }
    others = [True, False, "accuracy", f"neg_{name}", name, "score", lambda results: 0, lambda results: "first"]
    return case.pick({**rules, **{str(other): other for other in others}}, "refit")


def _grid(case: Case, before: str) -> dict[str, list[Any]]:
    names = sorted(set(USUAL) | {"optimizer", "learning_rate", "dropout", "module", "callbacks", "penalty", "dtype"})
    name = case.pick([*names, "nothing"], "searched")
    if name in SIZES:
        values: list[Any] = [1, 2]
    elif name == "module":
        values = [case.pick(MODULES, "module")(), case.pick(FACTORIES, "module")()]
    else:
        offered = parameters().get(name, [0, 1])
        values = [case.pick(offered, "value"), case.pick(offered, "value")]
    return {before + name: values}


def run_case(case: Case) -> None:
    """One search, or another call that fits several models."""
    torch.manual_seed(0)
    kind = case.pick(ESTIMATORS)
    case.choices.append(kind.__name__)
    base, before = case.pick(WRAPPERS, "inside")(kind(**USUAL))
    target = np.sin(np.arange(N)) if "Regressor" in kind.__name__ else np.arange(N) % CLASSES
    X = _of_numpy(pick_X(case)) if case.happens(0.2) else normal(N, FEATURES)
    y = _of_numpy(pick_y(case)) if case.happens(0.2) else target
    names = case.random.sample(CHEAP, 2)
    scorer = _scorer(case, names)
    options = {"scoring": _scoring(case, scorer, names[0]), "cv": case.pick([2, 3])}
    options["error_score"] = case.pick(["raise", np.nan])
    grid = _grid(case, before)
    uncopied = any(text in " ".join(case.choices) for text in UNCOPIED)
    case.refusals, case.shortest = (*OF_SCIKIT_LEARN, *([RuntimeError] * uncopied)), 0
    case.may_change = ("torch's random numbers",) if "=random" in " ".join(case.choices) else ()
    call = case.pick(["grid", "random", "validate", "predict", "learning curve", "validation curve"], "call")
    if call in ("grid", "random"):
        options |= {"refit": _refit(case, names[0]), "return_train_score": case.happens(0.5)}
        search = (
            GridSearchCV(base, grid, **options)
            if call == "grid"
            else RandomizedSearchCV(base, grid, n_iter=1, **options)
        )
        if case.call("search", search.fit, X, y) is not None:
            _use(case, search, X, y, names)
        return
    name, values = next(iter(grid.items()))
    plain = {key: options[key] for key in ("cv", "error_score")} | {"scoring": case.pick([None, scorer])}
    calls: dict[str, Callable[[], Any]] = {
        "validate": lambda: cross_validate(base, X, y, return_estimator=True, **options),
        "predict": lambda: cross_val_predict(base, X, y, cv=2),
        "learning curve": lambda: learning_curve(base, X, y, train_sizes=[0.5, 1.0], **plain),
        "validation curve": lambda: validation_curve(base, X, y, param_name=name, param_range=values, **plain),
    }
    case.call(call, calls[call])


def _use(case: Case, search: Any, X: Any, y: Any, names: list[str]) -> None:
    """A finished search is a table and a model."""
    case.refusals, case.shortest = REFUSALS, 10
    case.call("capacity_table", capacity_table, search.cv_results_)
    if hasattr(search, "best_estimator_"):
        case.call("measure the search", package.measure_capacity, search, X, y, names)
        case.call("report on the best", package.capacity_report, search.best_estimator_, X, y, names)
        case.call("score with anything", package.CapacityScorer(names), search, X, case.pick(anything()))
    try:
        stored = pickle.dumps(search)
    except Exception:  # of functions and modules that cannot be pickled
        return
    case.call("unpickle", pickle.loads, stored)
