"""A hash of parameters and data that is the same in every process."""

from __future__ import annotations

import functools
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity.storage.encoding import encode

__all__ = ["fingerprint"]

_MAX_DEPTH = 30


def fingerprint(**values: Any) -> str:
    """SHA-256 of named values, in hexadecimal.

    Plain values, arrays and tensors count by content; functions by their code and what it refers to in closures
    and defaults; classes by name and their own methods; modules by structure and state; other objects by their
    attributes. So the hash survives a new process, and changes with a lambda's text.

    Raises
    ------
    TypeError
        If a value has no content that can be told, such as an open file or a compiled function; the message names it.

    Examples
    --------
    >>> from sklearn_capacity.storage import fingerprint
    >>> fingerprint(rate=0.1) == fingerprint(rate=0.1) != fingerprint(rate=0.2)
    True
    """
    digest = hashlib.sha256()
    for name in sorted(values):
        _update(digest, values[name], name, ())
    return digest.hexdigest()


def _update(digest: Any, value: Any, name: str, above: tuple[int, ...]) -> None:
    """Feed one value, with its name and kind, so that neighbours cannot be taken for each other."""
    digest.update(f"\0{name}\1{type(value).__module__}.{type(value).__qualname__}\2".encode())
    if id(value) in above:  # a cycle: an object among its own attributes
        digest.update(f"above {above.index(id(value))}".encode())
        return
    if len(above) > _MAX_DEPTH:
        raise TypeError(f"`{name}` is nested too deeply to be hashed.")
    above = (*above, id(value))

    def inner(part: Any, label: str) -> None:
        _update(digest, part, f"{name}.{label}", above)

    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data if value.size else b"")
    elif isinstance(value, Tensor):
        inner(_bytes(value), f"{value.dtype}{tuple(value.shape)}")
    elif isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner(key, "key")
            inner(item, str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            inner(item, str(index))
    elif isinstance(value, set | frozenset):
        for item in sorted(value, key=repr):
            inner(item, "element")
    else:
        _update_other(digest, value, name, inner)
    digest.update(b"\3")


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()


def _update_other(digest: Any, value: Any, name: str, inner: Any) -> None:
    if isinstance(value, functools.partial):
        inner([value.func, value.args, value.keywords], "partial")
    elif isinstance(value, types.MethodType):
        inner([value.__func__, value.__self__], "method")
    elif isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        inner([value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells], "function")
    elif isinstance(value, types.CodeType):
        inner([value.co_code, value.co_names, value.co_varnames, list(value.co_consts)], "code")
    elif isinstance(value, type):
        inner([f"{value.__module__}.{value.__qualname__}", _methods(value)], "class")
    elif isinstance(value, nn.Module):
        inner([f"{type(value).__module__}.{type(value).__qualname__}", repr(value)], "module")
        inner({**dict(value.named_parameters(remove_duplicate=False)), **dict(value.named_buffers())}, "state")
        inner(type(value), "class")
    elif isinstance(value, types.BuiltinFunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        _update_object(digest, value, name, inner)


def _update_object(digest: Any, value: Any, name: str, inner: Any) -> None:
    try:
        digest.update(json.dumps(encode(value, name=name)).encode())
        return
    except TypeError as error:
        if isinstance(value, np.ndarray):  # of objects
            inner([value.shape, value.ravel().tolist()], "array")
            return
        if isinstance(value, str | int | float):  # of a class of its own, such as an enumeration
            digest.update(repr(value).encode())
            return
        if not hasattr(value, "__dict__"):
            raise TypeError(f"`{name}` is {value!r}, which cannot be hashed.") from error
    inner(type(value), "class")
    inner(dict(sorted(vars(value).items())), "attributes")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _methods(cls: type) -> dict[str, Any]:
    """Functions and plain values that a class itself defines; what libraries hold is known by its name."""
    root = cls.__module__.partition(".")[0]
    if root in ("torch", "skorch", "sklearn", "numpy", "scipy", "builtins", "sklearn_capacity", "functools"):
        return {}
    plain = (types.FunctionType, int, float, str, bool, tuple, type(None))
    kept = {name: item for name, item in vars(cls).items() if isinstance(item, plain)}
    for skipped in ("__module__", "__doc__", "__firstlineno__", "__static_attributes__"):
        kept.pop(skipped, None)
    return dict(sorted(kept.items()))
