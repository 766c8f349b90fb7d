"""The sources of displays: several models with their data, histories of trainings, and searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["history_of", "named_data", "results_of"]

#: Where models keep the fitted model that they contain.
WRAPPED = ("best_estimator_", "regressor_", "estimator_", "estimator")


def named_data(models: Any) -> Mapping[str, tuple[Any, Any, Any]]:
    """The models with their data by name, or raise."""
    if not isinstance(models, Mapping):
        raise TypeError(f"`models` must be a dict of name to (model, X, y), got {type(models).__name__}.")
    for name, entry in models.items():
        if not isinstance(entry, tuple | list) or len(entry) != 3:
            raise TypeError(
                f"`models` must be a dict of name to (model, X, y), got {type(entry).__name__} for {name!r}."
            )
    return models


def results_of(search: Any) -> Mapping[str, Any]:
    """The ``cv_results_`` of a fitted search, or raise."""
    results = getattr(search, "cv_results_", None)
    if not isinstance(results, Mapping):
        what = f"an unfitted {type(search).__name__}" if hasattr(search, "refit") else type(search).__name__
        raise TypeError(f"`search` must be a fitted search such as GridSearchCV, got {what}.")
    return results


def history_of(model: Any) -> Any:
    """The history of a fitted network, also at the end of a Pipeline or a search, or raise."""
    inner = model
    while not (history := getattr(inner, "history_", None) or getattr(inner, "history", None)):
        nested = [inner.steps[-1][1]] if getattr(inner, "steps", None) else []
        nested += [getattr(inner, name) for name in WRAPPED if hasattr(inner, name)]
        if not nested:
            raise TypeError(
                "`estimator` must be a fitted estimator of this package or a fitted skorch net, got "
                f"{type(model).__name__}. Pass the history of your own training loop to the class itself."
            )
        inner = nested[0]
    return history
