"""Entries of the tables that constrain an estimator's parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback

from sklearn_capacity._validation import (
    check_boolean,
    check_instance,
    check_integer,
    check_interval,
    check_option,
    shown,
)
from sklearn_capacity.architectures.mlp import ACTIVATIONS, check_layer_sizes
from sklearn_capacity.layers import resolve_augmentation
from sklearn_capacity.losses import CRITERIA
from sklearn_capacity.penalties import PARAMETER_PENALTIES
from sklearn_capacity.training.optimizers import OPTIMIZERS
from sklearn_capacity.training.weight_decay import check_weight_decay

__all__ = ["COMMON", "boolean", "dtype", "integer", "interval", "mapping", "option", "optional"]

Check = Callable[[str, Any], Any]

#: the values of `dtype` -> torch's dtype
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def interval(low: float, high: float = float("inf"), closed: str = "both") -> Check:
    """A number between two bounds."""
    return lambda name, value: check_interval(name, value, low, high, closed=closed)


def integer(low: int) -> Check:
    """An integer of at least `low`."""
    return lambda name, value: check_integer(name, value, low)


def option(options: Iterable[Any]) -> Check:
    """One of the options."""
    return lambda name, value: check_option(name, value, options)


def optional(check: Check) -> Check:
    """None, or a value that passes `check`."""
    return lambda name, value: None if value is None else check(name, value)


def callable_or(check: Check) -> Check:
    """A callable, or a value that passes `check`."""
    return lambda name, value: value if callable(value) else check(name, value)


boolean = check_boolean  #: True or False


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A dict whose keys are strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"`{name}` must be a dict with names as keys, got {shown(value)}.")
    return value


def dtype(name: str, value: Any) -> torch.dtype | None:
    """A floating point type as torch's, or None for "auto"."""
    if isinstance(value, str) and value == "auto":
        return None
    if isinstance(value, torch.dtype):
        key = str(value).removeprefix("torch.")
    else:
        try:
            key = np.dtype(value).name
        except Exception:  # NumPy's message shows the value, which may fail
            key = value
    return DTYPES[check_option(name, key, [*DTYPES])]


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of positive integers."""
    if not isinstance(value, tuple | list) or not value:
        raise TypeError(f"`{name}` must be a tuple such as (1, 8, 8), got {shown(value)}.")
    return tuple(check_integer(name, size) for size in value)


def class_weight(name: str, value: Any) -> Any:
    """None, "balanced" or a dict from label to a weight that is at least 0."""
    if isinstance(value, Mapping):
        for label, weight in value.items():
            check_interval(f"{name}[{label!r}]", weight, 0, closed="left")
    elif value is not None and not (isinstance(value, str) and value == "balanced"):
        raise ValueError(f'`{name}` must be None, "balanced" or a dict from label to weight, got {shown(value)}.')
    return value


def path(name: str, value: Any) -> str:
    """A path."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise TypeError(f"`{name}` must be None or the path of a folder, got {shown(value)}.")
    return os.fspath(value)


def skorch_callbacks(name: str, value: Any) -> Any:
    """Callbacks, or (name, callback) pairs, as in skorch."""
    for item in check_instance(name, value, (list, tuple), "None or a list of skorch callbacks"):
        named = isinstance(item, tuple) and len(item) == 2
        callback = item[1] if named else item
        if not (
            (named and callback is None)
            or isinstance(callback, Callback)
            or (isinstance(callback, type) and issubclass(callback, Callback))
        ):
            raise TypeError(f"`{name}` must contain skorch callbacks, got {shown(callback)}.")
    return value


def penalty(name: str, value: Any) -> Any:
    """The name of a penalty, or a function of a module and a batch."""
    if isinstance(value, str):
        return check_option(name, value, PARAMETER_PENALTIES)
    if isinstance(value, type) or not callable(value):
        offered = ", ".join(map(repr, PARAMETER_PENALTIES))
        raise TypeError(
            f"`{name}` must be None, one of {offered}, or a callable (module, X, sample_weight=None), "
            f"got {shown(value)}."
        )
    return value


#: parameters that all networks share; `module`, `random_state` and `device` are checked where they are used
COMMON: dict[str, Check] = {
    "hidden_layer_sizes": lambda name, value: check_layer_sizes(value),
    "activation": callable_or(option(ACTIVATIONS)),
    "bias": boolean,
    "batch_norm": boolean,
    "weight_norm": boolean,
    "dropout": interval(0, 1, "left"),
    "module_params": optional(mapping),
    "input_shape": optional(shape),
    "loss": option(["auto", *CRITERIA]),
    "optimizer": callable_or(option(OPTIMIZERS)),
    "optimizer_params": optional(mapping),
    "learning_rate": interval(0, closed="neither"),
    "momentum": interval(0, 1, "left"),
    "weight_decay": check_weight_decay,
    "penalty": optional(penalty),
    "penalty_strength": interval(0, closed="left"),
    "max_epochs": integer(1),
    "batch_size": integer(1),
    "callbacks": optional(skorch_callbacks),
    "augmentation": lambda name, value: resolve_augmentation(value),
    "stop_below": optional(interval(0, closed="left")),
    "early_stopping": boolean,
    "validation_fraction": interval(0, 1, "neither"),
    "n_iter_no_change": integer(1),
    "tol": interval(0, closed="left"),
    "dtype": dtype,
    "verbose": integer(0),
    "warm_start": boolean,
    "checkpoint_dir": optional(path),
    "checkpoint_every": integer(1),
}
