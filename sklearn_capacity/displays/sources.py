"""What displays are made from: several models with their data, and searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["named_data", "results_of"]


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
        raise TypeError(f"`search` must be a fitted search such as GridSearchCV, got {type(search).__name__}.")
    return results
