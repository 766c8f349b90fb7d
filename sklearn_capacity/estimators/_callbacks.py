"""The user's skorch callbacks: their names, and those that an estimator cannot serve."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from skorch.callbacks import Callback, EpochScoring, InputShapeSetter, LoadInitState

__all__ = ["check_callbacks", "copies", "named_callbacks", "replaced"]


def named_callbacks(callbacks: Any) -> list[tuple[str, Any]]:
    """(name, callback) of each, with the names that skorch gives them: their classes', numbered where several agree."""
    callbacks = callbacks if isinstance(callbacks, list | tuple) else []  # what else it may be is refused by `fit`
    given = [item if isinstance(item, tuple) and len(item) == 2 else (None, item) for item in callbacks]
    bases = [name or (item if isinstance(item, type) else type(item)).__name__ for name, item in given]
    counts, seen, named = Counter(bases), Counter[str](), []
    for base, (_, callback) in zip(bases, given, strict=True):
        seen[base] += 1
        named.append((f"{base}_{seen[base]}" if counts[base] > 1 else base, callback))
    return named


def replaced(callbacks: Any, name: str, value: Any) -> list[tuple[str, Any]]:
    """The callbacks with another one in the place of that name; None leaves it out."""
    return [(key, value if key == name else callback) for key, callback in named_callbacks(callbacks)]


def copies(callbacks: Any) -> list[tuple[str, Callback]]:
    """(name, callback) of each to write into; what cannot be copied, as an open log, is shared."""
    named = [(name, callback) for name, callback in named_callbacks(callbacks) if callback is not None]
    try:
        named = copy.deepcopy(named)  # at once, as one may refer to another
    except TypeError:
        named = [(name, copy.copy(callback)) for name, callback in named]
    for _, callback in named:
        if isinstance(callback, LoadInitState):
            callback.checkpoint.initialize()  # after a clone it is none of those that are initialised
    return named


def check_callbacks(callbacks: Any, *, validates: bool, resumable: bool) -> None:
    """Refuse, before the training begins, callbacks that would fail in it.

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
                f"`callbacks` cannot have {name} (InputShapeSetter): the network is made before training begins. Let "
                "`module` take `n_features` or `input_shape`, which a class or a factory is given."
            )
        if isinstance(callback, LoadInitState) and resumable:
            raise ValueError(
                f"`callbacks` cannot have {name} (LoadInitState) beside `checkpoint_dir`: it begins from a file that "
                "may change between two runs of one fit. Fit with checkpoint_dir=None."
            )
        monitor = _monitored(callback)
        if monitor.startswith("valid_") and not validates and not recorded & {monitor, monitor.removesuffix("_best")}:
            raise ValueError(
                f"`callbacks` has {name}, which monitors {monitor!r}, but no samples are set aside. Fit with "
                f"early_stopping=True, or give it monitor={'train_' + monitor.removeprefix('valid_')!r}."
            )


def _monitored(callback: Any) -> str:
    """The entry of the history that a callback cannot do without, or nothing."""
    if isinstance(callback, type):
        callback = callback() if issubclass(callback, Callback) else None
    policy = getattr(callback, "policy", None)
    if policy is not None and getattr(policy, "__name__", policy) != "ReduceLROnPlateau":
        return ""  # a scheduler that does not look at it
    monitor = getattr(callback, "monitor", None)
    return monitor if isinstance(monitor, str) else ""
