"""Checks of scalar parameters and the one form that their messages take."""

from __future__ import annotations

import difflib
import math
import numbers
import sys
import warnings
from collections.abc import Iterable
from typing import Any

__all__ = [
    "CapacityWarning",
    "NotDefinedError",
    "check_instance",
    "check_integer",
    "check_interval",
    "check_numbers",
    "check_option",
    "closest",
    "warn",
]


class CapacityWarning(UserWarning):
    """Something about a measurement that its reader should know.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_capacity import CapacityWarning
    >>> warnings.simplefilter("error", CapacityWarning)  # take every such remark as an error
    """


def warn(message: str) -> None:
    """Give a `CapacityWarning` that shows the line that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sklearn_capacity."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CapacityWarning, stacklevel=level)


class NotDefinedError(ValueError):
    """A measure is not defined for this network, task or data; the message says why.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import NotDefinedError, measure_capacity
    >>> try:
    ...     measure_capacity(nn.Linear(2, 2), measures="margin")
    ... except NotDefinedError as error:
    ...     print(error)
    This measure needs data: pass X.
    """


def check_interval(
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    closed: str = "both",
    cure: str = "",
) -> float:
    """Return `value` as a float that lies between `low` and `high`, or raise.

    ``closed`` says which ends belong to the interval: "both", "left", "right" or "neither".
    Infinite ends are never closed by accident: pass ``closed`` so that ``inf`` is let in or not.
    """
    brackets = {"both": "[]", "left": "[)", "right": "(]", "neither": "()"}[closed]
    left, right = brackets[0], brackets[1]
    where = f"{left}{_number(low)}, {_number(high)}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number in {where}, got {value!r}.{_tail(cure)}")
    try:
        value = float(value)
    except OverflowError:  # an integer beyond every float
        value = math.inf if value > 0 else -math.inf
    above = value >= low if left == "[" else value > low
    below = value <= high if right == "]" else value < high
    if not (above and below):  # NaN fails both comparisons
        raise ValueError(f"`{name}` must lie in {where}, got {_number(value)}.{_tail(cure)}")
    return value


def check_numbers(
    name: str, values: Any, low: float = float("-inf"), high: float = float("inf"), *, closed: str = "both"
) -> list[float]:
    """Return a sequence of at least one number between `low` and `high` as a list of floats, or raise."""
    try:
        numbers_ = [] if isinstance(values, str | bytes) else list(values)
    except TypeError:
        numbers_ = []
    if not numbers_:
        raise ValueError(f"`{name}` must be a sequence of at least one number, got {values!r}.")
    return [check_interval(name, value, low, high, closed=closed) for value in numbers_]


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None, *, cure: str = "") -> int:
    """Return `value` as an int of at least `low` (and at most `high`), or raise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.{_tail(cure)}")
    value = int(value)
    if value < low or (high is not None and value > high):
        where = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"`{name}` must be {where}, got {value}.{_tail(cure)}")
    return value


def check_option(name: str, value: Any, options: Iterable[Any]) -> Any:
    """Return `value` if it is one of `options`, or raise and name the closest one."""
    options = list(options)
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        shown = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {shown}, got {value!r}.{_tail(closest(value, options))}")
    return value


def check_instance(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """Return `value` if it is of a kind, or raise and say what it must be."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {what}, got {type(value).__name__}.")
    return value


def closest(value: Any, options: Iterable[Any]) -> str:
    """A sentence naming the option most like `value`, or nothing."""
    names = [option for option in options if isinstance(option, str)]
    match = difflib.get_close_matches(str(value), names, n=1)
    return f"Did you mean {match[0]!r}?" if match else ""


def _number(value: float) -> str:
    return f"{value:g}"


def _tail(cure: str) -> str:
    return f" {cure}" if cure else ""
