"""The user's skorch callbacks: their names, and checks for those that an estimator does not support."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from skorch.callbacks import Callback, EpochScoring, InputShapeSetter, LoadInitState

__all__ = ["check_callbacks", "copies", "named_callbacks", "replaced"]


def named_callbacks(callbacks: Any) -> list[tuple[str, Any]]:
    """(name, callback) of each, named as in skorch: by class, numbered where several share a class."""
    callbacks = callbacks if isinstance(callbacks, list | tuple) else []  # `fit` refuses other types
    given = [item if isinstance(item, tuple) and len(item) == 2 else (None, item) for item in callbacks]
    bases = [name or (item if isinstance(item, type) else type(item)).__name__ for name, item in given]
    counts, seen, named = Counter(bases), Counter[str](), []
    for base, (_, callback) in zip(bases, given, strict=True):
        seen[base] += 1
        named.append((f"{base}_{seen[base]}" if counts[base] > 1 else base, callback))
    return named


def replaced(callbacks: Any, name: str, value: Any) -> list[tuple[str, Any]]:
    """The callbacks with the one of that name replaced, or removed if `value` is None."""
    return [(key, value if key == name else callback) for key, callback in named_callbacks(callbacks)]


def copies(callbacks: Any) -> list[tuple[str, Callback]]:
    """A writable copy of each (name, callback); what cannot be copied, such as an open log, is shared."""
    named = [(name, callback) for name, callback in named_callbacks(callbacks) if callback is not None]
    try:
        named = copy.deepcopy(named)  # in one call, since one may refer to another
    except TypeError:
        named = [(name, copy.copy(callback)) for name, callback in named]
    for _, callback in named:
        if isinstance(callback, LoadInitState):
            callback.checkpoint.initialize()  # a clone of it is not initialised
    return named


def check_callbacks(callbacks: Any, *, validates: bool, resumable: bool) -> None:
    """Refuse, before training starts, callbacks that would fail during it.

    Parameters
    ----------
    callbacks : list or None
    validates : bool
        Whether there is a validation part.
    resumable : bool
        Whether the fit writes checkpoints.
    """
    named = [(name, callback) for name, callback in named_callbacks(callbacks) if callback is not None]
    recorded = {c.name or name for name, c in named if isinstance(c, EpochScoring) and (c.on_train or validates)}
    for name, callback in named:
        if isinstance(callback, InputShapeSetter):
            raise ValueError(
                f"`callbacks` must not contain {name} (InputShapeSetter): the network is built before training starts. "
                "Let `module` accept `n_features` or `input_shape`, which are passed to a class or a factory."
            )
        if isinstance(callback, LoadInitState) and resumable:
            raise ValueError(
                f"`callbacks` must not contain {name} (LoadInitState) when `checkpoint_dir` is given: it starts from a "
                "file that may change between two runs of the same fit. Fit with checkpoint_dir=None."
            )
        monitor = _monitored(callback)
        if monitor.startswith("valid_") and not validates and not recorded & {monitor, monitor.removesuffix("_best")}:
            raise ValueError(
                f"`callbacks` has {name}, which monitors {monitor!r}, but there is no validation part. Fit with "
                f"early_stopping=True, or set monitor={'train_' + monitor.removeprefix('valid_')!r}."
            )


def _monitored(callback: Any) -> str:
    """The entry of the history that a callback requires, or ""."""
    if isinstance(callback, type):
        callback = callback() if issubclass(callback, Callback) else None
    policy = getattr(callback, "policy", None)
    if policy is not None and getattr(policy, "__name__", policy) != "ReduceLROnPlateau":
        return ""  # a scheduler that does not use the entry
    monitor = getattr(callback, "monitor", None)
    return monitor if isinstance(monitor, str) else ""
