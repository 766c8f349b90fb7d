"""A hash of parameters and data that is the same in every process."""

from __future__ import annotations

import functools
import hashlib
import json
import types
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity.storage.encoding import encode

__all__ = ["fingerprint"]

_MAX_DEPTH = 30
_LIBRARIES = ("torch", "skorch", "sklearn", "numpy", "scipy", "builtins", "sklearn_capacity", "functools")
_PLAIN = (types.FunctionType, int, float, str, bool, tuple, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def fingerprint(**values: Any) -> str:
    """SHA-256 of named values, in hexadecimal.

    Plain values, arrays and tensors count by content; functions by their code and what it refers to in closures
    and defaults; classes by name, methods and bases; modules by state and by the class, attributes and hooks of each
    submodule; other objects by their attributes. So the hash survives a new process, and changes with a lambda's text.

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
        inner([f"{value.__module__}.{value.__qualname__}", _methods(value), value.__bases__], "class")
    elif isinstance(value, nn.Module):
        _update_module(value, inner)
    elif isinstance(value, types.BuiltinFunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, property):
        inner([value.fget, value.fset, value.fdel], "property")
    elif isinstance(value, staticmethod | classmethod):
        inner(value.__func__, "method")
    elif isinstance(value, weakref.ReferenceType):
        digest.update(b"reference")  # what it refers to counts where it is held, as an LSTM's weights do
    else:
        _update_object(digest, value, name, inner)


def _update_module(module: nn.Module, inner: Any) -> None:
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied = names.setdefault(id(parameter), name)  # equal values train otherwise if they are one tensor
        inner([tied, parameter.requires_grad, parameter], f"parameter {name}")
    inner(dict(module.named_buffers()), "buffers")
    for path, part in module.named_modules(remove_duplicate=False):
        own = {key: item for key, item in vars(part).items() if key not in _OF_EVERY_MODULE}
        if _of_library(type(part)):  # what it keeps beside its settings is its own affair
            own = {key: item for key, item in own.items() if isinstance(item, _PLAIN)}
        hooks = [list(vars(part)[kind].values()) for kind in _HOOKS]
        inner([type(part), dict(sorted(own.items())), hooks], f"module {path}")


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


def _of_library(cls: type) -> bool:
    """Whether a class is known by its name."""
    return cls.__module__.partition(".")[0] in _LIBRARIES


def _methods(cls: type) -> dict[str, Any]:
    """Functions and plain values that a class itself defines, unless a library's name stands for them."""
    if _of_library(cls):
        return {}
    code = (types.FunctionType, property, staticmethod, classmethod)
    return {
        name: item
        for name, item in sorted(vars(cls).items())
        if isinstance(item, code) or (isinstance(item, _PLAIN) and not name.startswith("__"))
    }
