"""A search's results as one readable table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import get_scorer_names

from .._validation import check_instance
from ..measures import MEASURES
from .refit import capacity_column, column, standard_error

__all__ = ["capacity_table"]


def capacity_table(cv_results: Mapping[str, Any]) -> pd.DataFrame:
    """Scores and capacities of every candidate of a search.

    Parameters
    ----------
    cv_results : mapping
        ``cv_results_`` of a fitted search whose ``scoring`` was a `CapacityScorer` of several measures.

    Returns
    -------
    DataFrame
        One row per candidate: its parameters (by their last name, in full where two would be equal), then for each
        score ``test_<name>``, ``test_<name>_se`` (standard error over the folds) and ``train_<name>``, then each
        capacity under its own name: the mean over the training folds, not negated.

    Raises
    ------
    ValueError
        If `cv_results` holds no scores.

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
    check_instance("cv_results", cv_results, Mapping, "the `cv_results_` of a fitted search")
    if not all(isinstance(name, str) for name in cv_results) or "params" not in cv_results:
        raise ValueError(
            f"`cv_results` must be the `cv_results_` of a fitted search, got the keys {list(cv_results)[:5]}."
        )
    keys = [name.removeprefix("mean_test_") for name in cv_results if name.startswith("mean_test_")]
    if not keys:
        raise ValueError("`cv_results` must hold mean_test_ columns; pass the `cv_results_` of a fitted search.")
    table: dict[str, Any] = _parameters(cv_results["params"])
    capacities: dict[str, Any] = {}
    for key in keys:
        name, sign = _unsigned(key)
        if _is_capacity(key):
            capacities[name] = sign * capacity_column(cv_results, key)
            continue
        table[f"test_{name}"] = column(cv_results, f"mean_test_{key}")
        table[f"test_{name}_se"] = standard_error(cv_results, f"test_{key}")
        if f"mean_train_{key}" in cv_results:
            table[f"train_{name}"] = column(cv_results, f"mean_train_{key}")
    return pd.DataFrame(table | capacities)


def _is_capacity(key: str) -> bool:
    """Negated keys that are not scikit-learn scorers, and names of measures; labels of one's own count as scores."""
    return key in MEASURES or (key.startswith("neg_") and key not in get_scorer_names())


def _unsigned(key: str) -> tuple[str, float]:
    if key.startswith("neg_") and _is_capacity(key):
        return key.removeprefix("neg_"), -1.0
    return key, 1.0


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
