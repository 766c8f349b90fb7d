"""A hash of parameters and data that is the same in every process."""

from __future__ import annotations

import collections
import contextvars
import enum
import functools
import hashlib
import json
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity._validation import shown
from sklearn_capacity.process_state import HOOKS
from sklearn_capacity.storage.contents import (
    ATOMS,
    OF_EVERY_CLASS,
    REDUCERS,
    attributes_of,
    bytes_of,
    class_attributes,
    content_of_cell,
    members_of,
    reduced,
    slots_of,
    targets_of,
    value_of_variable,
)
from sklearn_capacity.storage.encoding import encode
from sklearn_capacity.storage.known_functions import (
    KnownFunction,
    Numbers,
    Step,
    known_function,
    number_of,
    parts_of,
    remember,
)
from sklearn_capacity.storage.origins import (
    home_of,
    is_installed,
    is_library_function,
    is_of_library,
    is_of_package,
    is_of_user,
    name_and_version,
)
from sklearn_capacity.storage.references import all_named_in, named_in, names_in, parts_of_module, texts_in

__all__ = ["complete_fingerprint", "fingerprint"]

_MAX_DEPTH = 30
_PLAIN = (types.FunctionType, int, float, str, bool, tuple, type(None))
_CODE = (types.FunctionType, type, types.ModuleType)
_KINDS_OF_CODE = (
    *_CODE,
    types.MethodType,
    types.CodeType,
    types.BuiltinFunctionType,
    property,
    staticmethod,
    classmethod,
)
_SIMPLE = frozenset({bool, int, str, type(None)})
#: what is hashed of an object of a library: its settings and the user's code that it calls
_SETTINGS = (*_PLAIN, types.MethodType, type, functools.partial, np.ndarray, Tensor)
_WEAK = (weakref.ReferenceType, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: of the names in packages' classes, those that a forward pass does not read: they create, copy, print and describe
_NEVER_READ = {*OF_EVERY_CLASS, *REDUCERS, "__init__", "__new__", "__repr__", "__str__", "__setstate__", "__module__"}


def fingerprint(**values: Any) -> str:
    """SHA-256 of named values, in hexadecimal.

    Plain values, arrays and tensors count by content. Functions count by their code and by the values that it refers
    to (in closures, defaults, global names and imports), recursively; classes by name, attributes and bases; modules by
    state and by the class, attributes and hooks of each submodule; other objects by their class and attributes.
    Installed code counts by name. So the hash is the same in a new process, and changes with the text of a lambda.
    A table or an object to which a function's code refers by a global name counts as it first was in this process,
    since a program may change it while it runs, such as a log.

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

    Of an installed package that is not known by name, its version counts, and the code, the global values and the
    environment that the other code may reach: functions that are named there, and parts of its classes whose names
    occur.

    Raises
    ------
    TypeError
        If that cannot be known: a value without content, compiled code other than torch's and NumPy's, or code of the
        user that may read the environment, a file, a clock or random numbers.

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
    try:
        _walk(digest, values)
    finally:
        remember(digest.read)
    return digest.hexdigest()


def _walk(digest: _Digest, values: Mapping[str, Any]) -> None:
    """Hash the values, and then what they refer to."""
    for name in sorted(values):
        _update(digest, values[name], name, ())
    digest.lenient = not digest.complete
    while digest.references or digest.refer_to_methods():  # each once and not nested, so that they may be cyclic
        name, value, of_package = digest.references.popleft()
        is_function = isinstance(value, types.FunctionType)
        digest.in_package = of_package or (is_function and is_of_package(value))
        try:
            if digest.complete and is_function and not is_of_user(value):
                _update_installed_function(digest, value)
            else:
                _update(digest, value, name, ())
        except Exception:  # an object may raise any error
            if not digest.in_package:
                raise
            digest.update(b"\6")


class _Digest:
    """SHA-256, and the referenced values that remain to be hashed; `complete` as in `complete_fingerprint`.

    If `lenient`, a part without content to hash, such as a lock or a log, counts by its kind. So does a part of an
    installed package, to which `in_package` refers.
    """

    def __init__(self, *, complete: bool = False, lenient: bool = False) -> None:
        self.complete, self.lenient = complete, lenient
        self._sha = hashlib.sha256()
        self.update: Callable[[bytes | memoryview], Any] = self._sha.update
        self.hexdigest = self._sha.hexdigest
        self.references: collections.deque[tuple[str, Any, bool]] = collections.deque()
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps the objects alive, and thus their ids valid
        self.in_package = False
        self.homes: list[types.ModuleType] = []  # in which names were looked up
        self.numbers: Numbers = {}
        self.read: list[tuple[types.FunctionType, bool, KnownFunction]] = []  # installed functions, for the next walk
        self.names = {"forward"}  # that occur in the code so far
        #: each with the attributes that have not been referred to, and the names of methods that are called implicitly
        self.package_classes: dict[type, tuple[dict[str, Any], set[str]]] = {}

    def refer(self, value: Any, name: str) -> None:
        """Hash a value without parts; of others, hash now which of the references it is, and its content later."""
        if type(value) in ATOMS or isinstance(value, np.generic):
            _update(self, value, name, ())
        else:
            self._refer(value, name)

    def _refer(self, value: Any, name: str) -> None:
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self._seen), value
            of_package = self.in_package and not (isinstance(value, _CODE) and is_of_user(value))
            self.references.append((name, value, of_package))
        self.update(f"\0{name}\4{_kind(value)} {self._seen[id(value)][0]}\5".encode())

    def refer_to_methods(self) -> bool:
        """Refer to what the code so far may call and read of packages' classes; whether there is anything new."""
        self.in_package = True
        for cls, (unread, implied) in list(self.package_classes.items()):
            for name in sorted((unread.keys() & self.names) | implied):
                self.refer(unread.pop(name), f"{cls.__qualname__}.{name}")
            implied.clear()
        return bool(self.references)


class _Recorder(_Digest):
    """What an installed function adds to a digest."""

    def __init__(self, in_package: bool) -> None:
        super().__init__(complete=True)
        self.in_package, self.names = in_package, set()
        self.steps: list[Step] = []
        self.last = bytearray()  # what comes after the last step
        self.update = self.last.extend

    def _refer(self, value: Any, name: str) -> None:
        self.steps.append((bytes(self.last), value, name))
        self.last.clear()


def _update_installed_function(digest: _Digest, function: types.FunctionType) -> None:
    """Hash an installed function, which is read again only if it has changed."""
    known = known_function(function, digest.in_package, digest.numbers)
    if known is None:
        known = _read(function, digest)
        digest.read.append((function, digest.in_package, known))
    digest.names |= known.names
    for before, value, name in known.steps:
        digest.update(before)
        digest.refer(value, name)
    digest.update(known.last)


def _read(function: types.FunctionType, digest: _Digest) -> KnownFunction:
    """What an installed function adds, read after the snapshots of its modules: another thread may change these."""
    while True:
        n_snapshots = len(digest.numbers)
        new, parts = _Recorder(digest.in_package), parts_of(function)
        _update(new, function, function.__qualname__, ())
        homes = [(home, number_of(home, digest.numbers)) for home in (*new.homes, home_of(function)) if home]
        if len(digest.numbers) == n_snapshots:
            return KnownFunction(parts, homes, new.steps, bytes(new.last), frozenset(new.names))


def _update(digest: _Digest, value: Any, name: str, above: tuple[int, ...]) -> None:
    """Hash one value with its name and kind, so that adjacent values cannot be confused."""
    if type(value) in _SIMPLE and len(above) < _MAX_DEPTH:  # most values are: the same bytes as below, in one step
        digest.update(f"\0{name}\1{_kind(value)}\2{json.dumps(value)}\3".encode())
        return
    is_users = not is_of_library(type(value))
    by_reference = above and (digest.lenient or digest.complete)
    if by_reference and (is_users or isinstance(value, _CODE)):  # these refer to each other in any way
        digest.refer(value, name)
        return
    digest.update(f"\0{name}\1{_kind(value)}\2".encode())
    if id(value) in above:  # a cycle: an object among its own attributes
        digest.update(f"above {above.index(id(value))}".encode())
        return
    above = (*above, id(value))

    def inner(part: Any, label: str) -> None:
        _update(digest, part, f"{name}.{label}", above)

    try:
        if len(above) > _MAX_DEPTH:
            raise TypeError(f"`{name}` is nested too deeply to be hashed.")
        if is_users:
            digest.refer(type(value), "class")
        _update_content(digest, value, name, inner)
        if is_users and not isinstance(value, type | nn.Module | enum.Enum) and _reduced(digest, value) is None:
            inner(attributes_of(value), "attributes")
    except Exception:  # an object may raise any error
        if not digest.lenient:
            raise
        digest.update(b"\6")
    digest.update(b"\3")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _update_content(digest: _Digest, value: Any, name: str, inner: Any) -> None:
    if isinstance(value, _KINDS_OF_CODE):
        _update_code(digest, value, inner)
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data if value.size else b"")
    elif isinstance(value, Tensor):
        inner(bytes_of(value), f"{value.dtype}{tuple(value.shape)}")
    elif isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, _WEAK) or type(value) in weakref.ProxyTypes:
        digest.update(b"reference")  # a target counts where it is stored, such as an LSTM's weights
        if digest.lenient and not isinstance(value, weakref.WeakKeyDictionary):  # which is a cache as a rule
            inner(targets_of(value), "targets")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner(key, "key")
            inner(item, str(key) if isinstance(key, ATOMS) else "item")
        inner(getattr(value, "default_factory", None), "default")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            inner(item, str(index))
    elif isinstance(value, set | frozenset):
        for item in sorted(value, key=functools.partial(_order, digest)):
            inner(item, "element")
    else:
        _update_other(digest, value, name, inner)


@functools.lru_cache(maxsize=4096)
def _of_code(code: types.CodeType) -> str:
    """A hash of code, which never changes."""
    digest = _Digest()
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    _update(digest, [code.co_code, code.co_names, code.co_varnames, list(code.co_consts), counts], "code", ())
    return digest.hexdigest()


def _order(digest: _Digest, element: Any) -> str:
    """A key that sorts the elements of a set equally in every process."""
    if isinstance(element, ATOMS):
        return repr(element)
    if digest.complete and isinstance(element, type):
        return f"{element.__module__}.{element.__qualname__}"
    alone = _Digest(complete=digest.complete, lenient=digest.lenient)
    _update(alone, element, "element", ())
    return alone.hexdigest()


def _update_other(digest: _Digest, value: Any, name: str, inner: Any) -> None:
    if isinstance(value, functools.partial | functools.partialmethod):
        inner([value.func, value.args, value.keywords], "partial")
    elif isinstance(value, enum.Enum):
        inner([f"{type(value).__module__}.{type(value).__qualname__}", value.name, value.value], "member")
    elif isinstance(value, nn.Module):
        _update_module(value, inner)
    elif (digest.lenient or digest.complete) and isinstance(value, contextvars.ContextVar):
        inner(value_of_variable(value), "value")
    elif isinstance(value, torch.jit.ScriptFunction):
        inner(value.code, "code")
    else:
        _update_object(digest, value, name, inner)


def _update_code(digest: _Digest, value: Any, inner: Any) -> None:
    if isinstance(value, types.MethodType):
        if is_library_function(value):
            digest.update(f"{value.__module__}.{value.__name__}".encode())
        else:
            inner([value.__func__, value.__self__], "method")
    elif digest.lenient and isinstance(value, _CODE) and is_installed(value):
        inner(name_and_version(value), "installed")
    elif isinstance(value, types.FunctionType):
        _update_function(digest, value, inner)
    elif isinstance(value, types.ModuleType):
        digest.update(value.__name__.encode())
        for label, item in parts_of_module(value):
            digest.refer(item, label)
    elif isinstance(value, types.CodeType):
        digest.update(_of_code(value).encode())
    elif isinstance(value, type):
        inner([f"{value.__module__}.{value.__qualname__}", value.__bases__], "class")
        if digest.complete and is_of_package(value):
            inner(name_and_version(value), "package")
            unread = {name: item for name, item in vars(value).items() if name not in _NEVER_READ}
            implied = {name for name, item in unread.items() if name[:2] == "__" and type(item) is types.FunctionType}
            digest.package_classes[value] = unread, implied
        else:
            for label, item in class_attributes(value):
                digest.refer(item, label)
    elif isinstance(value, types.BuiltinFunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, property):
        inner([value.fget, value.fset, value.fdel], "property")
    else:  # a static method or a class method
        inner(value.__func__, "method")


def _update_function(digest: _Digest, value: types.FunctionType, inner: Any) -> None:
    cells = [content_of_cell(cell) for cell in value.__closure__ or ()]
    inner([value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells], "function")
    inner(vars(value), "attributes")
    if not digest.complete:
        _update_globals(digest, value)
        return
    digest.names |= names_in(value) | texts_in(value)
    if digest.in_package:
        inner(name_and_version(value), "package")
    items, homes = all_named_in(value)
    digest.homes += homes
    for label, item in items:
        digest.refer(item, label)


#: for each module of a user, and each value that its code refers to: the value, the hash that it first had in this
#: process, and the code and objects that it then had as parts
_FirstSeen = dict[str, tuple[Any, str, list[tuple[str, Any, bool]]]]
_first_seen: weakref.WeakKeyDictionary[types.ModuleType, _FirstSeen] = weakref.WeakKeyDictionary()


def _update_globals(digest: _Digest, function: types.FunctionType) -> None:
    """Hash the values that a function's code refers to, those that may change as they first were."""
    module = home_of(function)
    seen = {} if module is None else _first_seen.setdefault(module, {})
    for label, item in named_in(function):
        if isinstance(item, (*_CODE, *ATOMS)):
            digest.refer(item, label)
            continue
        if label not in seen or seen[label][0] is not item:
            alone = _Digest(lenient=True)
            _update(alone, item, label, ())
            seen[label] = item, alone.hexdigest(), list(alone.references)
        _, content, parts = seen[label]
        digest.update(f"\0{label}\7{content}".encode())
        for name, part, _ in parts:
            digest.refer(part, name)


def _update_module(module: nn.Module, inner: Any) -> None:
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied = names.setdefault(id(parameter), name)  # equal values train differently if they are one tensor
        inner([tied, parameter.requires_grad, parameter], f"parameter {name}")
    inner(dict(module.named_buffers()), "buffers")
    for path, part in module.named_modules(remove_duplicate=False):
        attributes = {key: item for key, item in vars(part).items() if key not in _OF_EVERY_MODULE}
        if is_of_library(type(part)):  # its attributes other than settings do not matter
            attributes = {
                key: item for key, item in attributes.items() if isinstance(item, (*_PLAIN, types.MethodType))
            }
        hooks = [list(vars(part)[kind].values()) for kind in HOOKS]
        inner([type(part), dict(sorted(attributes.items())), hooks], f"module {path}")


def _update_object(digest: _Digest, value: Any, name: str, inner: Any) -> None:
    try:
        digest.update(json.dumps(encode(value, name=name)).encode())
        return
    except TypeError as error:
        if isinstance(value, np.ndarray):  # an array of objects
            inner([value.shape, value.ravel().tolist()], "array")
        elif isinstance(value, str | int | float):  # a subclass
            digest.update(repr(value).encode())
        elif (parts := _reduced(digest, value)) is not None:
            inner(parts, "parts")
        elif not is_of_library(type(value)):
            if not hasattr(value, "__dict__") and not slots_of(value) and not digest.lenient:
                raise TypeError(f"`{name}` is {shown(value)}, which cannot be hashed.") from error
        elif hasattr(value, "__dict__"):
            attributes = attributes_of(value)
            if digest.lenient:
                attributes = {key: item for key, item in attributes.items() if isinstance(item, _SETTINGS)}
            inner(attributes, "attributes")
        elif digest.lenient:  # such as struct.Struct
            inner(members_of(value), "members")
        else:
            raise TypeError(f"`{name}` is {shown(value)}, which cannot be hashed.") from error


def _reduced(digest: _Digest, value: Any) -> list[Any] | None:
    return reduced(value) if digest.lenient else None
