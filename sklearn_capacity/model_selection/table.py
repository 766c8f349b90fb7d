"""A search's results as one readable table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import get_scorer_names

from .._validation import check_instance
from ..measures import MEASURES
from ..scoring.requests import directions
from .refit import capacity_column, column, standard_error

__all__ = ["capacity_table"]


def capacity_table(cv_results: Mapping[str, Any], measures: Any = None) -> pd.DataFrame:
    """Tabulate scores and capacities of all candidates of a search.

    Parameters
    ----------
    cv_results : mapping
        ``cv_results_`` of a fitted search whose ``scoring`` was a `CapacityScorer` of several measures.
    measures : default=None
        The scorer's ``measures``, needed if some have your own labels or are `Measure` objects: otherwise those for
        which higher is better cannot be distinguished from scores.

    Returns
    -------
    DataFrame
        One row per candidate: its parameters (by their last name, or in full where this is ambiguous), then for each
        score ``test_<name>``, ``test_<name>_se`` (standard error over the folds) and ``train_<name>``, then each
        capacity under its own name: the mean over the training folds, not negated.

    Raises
    ------
    ValueError
        If `cv_results` has no scores.

    See Also
    --------
    capacity_refit : Chooses among the candidates.
    rank_measures : Which measure orders them like their gaps.
    sklearn_capacity.displays.CapacityPathDisplay : Draws the table.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.model_selection import capacity_table
    >>> capacity_table({
    ...     "params": [{"net__jacobian_penalty": 0.0}],
    ...     "mean_test_accuracy": np.array([0.9]),
    ...     "mean_test_neg_path_norm": np.array([-2.0]),
    ...     "mean_train_neg_path_norm": np.array([-2.0]),
    ... })
       jacobian_penalty  test_accuracy  test_accuracy_se  path_norm
    0               0.0            0.9               0.0        2.0
    """
    check_instance("cv_results", cv_results, Mapping, "the `cv_results_` of a fitted search, not the search")
    if not all(isinstance(name, str) for name in cv_results) or "params" not in cv_results:
        raise ValueError(
            f"`cv_results` must be the `cv_results_` of a fitted search, got the keys {list(cv_results)[:5]}."
        )
    keys = [name.removeprefix("mean_test_") for name in cv_results if name.startswith("mean_test_")]
    if not keys:
        raise ValueError("`cv_results` must have mean_test_ columns; pass the `cv_results_` of a fitted search.")
    better = {} if measures is None else directions(measures)
    table: dict[str, Any] = _parameters(cv_results["params"])
    capacities: dict[str, Any] = {}
    for key in keys:
        sign = _sign(key, better)
        name = key.removeprefix("neg_") if sign < 0 else key
        if sign:
            capacities[name] = sign * capacity_column(cv_results, key)
            continue
        table[f"test_{name}"] = column(cv_results, f"mean_test_{key}")
        table[f"test_{name}_se"] = standard_error(cv_results, f"test_{key}")
        if f"mean_train_{key}" in cv_results:
            table[f"train_{name}"] = column(cv_results, f"mean_train_{key}")
    frame = pd.DataFrame(table | capacities)
    frame.attrs["better"] = {label: direction for label, direction in better.items() if label in capacities}
    return frame


def _sign(key: str, better: Mapping[str, str]) -> float:
    """The sign of the capacity with this key of a scorer; 0 for a score.

    Keys without a given direction count as measures if this package has them, or if negated and not a scikit-learn
    scorer.
    """
    if better.get(key) == "higher":
        return 1.0
    negated = key.startswith("neg_") and key not in get_scorer_names()
    if negated or better.get(key.removeprefix("neg_")) == "lower":
        return -1.0
    return 1.0 if key in MEASURES else 0.0


def _parameters(params: list[dict[str, Any]]) -> dict[str, Any]:
    full = list(dict.fromkeys(name for row in params for name in row))
    short = [name.rsplit("__", 1)[-1] for name in full]
    names = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    columns = {}
    for name, key in zip(names, full, strict=True):
        values = [row.get(key) for row in params]
        numeric = all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values)
        columns[name] = np.array(values) if numeric else pd.Series(values, dtype=object)
    return columns
