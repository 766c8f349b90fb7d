"""Several trained models side by side: their scores, their gaps and their capacities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.utils.parallel import Parallel, delayed
from tqdm import tqdm

from .._validation import NotDefinedError, check_boolean, warn
from ..process_state import keeps_modes
from .capacity import refuse_signed
from .measurement import Session
from .module_estimator import score, scored_estimator
from .outcomes import LeftOutError, check_max_seconds, outcomes, reason_of, warn_of_left_out
from .requests import Request, directions, is_group, parse_with_scores

__all__ = ["compare_capacity"]


def compare_capacity(
    models: Mapping[str, Any] | Sequence[Any],
    X: Any = None,
    y: Any = None,
    measures: Any = "essential",
    *,
    X_test: Any = None,
    y_test: Any = None,
    initial_states: Mapping[str, Any] | Sequence[Any] | None = None,
    loss: str | None = None,
    classes: Any = None,
    log: bool = False,
    max_samples: int | None = None,
    batch_size: int | None = None,
    max_memory: int | str | None = None,
    device: Any = None,
    random_state: int = 0,
    max_seconds: float | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Compare the capacities of several trained models in one table.

    Parameters
    ----------
    models : dict of label to model, or list of models
        Any models that `measure_capacity` accepts, also of different kinds. Models of a list are labelled 0, 1, ...
    X, y : array-like, default=None
        Training data, on which the capacities are measured.
    measures : str, Measure, list of these, dict, "essential", "cheap" or "all", default="essential"
        As in `measure_capacity`; names of scikit-learn's scorers are also allowed.
    X_test, y_test : array-like, default=None
        Test data for the scores. Without a named scorer, classifiers are scored by "accuracy", regressors by "r2".
    initial_states : dict of label to state, or list, default=None
        For each model, or some labels, an `initial_state` as in `measure_capacity`.
    loss, classes, log, max_samples, batch_size, max_memory, device, random_state
        As in `measure_capacity`, the same for all models.
    max_seconds : float, default=None
        For each model, as in `measure_capacity`.
    n_jobs : int, default=None
        Number of models measured at once, as in joblib.
    verbose : int, default=0
        1 shows the progress and, unless `n_jobs` models are measured at once, which measure runs.

    Returns
    -------
    DataFrame
        One row per model. For each score, ``train_<score>``, ``test_<score>`` and their difference ``gap_<score>``;
        then one column per measure, not negated. The value is nan where a measure is not defined for a model, and a
        `CapacityWarning` gives the reason; of "essential", "cheap" and "all", measures defined for no model are
        omitted, as in `measure_capacity`. ``attrs["better"]`` states for each measure whether "lower" or "higher" is
        better. `rank_measures` and the displays accept this table.

    Raises
    ------
    TypeError, ValueError, NotFittedError
        If an entry is not a trained model, or as in `measure_capacity`; the message names the model.

    See Also
    --------
    displays.CapacityComparisonDisplay : Draws the ranks.
    displays.CapacityGapDisplay : Draws the gap over each measure.
    model_selection.rank_measures : Which measure orders models like their gaps.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_capacity import NetworkClassifier, compare_capacity
    >>> X, y = load_iris(return_X_y=True)
    >>> models = {
    ...     "linear": LogisticRegression(max_iter=500).fit(X[::2], y[::2]),
    ...     "network": NetworkClassifier((8,), random_state=0).fit(X[::2], y[::2]),
    ... }
    >>> table = compare_capacity(models, X[::2], y[::2], ["parameter_count"], X_test=X[1::2], y_test=y[1::2])
    >>> list(table.columns), list(table["parameter_count"])
    (['train_accuracy', 'test_accuracy', 'gap_accuracy', 'parameter_count'], [15.0, 67.0])
    """
    named = _labelled("models", models)
    if not named:
        raise ValueError("`models` must hold at least one trained model, got none.")
    check_max_seconds(max_seconds)
    states = _initial_states(initial_states, named)
    requests, scores = parse_with_scores(measures)
    if check_boolean("log", log) and not is_group(measures):
        refuse_signed(requests)
    if (X_test is None) != (y_test is None):
        raise ValueError("`X_test` and `y_test` must be given together, got only one of them.")
    if X is None and (scores or X_test is not None):
        raise ValueError("`X` must be given, got None: scores need the training data too.")
    shared = {"loss": loss, "classes": classes, "max_samples": max_samples, "batch_size": batch_size}
    shared |= {"max_memory": max_memory, "device": device, "random_state": random_state}
    shared["verbose"] = verbose if n_jobs in (None, 1) else 0
    how = {"group": measures if is_group(measures) else None, "log": log, "max_seconds": max_seconds}
    tasks = [
        delayed(_row)(label, model, (X, y), (X_test, y_test), requests, scores, how, {**shared, "initial_state": state})
        for (label, model), state in zip(named.items(), states, strict=True)
    ]
    rows = Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
    measured = list(tqdm(rows, total=len(tasks), desc="models", disable=not verbose))
    remarks = [(label, *remark) for label, (_, some) in zip(named, measured, strict=True) for remark in some]
    _warn_of_missing(remarks, max_seconds)
    return _table(named, [row for row, _ in measured], requests, measures)


def _labelled(name: str, given: Any) -> dict[Any, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, list | tuple):
        return dict(enumerate(given))
    raise TypeError(f"`{name}` must be a list, or a dict with a label for each entry, got {type(given).__name__}.")


def _initial_states(given: Any, models: dict[Any, Any]) -> list[Any]:
    if given is None:
        return [None] * len(models)
    states = _labelled("initial_states", given)
    unknown = [label for label in states if label not in models]
    if unknown:
        raise ValueError(
            f"`initial_states` must have the labels of `models` ({', '.join(map(repr, models))}), got {unknown[0]!r}."
        )
    return [states.get(label) for label in models]


@keeps_modes
def _row(
    label: Any,
    model: Any,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    requests: Sequence[Request],
    scores: Mapping[str, str],
    how: dict[str, Any],
    options: dict[str, Any],
) -> tuple[dict[str, float], list[tuple[str, Exception]]]:
    """Values of one model by column, and the entries without a value, each with its error."""
    try:
        session = Session(model, *train, **options)
    except NotDefinedError as error:
        return {}, [(request.label, error) for request in requests]
    except (TypeError, ValueError) as error:
        kind = next(k for k in (NotFittedError, TypeError, ValueError) if isinstance(error, k))
        raise kind(f"Model {label!r}: {error}") from error
    row: dict[str, float] = {}
    remarks: list[tuple[str, Exception]] = []
    if not scores and test[0] is not None:
        scores = {"r2": "r2"} if session.task == "regression" else {"accuracy": "accuracy"}
    estimator = scored_estimator(model, session, batch_size=options["batch_size"], device=options["device"])
    for name, scorer in scores.items():
        try:
            row |= dict(_scores(name, scorer, estimator, train, test))
        except Exception as error:
            remarks.append((name, error))
    log = how["log"]
    requests = [request for request in requests if not (log and request.measure.signed)]
    for request, outcome in outcomes(session, requests, verbose=options["verbose"], **how):
        if isinstance(outcome, Exception):
            if how["group"] is None or session.unexpected(outcome, request):
                remarks.append((request.label, outcome))
        else:
            row[request.label] = outcome.log() if log else outcome.value
    return row, remarks


def _scores(name: str, scorer: str, estimator: Any, *parts: tuple[Any, Any]) -> Iterator[tuple[str, float]]:
    values = [score(scorer, estimator, X, y) for X, y in parts if X is not None]
    yield from zip((f"train_{name}", f"test_{name}"), values, strict=False)
    if len(values) == 2:
        yield f"gap_{name}", values[0] - values[1]


def _warn_of_missing(remarks: list[tuple[Any, str, Exception]], max_seconds: float | None) -> None:
    """Warn of entries without a value, once per reason."""
    reasons: dict[tuple[Any, str], list[str]] = {}
    warn_of_left_out(sorted({name for _, name, error in remarks if isinstance(error, LeftOutError)}), max_seconds)
    for label, name, error in remarks:
        if isinstance(error, LeftOutError):
            continue
        reasons.setdefault((label, reason_of(error)), []).append(repr(name))
    models: dict[tuple[str, str], list[str]] = {}
    for (label, reason), names in reasons.items():
        models.setdefault((", ".join(names), reason), []).append(repr(label))
    for (those, reason), labels in models.items():
        warn(f"No value of {those} for model {', '.join(labels)}: {reason}")


def _table(
    models: Mapping[Any, Any], rows: list[dict[str, float]], requests: Sequence[Request], measures: Any
) -> pd.DataFrame:
    labels = [request.label for request in requests]
    names = list(dict.fromkeys(key for row in rows for key in row if key not in labels))
    parts = ("train_", "test_", "gap_")
    scores = sorted(names, key=lambda key: next(i for i, part in enumerate(parts) if key.startswith(part)))
    table = pd.DataFrame(rows, columns=[*scores, *labels], dtype=np.float64)
    table.index = pd.Index(list(models), name="model")
    if is_group(measures):
        table = table.drop(columns=[label for label in labels if table[label].isna().all()])
    better = directions(measures)
    table.attrs["better"] = {label: better[label] for label in labels if label in table}
    return table
