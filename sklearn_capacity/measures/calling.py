"""Calling a measure's function and checking what it returns."""

from __future__ import annotations

import contextlib
import copy
import inspect
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["arguments", "as_number", "check_function", "settable", "takes_module"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_function(name: str, function: Any) -> None:
    """Refuse functions that cannot be called as ``f(network, batch)`` or ``f(module, X, y)``."""
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"The measure {name!r} must be a function, got {function!r}.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        parameters = inspect.signature(lambda: None).parameters.values()
    several = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if not several and len([p for p in parameters if p.kind in _POSITIONAL]) < 2:
        raise TypeError(
            f"The measure {name!r} must be a function f(network, batch) or f(module, X, y), got {function!r}."
        )


def takes_module(function: Callable[..., Any]) -> bool:
    """Whether a function is called as ``f(module, X, y)`` or ``f(module, X)`` rather than as ``f(network, batch)``."""
    positional = _positional(function)
    if len(positional) < 2:
        return False
    second, needed = positional[1].name, [p for p in positional if p.default is inspect.Parameter.empty]
    return second == "X" or (second != "batch" and len(needed) >= 3)


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind in _POSITIONAL]


def settable(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Names and defaults of the parameters other than the data, and whether the function has ``**params``."""
    parameters = inspect.signature(function).parameters.values()
    first = {p.name for p in _positional(function)[: 3 if takes_module(function) else 2]}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = {p.name: p.default for p in parameters if p.kind in kinds and p.name not in first}
    return named, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def arguments(function: Callable[..., Any], network: Any, batch: Any) -> tuple[Any, ...]:
    """The positional arguments of a function: network and batch, or a copy of the module, X and y."""
    if not takes_module(function):
        return network, batch
    module = copy.deepcopy(network.users_module)  # which the function may change
    positional = _positional(function)
    if len(positional) < 3:
        return module, batch.X
    optional = positional[2].default is not inspect.Parameter.empty
    return (module, batch.X) if optional and not batch.has_labels else (module, batch.X, batch.y)


def as_number(name: str, returned: Any) -> float:
    """The returned real number as a float; tensors and arrays of shape () are accepted."""
    value = returned
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.shape == ():
        with contextlib.suppress(RuntimeError):  # on the meta device there is no number
            value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"The measure {name!r} must return one real number or a `Measured`, got {_shown(returned)}.")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"The measure {name!r} must return a number that a float can hold: {error}.") from error


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"
