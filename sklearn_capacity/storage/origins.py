"""Where code comes from: a library that counts by its name, an installed package that has a version, or the user."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import sysconfig
import types
from typing import Any

__all__ = [
    "LIBRARIES",
    "defining_module",
    "home_of",
    "is_installed",
    "is_installed_file",
    "is_library_function",
    "is_loaded",
    "is_of_library",
    "is_of_package",
    "is_of_user",
    "name_and_version",
    "version_of",
]

LIBRARIES = frozenset({"torch", "skorch", "sklearn", "numpy", "scipy", "sklearn_capacity"}) | (
    sys.stdlib_module_names - {"__main__"}
)
#: folders of packages of a user, a distribution or another environment
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")

_Code = type | types.FunctionType | types.ModuleType | types.BuiltinFunctionType


def is_of_library(code: type | types.FunctionType) -> bool:
    """Whether a class or function is known by its name."""
    module = code.__module__
    return isinstance(module, str) and module.partition(".")[0] in LIBRARIES  # Cython's classes have no string there


def is_installed(code: type | types.FunctionType | types.ModuleType) -> bool:
    """Whether code was installed, so that it counts by its package's name.

    A function with a closure is not: a library's decorator returns one that calls the user's function.
    """
    if isinstance(code, types.FunctionType) and code.__closure__:
        return False
    module = code.__name__ if isinstance(code, types.ModuleType) else code.__module__ or "builtins"
    if not isinstance(module, str) or module.partition(".")[0] in LIBRARIES:  # Cython's classes have no string there
        return True
    try:
        return is_installed_file(inspect.getfile(code))
    except (TypeError, OSError, AttributeError):  # interactive or generated code
        return False


def is_library_function(method: types.MethodType) -> bool:
    """Whether a bound method is a function of a library's module, such as random.randint, and counts by name."""
    module = method.__module__ or ""
    is_function = getattr(sys.modules.get(module), method.__name__, None) == method
    return is_function and module.partition(".")[0] in LIBRARIES


def is_of_package(code: _Code) -> bool:
    """Whether code was installed with a package other than `LIBRARIES`; a decorator's function is the decorator's."""
    name = defining_module(code)
    if name.partition(".")[0] in LIBRARIES:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and is_installed_file(file)


def is_of_user(code: _Code) -> bool:
    """Whether code belongs to no library or package."""
    return defining_module(code).partition(".")[0] not in LIBRARIES and not is_of_package(code)


def defining_module(code: _Code) -> str:
    """The name of the module that contains the code."""
    if isinstance(code, types.FunctionType):
        name = code.__globals__.get("__name__")
    else:
        name = code.__name__ if isinstance(code, types.ModuleType) else code.__module__
    return name if isinstance(name, str) else "builtins"  # Cython's classes and some functions have no string there


@functools.lru_cache(maxsize=4096)
def is_installed_file(file: str) -> bool:
    """Whether a file belongs to an installed package."""
    return file.startswith(_installed()) or bool(_PACKAGES.search(file))


@functools.cache
def _installed() -> tuple[str, ...]:
    """The folders of installed packages."""
    return tuple(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))


def name_and_version(code: type | types.FunctionType | types.ModuleType) -> str:
    """The name of installed code, and the version of its package."""
    if isinstance(code, types.ModuleType):
        home = name = code.__name__
    else:
        home, name = code.__module__ or "builtins", f"{code.__module__}.{code.__qualname__}"
    return f"{name} {version_of(home)}"


def version_of(module: str | None) -> Any:
    """The version of the package to which a module of this name belongs."""
    return getattr(sys.modules.get((module or "builtins").partition(".")[0]), "__version__", "")


def is_loaded(module: types.ModuleType) -> bool:
    """Whether an import of the module's name returns it."""
    return sys.modules.get(module.__name__) is module


def home_of(function: types.FunctionType) -> types.ModuleType | None:
    """The module whose names are the function's globals, or None where there is none, such as for executed text."""
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    return module if module is not None and vars(module) is function.__globals__ else None
