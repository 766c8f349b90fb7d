"""The values that a function's code refers to: globals, parts of the user's modules, local imports."""

from __future__ import annotations

import dis
import functools
import importlib.util
import itertools
import os
import sys
import types
from collections.abc import Iterator, Set
from typing import Any

from sklearn_capacity.storage.contents import content_of_cell
from sklearn_capacity.storage.origins import LIBRARIES, defining_module, is_installed, is_installed_file, is_of_package

__all__ = [
    "all_named_in",
    "globals_in",
    "imported_now",
    "named_in",
    "names_in",
    "parts_of_module",
    "reads_environment",
    "texts_in",
]

#: modules whose functions depend on their arguments only, as far as a forward pass uses them
_STEADY = frozenset(
    "torch torchvision numpy sklearn_capacity builtins _operator __future__ math cmath functools itertools collections "
    "operator typing abc copy enum dataclasses numbers string warnings contextlib".split()
)
#: names in code that may read more than values in memory; attributes of these names count, too
_UNSTEADY = frozenset(
    "open input eval exec globals locals vars id __import__ import_module environ os sys random backends "
    "get_rng_state initial_seed".split()
)
#: the same for global names only: `self.modules()` are the parts of a module
_UNSTEADY_GLOBALS = frozenset({"modules"})
#: names by which a package reads the environment
_ENVIRONMENT = frozenset({"environ", "getenv"})
#: what torch's first export sets, for its compiler
_OF_COMPILER = "TORCHINDUCTOR_"
#: what counts of a steady module if somebody has put it there
_NAMED = (types.FunctionType, type, types.ModuleType)
_GLOBAL_STEPS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_OF_EVERY_PYTHON_MODULE = frozenset(vars(types.ModuleType("empty"))) | {
    *("__file__", "__cached__", "__builtins__", "__path__", "__annotations__", "__annotate__"),
    *("__warningregistry__", "__conditional_annotations__", "__annotations_cache__"),
}


def named_in(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The values that a function's global names and imports refer to; of a user's module, the parts that it names."""
    names, items = names_in(function), list[tuple[str, Any]]()
    for name in sorted(globals_in(function)):
        if name in function.__globals__:
            items += _narrowed(name, function.__globals__[name], names)
    imported = [(name, module) for name in sorted(_imported_in(function)) for module in _imported(name, function)]
    for name, module in imported:  # all have been imported now, so packages have their modules as attributes
        items += _narrowed(name, module, names)
    return items


def _narrowed(label: str, item: Any, names: Set[str], above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The item, or, if it is a user's module, those of its parts that are in `names`."""
    if not isinstance(item, types.ModuleType) or is_installed(item):
        yield label, item
    elif not any(item is module for module in above):
        for name, part in parts_of_module(item):
            if name in names or name == "__getattr__":
                yield from _narrowed(f"{label}.{name}", part, names, (*above, item))


def parts_of_module(module: types.ModuleType) -> list[tuple[str, Any]]:
    """What a user's module defines and imports; nothing of an installed module, which counts by name."""
    if is_installed(module):
        return []
    return [(name, part) for name, part in sorted(vars(module).items()) if name not in _OF_EVERY_PYTHON_MODULE]


def names_in(function: types.FunctionType) -> frozenset[str]:
    """All names in a function's code, of globals and of attributes."""
    return frozenset(name for code in _codes_of(function.__code__) for name in code.co_names)


def texts_in(function: types.FunctionType) -> frozenset[str]:
    """The texts in a function's code that may be names, for `getattr`."""
    return _texts_of(function.__code__)


@functools.lru_cache(maxsize=4096)
def _texts_of(code: types.CodeType) -> frozenset[str]:
    texts = (text for part in _codes_of(code) for text in part.co_consts if isinstance(text, str))
    return frozenset(text for text in texts if text.isidentifier())


def _codes_of(code: types.CodeType) -> list[types.CodeType]:
    """A function's code, and that of the functions defined in it."""
    codes = [code]
    for part in codes:
        codes += [constant for constant in part.co_consts if isinstance(constant, types.CodeType)]
    return codes


def globals_in(function: types.FunctionType) -> frozenset[str]:
    """The global names that a function's code reads."""
    return _read_by(function.__code__)[0]


def _imported_in(function: types.FunctionType) -> frozenset[str]:
    """The modules that a function's code itself imports."""
    return _read_by(function.__code__)[1]


@functools.lru_cache(maxsize=4096)
def _read_by(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The global names that code reads; the modules that it imports, with all that may be a module of a package."""
    names, modules, source = set(), set(), ""
    for step in itertools.chain.from_iterable(map(dis.get_instructions, _codes_of(code))):
        if step.opname in _GLOBAL_STEPS:
            names.add(str(step.argval))
        elif step.opname == "IMPORT_NAME":
            source = str(step.argval)
            modules.add(source)
        elif step.opname == "IMPORT_FROM":
            modules.add(f"{source}.{step.argval}".lstrip("."))
    return frozenset(names), frozenset(modules)


def _imported(name: str, function: types.FunctionType) -> list[types.ModuleType]:
    """The user's module of an import statement, which may be relative to a package that contains the function."""
    package = function.__globals__.get("__package__") or ""
    parents = package.split(".") if package else []
    above = [".".join(parents[:n]) for n in range(len(parents), 0, -1)]
    candidates = [name.partition(".")[0], name, *(f"{parent}.{name}".rstrip(".") for parent in above)]
    return [module for full in dict.fromkeys(candidates) if full and (module := _loaded(full)) is not None]


def _loaded(name: str) -> types.ModuleType | None:
    """A user's module, imported now if need be, or None where there is none of this name."""
    if name in sys.modules or name.partition(".")[0] in LIBRARIES:
        return sys.modules.get(name)
    try:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        if not any(places) or any(is_installed_file(place) for place in places if place):
            return None
        return importlib.import_module(name)
    except Exception:  # the import statement will raise it, where it is reached
        return None


# ---- everything that code can read -------------------------------------------------------------


def all_named_in(function: types.FunctionType) -> tuple[list[tuple[str, Any]], list[types.ModuleType]]:
    """All global values that a function's code can read, except steady modules and what they define.

    Also the modules in which they were looked up, apart from the function's own.

    A function of an installed package is taken at the package's version: what it may read from files, a clock or
    random numbers does not count.

    Raises
    ------
    TypeError
        If that cannot be known.
    """
    names, of_package = names_in(function) | texts_in(function), is_of_package(function)
    if not of_package:
        unsteady = (names & _UNSTEADY) | (globals_in(function) & _UNSTEADY_GLOBALS)
        unsteady |= {name for name in _imported_in(function) if not _is_steady(name)}
        if unsteady:
            raise TypeError(f"`{function.__qualname__}` may read what cannot be hashed: {', '.join(sorted(unsteady))}.")
    items, modules = list[tuple[str, Any]](), list[types.ModuleType]()
    queue = [(name, function.__globals__[name]) for name in sorted(globals_in(function) & function.__globals__.keys())]
    queue += _modules_in_closure(function)
    if of_package:
        queue += _loaded_imports(function)
        if reads_environment(function):
            read = sorted(item for item in os.environ.items() if not item[0].startswith(_OF_COMPILER))
            items.append(("environ", repr(read)))
    while queue:
        label, item = queue.pop()
        if not isinstance(item, (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)):
            items.append((label, item))
        elif _is_steady(defining_module(item)):
            if isinstance(item, types.ModuleType) and not any(item is module for module in modules):
                modules.append(item)
                queue += [(f"{label}.{name}", part) for name, part in _parts(item, names) if isinstance(part, _NAMED)]
        elif isinstance(item, types.BuiltinFunctionType) or (is_installed(item) and not is_of_package(item)):
            if not of_package:
                raise TypeError(f"`{function.__qualname__}` uses `{label}`, whose code may read anything.")
        elif not isinstance(item, types.ModuleType):
            items.append((label, item))
        elif not any(item is module for module in modules):  # modules may import each other
            modules.append(item)
            queue += [(f"{label}.{name}", part) for name, part in _parts(item, names | {"__getattr__"})]
    return items, modules


def _parts(module: types.ModuleType, names: Set[str]) -> list[tuple[str, Any]]:
    """The values in a module that have one of the names."""
    return [(name, vars(module)[name]) for name in sorted(names & vars(module).keys())]


def _modules_in_closure(function: types.FunctionType) -> list[tuple[str, types.ModuleType]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values = [(name, content_of_cell(cell)) for name, cell in cells]
    return [(name, value) for name, value in values if isinstance(value, types.ModuleType)]


def _loaded_imports(function: types.FunctionType) -> list[tuple[str, types.ModuleType]]:
    """The modules that a function's code itself imports, as far as they are loaded."""
    return [(module.__name__, module) for module in imported_now(function) if module is not None]


def imported_now(function: types.FunctionType) -> list[types.ModuleType | None]:
    """The modules that a function's code itself may import, absolutely or from its package; None if not loaded."""
    return list(map(sys.modules.get, _importable(function.__code__, function.__globals__.get("__package__") or "")))


@functools.lru_cache(maxsize=4096)
def _importable(code: types.CodeType, package: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in sorted(_read_by(code)[1]) for name in (part, f"{package}.{part}")))


def reads_environment(function: types.FunctionType) -> bool:
    """Whether a package's function may read the environment."""
    return not _ENVIRONMENT.isdisjoint(names_in(function) | texts_in(function))


def _is_steady(module: str) -> bool:
    return module.partition(".")[0] in _STEADY
