"""What objects consist of, for a hash: attributes, slots, cells, targets of weak references."""

from __future__ import annotations

import contextvars
import copyreg
import inspect
import operator
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity.storage.origins import is_installed, is_of_library

__all__ = [
    "ATOMS",
    "OF_EVERY_CLASS",
    "REDUCERS",
    "attributes_of",
    "bytes_of",
    "class_attributes",
    "content_of_cell",
    "members_of",
    "reduced",
    "slots_of",
    "targets_of",
    "value_of_variable",
]

#: values that count by content only; of all others, it also counts which of them are one object
ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, np.dtype, np.generic)
OF_EVERY_CLASS = frozenset(vars(type("Empty", (nn.Module,), {}))) | {
    *("__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__slots__"),
}
REDUCERS = ("__reduce__", "__reduce_ex__", "__getstate__")


def targets_of(reference: Any) -> Any:
    """What a weak reference or collection refers to, in a tuple, a dict or a set."""
    if isinstance(reference, weakref.ReferenceType):
        return (reference(),)
    if type(reference) in weakref.ProxyTypes:
        return (reference.__dir__.__self__,)
    return set(reference) if isinstance(reference, weakref.WeakSet) else dict(reference.items())


def bytes_of(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on any device, as bytes."""
    return tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()


def reduced(value: Any) -> list[Any] | None:
    """What pickle would store of an installed class's object, if the class itself defines that."""
    cls = type(value)
    by_class = any(getattr(cls, name) is not getattr(object, name) for name in REDUCERS)
    if not is_installed(cls) or not (by_class or cls in copyreg.dispatch_table):
        return None
    try:
        parts = copyreg.dispatch_table.get(cls, operator.methodcaller("__reduce_ex__", 2))(value)
    except TypeError:  # it cannot be pickled
        return None
    if isinstance(parts, str):  # the name of a function, of which a cached one has more in its attributes
        return None if hasattr(value, "__dict__") else [parts]
    return [list(part) if isinstance(part, Iterator) else part for part in parts]


def members_of(value: Any) -> dict[str, Any]:
    """The public values of an object implemented in C."""
    members = ((name, getattr(value, name)) for name, item in inspect.getmembers(type(value), inspect.isdatadescriptor))
    return {name: item for name, item in members if not name.startswith("_") and isinstance(item, ATOMS)}


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots, too."""
    slots = {name: getattr(value, name) for name in slots_of(value) if hasattr(value, name)}
    return dict(sorted({**getattr(value, "__dict__", {}), **slots}.items()))


def slots_of(value: Any) -> list[str]:
    """The names of the attributes that are not in `__dict__`."""
    return list(copyreg._slotnames(type(value)))  # type: ignore[attr-defined]


def value_of_variable(variable: contextvars.ContextVar) -> Any:
    """What a context variable holds here, or None."""
    try:
        return variable.get()
    except LookupError:  # neither set nor with a default
        return None


def content_of_cell(cell: types.CellType) -> Any:
    """What a variable of a closure holds, or None."""
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def class_attributes(cls: type) -> list[tuple[str, Any]]:
    """The attributes that a class itself defines; none for a library's class, which counts by name."""
    if is_of_library(cls):
        return []
    return [(name, item) for name, item in sorted(vars(cls).items()) if name not in OF_EVERY_CLASS]
