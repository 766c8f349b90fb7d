"""What modules and classes held when they were read last, so that those that have not changed are not read again."""

from __future__ import annotations

import inspect
import itertools
import operator
import types
from typing import Any, NamedTuple

from sklearn_capacity.storage.origins import is_loaded

__all__ = ["Snapshot", "is_shared", "same_objects", "snapshot"]


class Snapshot(NamedTuple):
    """The names and objects of a module or class; each snapshot has another number."""

    number: int
    names: list[str]
    items: list[Any]


_snapshots: dict[Any, Snapshot] = {}
_numbers = itertools.count()


def snapshot(home: types.ModuleType | type) -> Snapshot:
    """The last snapshot, while all names refer to the same objects, else a new one."""
    names, items = [*vars(home)], [*vars(home).values()]
    known = _snapshots.get(home)
    if known is not None and known.names == names and same_objects(known.items, items):
        return known
    new = Snapshot(next(_numbers), names, items)
    if is_shared(home):
        _snapshots[home] = new
    return new


def same_objects(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists hold the same objects in the same order."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


def is_shared(home: types.ModuleType | type) -> bool:
    """Whether others can find a module or class by its name; one of a single object would be kept alive."""
    if isinstance(home, type):
        return getattr(inspect.getmodule(home), home.__name__, None) is home
    return is_loaded(home)
