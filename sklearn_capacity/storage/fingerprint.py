"""A hash of parameters and data that is the same in every process."""

from __future__ import annotations

import collections
import dis
import enum
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
import types
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity.storage.encoding import encode

__all__ = ["complete_fingerprint", "fingerprint"]

_MAX_DEPTH = 30
_LIBRARIES = (
    *("torch", "skorch", "sklearn", "numpy", "scipy", "sklearn_capacity"),
    *sys.stdlib_module_names.difference({"__main__"}),
)
#: modules whose functions depend on their arguments only, as far as a forward pass uses them
_STEADY = frozenset(
    "torch torchvision numpy sklearn_capacity builtins _operator __future__ math cmath functools itertools collections "
    "operator typing abc copy enum dataclasses numbers string warnings contextlib".split()
)
#: names in code that may read more than values in memory; attributes of these names count, too
_UNSTEADY = frozenset(
    "open input eval exec globals locals vars id __import__ import_module modules environ os sys random backends "
    "get_rng_state initial_seed".split()
)
_PLAIN = (types.FunctionType, int, float, str, bool, tuple, type(None))
#: types of global values in a function's code that do not change while a program runs
_CONSTANTS = (int, float, complex, str, bytes, bool, type(None), enum.Enum, torch.dtype, np.dtype, np.generic)
_CODE = (types.FunctionType, type, functools.partial)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_OF_EVERY_CLASS = frozenset(vars(type("Empty", (nn.Module,), {}))) | {
    *("__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__slots__"),
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def fingerprint(**values: Any) -> str:
    """SHA-256 of named values, in hexadecimal.

    Plain values, arrays and tensors count by content. Functions count by their code and by the functions, classes and
    constants that it refers to (in closures, defaults and global names), recursively; classes by name, attributes and
    bases; modules by state and by the class, attributes and hooks of each submodule; other objects by their attributes.
    So the hash is the same in a new process, and changes with the text of a lambda. Global values that a program may
    change while it runs, such as a list, do not count if only a function's code refers to them.

    Raises
    ------
    TypeError
        If a value has no content that can be hashed, such as an open file or a compiled function; the message names it.

    Examples
    --------
    >>> from sklearn_capacity.storage import fingerprint
    >>> fingerprint(rate=0.1) == fingerprint(rate=0.1) != fingerprint(rate=0.2)
    True
    """
    return _hexdigest(_Digest(), values)


def complete_fingerprint(**values: Any) -> str:
    """Like `fingerprint`, but everything counts that the code of functions can read, also what may change meanwhile.

    Raises
    ------
    TypeError
        If that cannot be known: a value without content, the code of a library other than torch and NumPy, or code that
        may read the environment, a file, a clock or random numbers.

    Examples
    --------
    >>> from sklearn_capacity.storage import complete_fingerprint
    >>> slopes = [0.1]
    >>> before = complete_fingerprint(code=lambda x: slopes[0] * x)
    >>> slopes[0] = 0.2
    >>> before == complete_fingerprint(code=lambda x: slopes[0] * x)
    False
    """
    return _hexdigest(_Digest(complete=True), values)


def _hexdigest(digest: _Digest, values: Mapping[str, Any]) -> str:
    for name in sorted(values):
        _update(digest, values[name], name, ())
    while digest.references:  # referenced code: each once and not nested, so that references may be cyclic
        name, value = digest.references.popleft()
        _update_alone(digest, value, name)
    return digest.hexdigest()


class _Digest:
    """SHA-256, and the code that remains to be hashed; `complete` as in `complete_fingerprint`."""

    def __init__(self, *, complete: bool = False) -> None:
        self.complete = complete
        self._sha = hashlib.sha256()
        self.update, self.hexdigest = self._sha.update, self._sha.hexdigest
        self.references: collections.deque[tuple[str, Any]] = collections.deque()
        self._seen: dict[int, Any] = {}  # keeps the objects alive, and thus their ids valid

    def refer(self, value: Any, name: str) -> None:
        """Hash the value's kind now; hash code or a constant separately later."""
        self.update(f"\0{name}\4{type(value).__module__}.{type(value).__qualname__}\5".encode())
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self.references.append((name, value))


def _update(digest: _Digest, value: Any, name: str, above: tuple[int, ...]) -> None:
    """Hash one value with its name and kind, so that adjacent values cannot be confused."""
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


def _update_other(digest: _Digest, value: Any, name: str, inner: Any) -> None:
    if isinstance(value, functools.partial):
        inner([value.func, value.args, value.keywords], "partial")
    elif isinstance(value, enum.Enum):
        inner([f"{type(value).__module__}.{type(value).__qualname__}", value.name, value.value], "member")
    elif isinstance(value, types.MethodType):
        inner([value.__func__, value.__self__], "method")
    elif isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        inner([value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells], "function")
        for label, item in (_all_named_in if digest.complete else _named_in)(value):
            digest.refer(item, label)
    elif isinstance(value, types.ModuleType):
        digest.update(value.__name__.encode())
    elif isinstance(value, types.CodeType):
        inner([value.co_code, value.co_names, value.co_varnames, list(value.co_consts)], "code")
    elif isinstance(value, type):
        inner([f"{value.__module__}.{value.__qualname__}", value.__bases__], "class")
        for label, item in _attributes(value):
            _update_attribute(digest, item, f"{name}.{label}", inner)
    elif isinstance(value, nn.Module):
        _update_module(value, inner)
    elif isinstance(value, types.BuiltinFunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, property):
        inner([value.fget, value.fset, value.fdel], "property")
    elif isinstance(value, staticmethod | classmethod):
        inner(value.__func__, "method")
    elif isinstance(value, weakref.ReferenceType):
        digest.update(b"reference")  # its target counts where it is stored, such as an LSTM's weights
    else:
        _update_object(digest, value, name, inner)


def _update_module(module: nn.Module, inner: Any) -> None:
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied = names.setdefault(id(parameter), name)  # equal values train differently if they are one tensor
        inner([tied, parameter.requires_grad, parameter], f"parameter {name}")
    inner(dict(module.named_buffers()), "buffers")
    for path, part in module.named_modules(remove_duplicate=False):
        attributes = {key: item for key, item in vars(part).items() if key not in _OF_EVERY_MODULE}
        if _of_library(type(part)):  # its attributes other than settings do not matter
            attributes = {
                key: item for key, item in attributes.items() if isinstance(item, (*_PLAIN, types.MethodType))
            }
        hooks = [list(vars(part)[kind].values()) for kind in _HOOKS]
        inner([type(part), dict(sorted(attributes.items())), hooks], f"module {path}")


def _update_object(digest: Any, value: Any, name: str, inner: Any) -> None:
    try:
        digest.update(json.dumps(encode(value, name=name)).encode())
        return
    except TypeError as error:
        if isinstance(value, np.ndarray):  # an array of objects
            inner([value.shape, value.ravel().tolist()], "array")
            return
        if isinstance(value, str | int | float):  # a subclass, such as an enumeration
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


def _of_library(code: type | types.FunctionType) -> bool:
    """Whether a class or function is known by its name."""
    return (code.__module__ or "").partition(".")[0] in _LIBRARIES


def _attributes(cls: type) -> list[tuple[str, Any]]:
    """The attributes that a class itself defines; none for a library's class, which counts by name."""
    if _of_library(cls):
        return []
    return [(name, item) for name, item in sorted(vars(cls).items()) if name not in _OF_EVERY_CLASS]


def _update_attribute(digest: _Digest, item: Any, name: str, inner: Any) -> None:
    """An attribute of a class; one that cannot be hashed, such as a lock or a log, counts by its kind."""
    if isinstance(item, (*_CODE, types.ModuleType)):
        for label, part in [(name, item)] if isinstance(item, _CODE) else _of_module(item):
            digest.refer(part, label)
        return
    _update_alone(digest, item, name)


def _update_alone(digest: _Digest, value: Any, name: str) -> None:
    """Hash a referenced value; one without content to hash, such as a lock or a log, counts by its kind."""
    alone = _Digest(complete=digest.complete)
    try:
        _update(alone, value, name, ())
    except (TypeError, ValueError, RuntimeError):
        if digest.complete:
            raise
        digest.update(f"\0{name}\6{type(value).__module__}.{type(value).__qualname__}\7".encode())
        return
    digest.update(alone.hexdigest().encode())
    for label, part in alone.references:
        digest.refer(part, label)


def _named_in(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The code and the constants that a function's global names refer to, also through a user's module."""
    names = _names_in(function)
    items = []
    for name in sorted(names):
        item = function.__globals__.get(name)
        if isinstance(item, types.ModuleType):
            items += [(label, part) for label, part in _of_module(item) if label.rpartition(".")[2] in names]
        elif _is_lasting(item):
            items.append((name, item))
    return items


def _names_in(function: types.FunctionType) -> set[str]:
    """All names in a function's code, of globals and of attributes."""
    return {name for code in _codes_of(function) for name in code.co_names}


def _codes_of(function: types.FunctionType) -> list[types.CodeType]:
    """A function's code, and that of the functions defined in it."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return codes


def _imported_in(function: types.FunctionType) -> list[str]:
    """The modules that a function's code itself imports."""
    steps = (step for code in _codes_of(function) for step in dis.get_instructions(code))
    return [str(step.argval) for step in steps if step.opname == "IMPORT_NAME"]


def _is_steady(module: str) -> bool:
    return module.partition(".")[0] in _STEADY


def _all_named_in(function: types.FunctionType) -> list[tuple[str, Any]]:
    """All global values that a function's code can read, except steady modules and what they define."""
    names = _names_in(function)
    if unsteady := (names & _UNSTEADY) | {name for name in _imported_in(function) if not _is_steady(name)}:
        raise TypeError(f"`{function.__qualname__}` may read what cannot be hashed: {', '.join(sorted(unsteady))}.")
    items: list[tuple[str, Any]] = []
    queue = [(name, function.__globals__[name]) for name in sorted(names & function.__globals__.keys())]
    while queue:
        label, item = queue.pop()
        if not isinstance(item, (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)):
            items.append((label, item))
            continue
        home = item.__name__ if isinstance(item, types.ModuleType) else item.__module__ or "builtins"
        if _is_steady(home):
            continue
        if isinstance(item, types.BuiltinFunctionType) or _is_installed(item):
            raise TypeError(f"`{function.__qualname__}` uses `{label}`, whose code may read anything.")
        if isinstance(item, types.ModuleType):
            queue += [(f"{label}.{name}", vars(item)[name]) for name in sorted(names & vars(item).keys())]
        else:
            items.append((label, item))
    return items


def _is_installed(code: type | types.FunctionType | types.ModuleType) -> bool:
    """Whether code was installed, so that it counts by its package's name."""
    module = code.__name__ if isinstance(code, types.ModuleType) else code.__module__ or "builtins"
    if module.partition(".")[0] in _LIBRARIES:
        return True
    try:
        file = inspect.getfile(code)
    except (TypeError, OSError):  # interactive or generated code
        return False
    return any(file.startswith(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib"))


def _of_module(module: types.ModuleType) -> list[tuple[str, Any]]:
    """Code and constants of a Python module; none for a library's module, which counts by name."""
    if _is_installed(module):
        return []
    items = sorted(vars(module).items())
    return [(f"{module.__name__}.{name}", item) for name, item in items if name[:2] != "__" and _is_lasting(item)]


def _is_lasting(item: Any) -> bool:
    """Whether a global value is code or a constant."""
    if isinstance(item, type | types.FunctionType):
        return not _is_installed(item)
    if isinstance(item, tuple | frozenset):
        return all(_is_lasting(part) for part in item)
    return isinstance(item, (*_CONSTANTS, functools.partial))
