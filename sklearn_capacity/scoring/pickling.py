"""Pickling of objects that contain a user's functions, for other processes."""

from __future__ import annotations

import copy
from typing import Any

import cloudpickle

__all__ = ["TravelsByValue"]


class TravelsByValue:
    """A mixin that pickles lambdas and a notebook's functions by value, not by an importable name."""

    def _state(self) -> dict[str, Any]:
        return dict(super().__getstate__())  # type: ignore[call-overload]

    def __getstate__(self) -> dict[str, Any]:
        return {"by_value": cloudpickle.dumps(self._state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = cloudpickle.loads(state["by_value"])
        inherited = getattr(super(), "__setstate__", None)
        vars(self).update(state) if inherited is None else inherited(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # within a process a function stays the same object and keeps the user's globals
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(self._state(), memo))
        return copied
