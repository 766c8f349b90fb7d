"""What installed functions add to a hash, so that those that have not changed are not read again.

Functions are compared by the objects that make them up and to which they refer, which takes a tenth of the time. Only
those with parts that cannot change are remembered, and none that holds code of the user, which would be kept alive.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import torch
from torch.torch_version import TorchVersion

from sklearn_capacity.storage.contents import content_of_cell
from sklearn_capacity.storage.origins import home_of, is_of_user, version_of
from sklearn_capacity.storage.references import imported_now, reads_environment
from sklearn_capacity.storage.snapshots import same_objects, snapshot

__all__ = ["KnownFunction", "Numbers", "Step", "known_function", "number_of", "parts_of", "remember"]

#: number of the snapshot of each module that one walk has seen, by its id
Numbers = dict[int, int]
Step = tuple[bytes, Any, str]
_UNCHANGING = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, types.CodeType, TorchVersion})
_CODE = (types.FunctionType, type, types.ModuleType)
_MOST = 20_000


class KnownFunction(NamedTuple):
    """A function's parts and surroundings, and what it adds to a hash.

    Attributes
    ----------
    parts : list of objects
    homes : list of (module, number of its snapshot)
        Where the function's names were looked up.
    steps : list of (bytes, value, name)
        What is hashed, each with the reference that follows.
    last : bytes
        What is hashed after the last reference.
    names : frozenset of str
        All names in its code.
    """

    parts: list[Any]
    homes: list[tuple[types.ModuleType, int]]
    steps: list[Step]
    last: bytes
    names: frozenset[str]


_known: dict[tuple[types.FunctionType, bool], KnownFunction] = {}


def known_function(function: types.FunctionType, in_package: bool, numbers: Numbers) -> KnownFunction | None:
    """What is remembered of a function, unless it or anything to which it refers by name has changed.

    `in_package` says whether a package refers to it.
    """
    known = _known.get((function, in_package))
    if known is None or not _has_same_homes(known, numbers):
        return None
    return known if same_objects(parts_of(function), known.parts) else None


def remember(read: list[tuple[types.FunctionType, bool, KnownFunction]]) -> None:
    """Keep what installed functions add, if it can be told whether they have changed, and none has meanwhile."""
    numbers: Numbers = {}
    for function, in_package, known in read:
        if home_of(function) is None or reads_environment(function) or not all(map(_is_unchanging, known.parts)):
            continue
        if _has_same_homes(known, numbers):
            if len(_known) >= _MOST:
                _known.clear()
            _known[function, in_package] = known


def parts_of(function: types.FunctionType) -> list[Any]:
    """The objects of which a function consists, and the modules that it may import."""
    by_name = function.__kwdefaults__ or {}
    cells = map(content_of_cell, function.__closure__ or ())
    return [
        *(function.__qualname__, function.__module__, version_of(function.__module__), function.__code__),
        *(function.__defaults__, len(by_name), *by_name, *by_name.values(), *cells),
        *(*vars(function), *vars(function).values(), *imported_now(function)),
    ]


def number_of(home: types.ModuleType, numbers: Numbers) -> int:
    """The number of a module's snapshot, which is taken once in a walk."""
    if id(home) not in numbers:
        numbers[id(home)] = snapshot(home).number
    return numbers[id(home)]


def _has_same_homes(known: KnownFunction, numbers: Numbers) -> bool:
    return all(number_of(home, numbers) == number for home, number in known.homes)


def _is_unchanging(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_unchanging, value))
    return type(value) in _UNCHANGING or (isinstance(value, _CODE) and not is_of_user(value))
