"""What the code of a forward pass reads outside of the module's own attributes: a trace fixes all of that, too.

These are the classes of the module and its parts, their functions and what these name: global values, variables of
closures, defaults, other functions of the user, functions of torch. Hooks and functions among the attributes count as
well. Nothing is kept alive: code is held by weak references.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from sklearn_capacity.process_state import FORWARD_HOOKS
from sklearn_capacity.storage.contents import OF_EVERY_CLASS, content_of_cell
from sklearn_capacity.storage.origins import is_of_user
from sklearn_capacity.storage.references import globals_in, names_in, texts_in

__all__ = ["SCALARS", "Surroundings", "token"]

SCALARS = (int, float, bool, str, bytes, complex, type(None))
#: Longer lists and dicts are not considered settings of a forward pass, and are not read at every step.
MANY_ENTRIES = 100
#: Settings may be nested this deeply.
MANY_LEVELS = 5

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.ModuleType, type)
_Names: TypeAlias = list[tuple[tuple[str, str], str]]
_TABLES = (dict, list, tuple)
#: Methods that a call of a module may run without naming them.
_UNNAMED = {"forward", "__call__", "__getattr__"}
#: Names by which code may read an attribute without naming it.
_INDIRECT = {"getattr", "vars", "__dict__", "__getattribute__", "attrgetter"}
_NOT_READ = {*OF_EVERY_CLASS, "__init__", "__new__"}


def token(value: Any, levels: int = MANY_LEVELS) -> Any:
    """What changes with a value: scalars by value, tensors by version, code by identity, others by what they hold."""
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, np.ndarray | np.generic):
        return id(value), value.tobytes() if value.size <= MANY_ENTRIES else None
    if isinstance(value, _CODE):
        return weakref.ref(value)  # not its number, which the next function may get
    if isinstance(value, types.MethodType):
        return id(value.__self__), token(value.__func__)
    if levels and isinstance(value, _TABLES):
        if len(value) > MANY_ENTRIES:
            return id(value)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return tuple([(key, token(part, levels - 1)) for key, part in items])
    if levels and isinstance(value, functools.partial):
        return token((value.func, value.args, value.keywords), levels - 1)
    if isinstance(value, nn.Module):  # outside of the submodules, so its tensors are constants of a trace
        return id(value), tuple([token(t) for t in (*value.parameters(), *value.buffers())])
    if levels and _is_users(type(value)):
        return id(value), token(getattr(value, "__dict__", None), levels - 1)
    return id(value)


class Surroundings:
    """The places that the code of a module's forward pass reads.

    Parameters
    ----------
    parts : list of (str, nn.Module)
        The module and its submodules.

    Attributes
    ----------
    names : set of str
        All names in the code, also of attributes.
    """

    def __init__(self, parts: Iterable[tuple[str, nn.Module]]) -> None:
        self.names: set[str] = set()
        self._seen: set[Hashable] = set()
        #: of libraries: namespaces with the names that are read there, and functions
        self._of_libraries: dict[int, tuple[Mapping[str, Any], dict[str, None]]] = {}
        self._library_functions: list[types.FunctionType] = []
        #: of the user: functions with the global names that they read, and classes and Python modules with theirs
        self._functions: list[tuple[weakref.ref, str, _Names]] = []
        self._spaces: list[tuple[weakref.ref, _Names]] = []
        attributes: list[tuple[str, Any]] = [("forward", vars(nn.modules.module)[table]) for table in _GLOBAL_HOOKS]
        for _, part in parts:
            self._enter_class(type(part))
            attributes += [("forward", vars(part)[table]) for table in FORWARD_HOOKS]
            attributes += [(name, value) for name, value in vars(part).items() if name not in _OF_EVERY_MODULE]
        while read := [value for name, value in attributes if self.names_attribute(name)]:
            attributes = [(name, value) for name, value in attributes if not self.names_attribute(name)]
            for value in read:  # whose code may name further attributes
                self._enter(value)
        self._seen.clear()

    def names_attribute(self, name: str) -> bool:
        """Whether the code may read an attribute or a global value of this name."""
        return name in self.names or name == "forward" or not self.names.isdisjoint(_INDIRECT)

    def state(self) -> dict[tuple[str, str], Any]:
        """Tokens of all places as they are now."""
        state: dict[tuple[str, str], Any] = {}
        for table in _GLOBAL_HOOKS:
            if hooks := vars(nn.modules.module)[table]:
                state["<process>", table] = token(hooks)
        state["<libraries>", "values"] = [[*map(space.get, names)] for space, names in self._of_libraries.values()]
        state["<libraries>", "codes"] = [function.__code__ for function in self._library_functions]
        for reference, label, names in self._functions:
            function = reference()
            if function is not None:  # otherwise, whoever named it names something else
                _read_function(function, label, state)
                _read(function.__globals__, names, state)
        for reference, names in self._spaces:
            if (space := reference()) is not None:
                _read(vars(space), names, state)
        return state

    def _enter(self, value: Any, levels: int = MANY_LEVELS) -> None:
        """Enter the functions of the user in a value."""
        if levels == 0 or isinstance(value, SCALARS):
            return
        if isinstance(value, types.FunctionType):
            if is_of_user(value):
                self._enter_function(value)
        elif isinstance(value, _TABLES):
            if len(value) <= MANY_ENTRIES:
                for part in value.values() if isinstance(value, dict) else value:
                    self._enter(part, levels - 1)
        elif isinstance(value, type):
            if is_of_user(value):
                self._enter_class(value)
        elif not isinstance(value, types.ModuleType):
            for function in _functions_of(value):
                self._enter(function, levels - 1)
            if _is_users(type(value)) and self._is_new(id(value)):
                self._enter_class(type(value))
                self._enter(getattr(value, "__dict__", None), levels - 1)

    def _is_new(self, key: Hashable) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _enter_class(self, cls: type) -> None:
        """What the code reads in a class and its bases: what runs in a call, and what that names.

        Of the user's class of another object, which the code may use in any way, that is everything.
        """
        if not self._is_new(id(cls)):
            return
        bases = [base for base in cls.__mro__ if base not in (nn.Module, object)]
        pending, named = set(_UNNAMED), set[str]()
        for base in filter(is_of_user, bases):
            implied = not issubclass(cls, nn.Module)
            pending |= {name for name in vars(base).keys() - _NOT_READ if implied or name.startswith("__")}
        while pending:
            named |= pending
            functions = [f for base in bases for f in _functions_in(base, pending)]
            pending = set[str]().union(*[names_in(f) | texts_in(f) for f in functions]) - named
            for function in functions:
                self._enter_function(function)
        for base in bases:
            read = vars(base).keys() & named
            for name in read if is_of_user(base) else ():
                self._enter(vars(base)[name])
            self._enter_space(base, read | ({"forward"} if base is cls else set()))

    def _enter_function(self, function: types.FunctionType) -> None:
        if not self._is_new(id(function)):
            return
        names = names_in(function) | texts_in(function)
        self.names |= names
        space = function.__globals__
        read = sorted(globals_in(function) & space.keys())
        if is_of_user(function):
            label = f"{function.__module__}.{function.__qualname__} {len(self._functions)}"
            self._functions.append((weakref.ref(function), label, _keys(label, read)))
        else:
            self._library_functions.append(function)
            self._of_library(space, read, id(space))
        for value in [space[name] for name in read]:
            self._enter_named(value, names)
        for cell in function.__closure__ or ():
            self._enter_named(content_of_cell(cell), names)
        self._enter((function.__defaults__, function.__kwdefaults__))

    def _enter_named(self, value: Any, names: Set[str]) -> None:
        """A value that code names; of a namespace, such as `nn.functional`, what occurs in the code."""
        if isinstance(value, types.ModuleType | type):
            read = sorted(names & vars(value).keys())
            self._enter_space(value, read)
            if isinstance(value, types.ModuleType) and self._is_new((id(value), *read)):
                for name in read:
                    self._enter_named(vars(value)[name], names)
        self._enter(value)

    def _enter_space(self, space: types.ModuleType | type, names: Iterable[str]) -> None:
        """What is read in a class or a Python module."""
        if is_of_user(space):
            self._spaces.append((weakref.ref(space), _keys(f"{space.__name__} {len(self._spaces)}", names)))
        else:
            self._of_library(vars(space), names, id(space) if isinstance(space, type) else id(vars(space)))

    def _of_library(self, space: Mapping[str, Any], names: Iterable[str], number: int) -> None:
        self._of_libraries.setdefault(number, (space, {}))[1].update(dict.fromkeys(names))


_GLOBAL_HOOKS = tuple(f"_global{table}" for table in FORWARD_HOOKS)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _keys(label: str, names: Iterable[str]) -> _Names:
    return [((label, name), name) for name in sorted(names)]


def _read(space: Mapping[str, Any], names: _Names, state: dict[tuple[str, str], Any]) -> None:
    for key, name in names:
        state[key] = token(space.get(name))


def _read_function(function: types.FunctionType, label: str, state: dict[tuple[str, str], Any]) -> None:
    """The code, the defaults and the variables of the closure."""
    state[label, "()"] = weakref.ref(function.__code__)
    if function.__defaults__ or function.__kwdefaults__:
        state[label, "defaults"] = token((function.__defaults__, function.__kwdefaults__))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        state[label, name] = token(content_of_cell(cell))


def _functions_in(cls: type, names: set[str]) -> Iterator[types.FunctionType]:
    """The functions that a class defines under some names."""
    for name in names & vars(cls).keys():
        yield from _functions_of(vars(cls)[name])


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    """The functions in a function, a method, a property or the like."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, types.MethodType | staticmethod | classmethod):
        yield from _functions_of(value.__func__)
    elif isinstance(value, property):
        yield from _functions_of(value.fget)
    elif isinstance(value, functools.partial | functools.partialmethod):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _functions_of(part)


def _is_users(cls: type) -> bool:
    return cls is types.SimpleNamespace or is_of_user(cls)
