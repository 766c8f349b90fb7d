"""Checks of parameters, with messages of one form."""

from __future__ import annotations

import copy
import difflib
import math
import numbers
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

__all__ = [
    "CapacityWarning",
    "DivergenceError",
    "NotDefinedError",
    "all_finite",
    "as_list",
    "check_axes",
    "check_boolean",
    "check_column",
    "check_dense",
    "check_instance",
    "check_integer",
    "check_interval",
    "check_numbers",
    "check_option",
    "check_parameters",
    "check_seed",
    "closest",
    "copied_module",
    "failure_text",
    "float_array",
    "has_packed_weights",
    "plain_array",
    "refuse_containers",
    "shape_text",
    "shown",
    "shown_with_kind",
    "warn",
]


class CapacityWarning(UserWarning):
    """A warning about a measurement.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_capacity import CapacityWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", CapacityWarning)  # take every such remark as an error
    """


def warn(message: str) -> None:
    """Issue a `CapacityWarning` that points to the line that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sklearn_capacity."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CapacityWarning, stacklevel=level)


class DivergenceError(ValueError):
    """Training has diverged: a loss, a penalty or the network is no longer finite; the message names the epoch.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity import DivergenceError, NetworkRegressor
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> models = {}
    >>> for rate in (0.01, 1e6):
    ...     try:
    ...         models[rate] = NetworkRegressor(optimizer="sgd", learning_rate=rate, random_state=0).fit(X, X)
    ...     except DivergenceError:
    ...         print(f"diverged with the rate {rate:g}")
    diverged with the rate 1e+06
    """


class NotDefinedError(ValueError):
    """A measure is not defined for this network, task or data; the message says why.

    Parameters
    ----------
    message : str, default=""
    reason : str, default=""
        The message without the name of the measure, thus equal for all measures with this obstacle.

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

    def __init__(self, message: str = "", *, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


def check_interval(
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    closed: str = "both",
    cure: str = "",
) -> float:
    """Return `value` as a float between `low` and `high`, or raise.

    ``closed`` states which ends belong to the interval: "both", "left", "right" or "neither". This also applies to
    infinite ends: choose ``closed`` according to whether ``inf`` is allowed.
    """
    brackets = {"both": "[]", "left": "[)", "right": "(]", "neither": "()"}[closed]
    left, right = brackets[0], brackets[1]
    where = f"{left}{_number(low)}, {_number(high)}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number in {where}, got {shown(value)}.{_tail(cure)}")
    try:
        value = float(value)
    except OverflowError:  # an integer larger than any float
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
        listed = as_list(name, values)
    except TypeError:
        listed = []
    if not listed:
        raise ValueError(f"`{name}` must be a sequence of at least one number, got {shown(values)}.")
    return [check_interval(name, value, low, high, closed=closed) for value in listed]


def as_list(name: str, values: Any) -> list[Any]:
    """Return the elements of a sequence; raise for other types, including strings."""
    try:
        if not isinstance(values, str | bytes | memoryview):
            return list(values)
    except Exception:  # an object may raise any error
        pass
    raise TypeError(f"`{name}` must be a sequence, got {shown(values)}.")


def check_parameters(params: Any) -> list[Any]:
    """Return an optimiser's parameters, pairs of a name and a parameter, or groups as a list, or raise."""
    listed = as_list("params", params)
    for entry in listed:
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], torch.Tensor)
        group = isinstance(entry, dict) and "params" in entry
        if not (named or group or isinstance(entry, torch.Tensor)):
            raise TypeError(
                "`params` must contain tensors, pairs of a name and a tensor, or dicts with 'params', "
                f"got {shown(entry)}."
            )
    return listed


def check_boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise if it is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}.")
    return bool(value)


def check_integer(name: str, value: Any, low: int = 1, high: float | None = None, *, cure: str = "") -> int:
    """Return `value` as an int from `low` to `high` (None: the largest size of an array), or raise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer, got {shown(value)}.{_tail(cure)}")
    value = int(value)
    if high is None and value >= 2**63:
        raise ValueError(f"`{name}` must be less than 2**63, got {shown(value)}.{_tail(cure)}")
    if value < low or (high is not None and value > high):
        where = f"at least {low}" if high in (None, math.inf) else f"between {low} and {high}"
        raise ValueError(f"`{name}` must be {where}, got {shown(value)}.{_tail(cure)}")
    return value


def check_seed(name: str, value: Any) -> Any:
    """Return `value` if scikit-learn draws random numbers from it, or raise."""
    draws = value is None or value is np.random or isinstance(value, np.random.RandomState)
    if not draws and not (isinstance(value, numbers.Integral) and 0 <= int(value) < 2**32):
        kinds = "None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState"
        raise ValueError(f"`{name}` must be {kinds}, got {shown(value)}.")
    return value


def check_option(name: str, value: Any, options: Iterable[Any]) -> Any:
    """Return `value` if it is one of `options`, or raise and name the closest one."""
    options = list(options)
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        offered = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {offered}, got {shown(value)}.{_tail(closest(value, options))}")
    return value


def check_column(name: Any, columns: Iterable[Any]) -> Any:
    """Return `name` if a table has such a column, or raise and name the closest one, or all."""
    columns = list(columns)
    if name not in columns:
        hint = closest(name, columns) or f"It has: {', '.join(map(str, columns))}."
        raise ValueError(f"The table has no column {shown(name)}. {hint}")
    return name


def shown(value: Any) -> str:
    """The `repr` of a user's value for a message, or what it is: `repr` may fail, and does for a very long integer."""
    try:
        return repr(value)
    except Exception:
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def shown_with_kind(value: Any) -> str:
    """What a user's function returned, for a message: a value and its type, or the kind of an array."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    return f"{shown(value)} of type {type(value).__name__}"


def check_instance(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """Return `value` if it is an instance of `kind`, or raise an error that states what it must be."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {what}, got {type(value).__name__}.")
    return value


#: dtypes of tensors with which torch computes and which NumPy knows, and the one that it does not
_COMPUTED = frozenset({
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.float32, torch.float64, torch.bfloat16),
})  # fmt: skip


def check_dense(name: str, tensor: torch.Tensor) -> None:
    """Raise for a tensor that is not a dense array of real values."""
    # subclasses that redefine every operator wrap several tensors, or none
    wraps = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    strided = tensor.layout == torch.strided and not tensor.is_nested
    if wraps or not strided or tensor.is_meta or tensor.dtype not in _COMPUTED:
        kind = "nested" if tensor.is_nested else type(tensor).__name__ if wraps else str(tensor.layout)
        kind = f"{kind}, {tensor.dtype}, on {tensor.device.type}"
        raise TypeError(f"`{name}` must be a dense real tensor with values, got {kind}.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    The sum, which shows that it is not, takes a twentieth of the time; only where it overflows are the entries read.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity._validation import all_finite
    >>> all_finite(torch.tensor([3e38, 3e38])), all_finite(torch.tensor([torch.inf, -torch.inf]))
    (True, False)
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def shape_text(tensor: torch.Tensor) -> str:
    """The shape of a tensor for a message; a nested one has none."""
    return "nested" if tensor.is_nested else str(tuple(tensor.shape))


def plain_array(name: str, data: Any) -> Any:
    """Convert a torch tensor to a NumPy array, detached and on the CPU; return other data unchanged."""
    if not isinstance(data, torch.Tensor):
        return data
    check_dense(name, data)
    data = data.detach().cpu().resolve_neg()
    return (data.float() if data.dtype == torch.bfloat16 else data).numpy()


def copied_module(module: torch.nn.Module, cure: str) -> torch.nn.Module:
    """A deep copy of a user's module, or an error that ends in `cure` where it, or torch, refuses."""
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(f"`module` cannot be copied: {str(error).rstrip('.')}. {cure}") from error


def has_packed_weights(part: torch.nn.Module) -> bool:
    """Whether a module itself, without its parts, is quantized: its weights are no tensors and have no derivatives."""
    return not part._parameters and torch.ScriptObject in map(type, vars(part).values())


def float_array(name: str, values: Any) -> np.ndarray:
    """Return numbers as an array in float64, or raise."""
    values = plain_array(name, values)
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError, AttributeError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be an array of real numbers, got {type(values).__name__}: {error}.") from error


def check_axes(name: str, axes: Any) -> list[Any]:
    """Return matplotlib's Axes, or arrays and lists of them, as one list, or raise."""
    listed = list(_leaves(axes))
    if not listed or any(not callable(getattr(ax, "plot", None)) or not hasattr(ax, "figure") for ax in listed):
        raise TypeError(f"`{name}` must be matplotlib's Axes, or None for a new figure, got {shown(axes)}.")
    return listed


def _leaves(nested: Any) -> Iterator[Any]:
    if not isinstance(nested, list | tuple | np.ndarray):
        yield nested
        return
    for part in nested.ravel().tolist() if isinstance(nested, np.ndarray) else nested:
        yield from _leaves(part)


#: packages whose errors report a failed computation rather than a message for the user
_MACHINERY = ("builtins", "torch", "skorch", "copy", "pickle")


def failure_text(error: Exception) -> str | None:
    """The error of a failed computation in one line, or None for an error to pass on unchanged.

    The latter are ValueError and TypeError, which are already messages, errors of the file system and of exhausted
    memory, and classes that neither Python nor torch nor skorch defines.
    """
    if isinstance(error, ValueError | TypeError | OSError | MemoryError | torch.OutOfMemoryError | Warning):
        return None
    if type(error).__module__.partition(".")[0] not in _MACHINERY:
        return None
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def closest(value: Any, options: Iterable[Any]) -> str:
    """A sentence naming the option that begins with `value`, or the one most like it, or nothing."""
    names = [option for option in options if isinstance(option, str)]
    text = value if isinstance(value, str) else ""
    longer = [name for name in names if len(text) > 2 and name.casefold().startswith(text.casefold())]
    match = [min(longer, key=len)] if longer else difflib.get_close_matches(text, names, n=1)
    return f"Did you mean {match[0]!r}?" if match else ""


def _number(value: float) -> str:
    return f"{value:g}"


def _tail(cure: str) -> str:
    return f" {cure}" if cure else ""


def refuse_containers(X: Any, done: str) -> None:
    """Raise for containers of samples that are not arrays; `done` is the verb for the message."""
    if isinstance(X, Mapping) and not hasattr(X, "shape"):  # one kind of sparse matrix is a Mapping, too
        raise TypeError(f"`X` must be one array or tensor, got a dict: networks with several inputs cannot be {done}.")
    if isinstance(X, DataLoader):
        cure = "Collect its batches: `X, y = map(torch.cat, zip(*loader))`."
    elif isinstance(X, Dataset):
        cure = "Collect it: `X, y = next(iter(DataLoader(dataset, batch_size=len(dataset))))`."
    elif isinstance(X, tuple) and all(hasattr(part, "shape") for part in X) and len({part.shape for part in X}) > 1:
        cure = "Pass its parts one by one, as `X` and `y`."
    else:
        return
    raise TypeError(f"`X` must be an array or tensor, got a {type(X).__name__}. {cure}")
