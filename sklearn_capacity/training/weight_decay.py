"""Weight decay on chosen parameters: groups of an optimiser from patterns of names."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from sklearn_capacity._validation import check_interval, closest, shown

__all__ = ["check_weight_decay", "decay_groups", "decay_of", "largest_decay"]


def check_weight_decay(name: str, value: Any) -> float | Mapping[str, float]:
    """A number that is at least 0, or a dict from patterns of parameter names to such numbers."""
    if not isinstance(value, Mapping):
        return check_interval(name, value, 0, closed="left")
    for pattern, decay in value.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f'`{name}` must have patterns of parameter names as keys ("*.weight"), got {shown(pattern)}.'
            )
        check_interval(f"{name}[{pattern!r}]", decay, 0, closed="left")
    return value


def largest_decay(decay: float | Mapping[str, float]) -> float:
    """The largest strength; 0 for an empty dict."""
    return max(decay.values(), default=0.0) if isinstance(decay, Mapping) else decay


def decay_groups(decay: float | Mapping[str, float], names: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """Groups (pattern, settings) for a dict whose patterns each match a parameter; none for a number.

    A parameter belongs to the first pattern that matches it.
    """
    if not isinstance(decay, Mapping) or not any(decay.values()):
        return []
    for pattern in decay:
        if not any(fnmatch.fnmatch(name, pattern) for name in names):
            listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            hint = closest(pattern, names)
            raise ValueError(
                f"`weight_decay` must name parameters of the module, got {pattern!r}, which matches none of {listed}."
                f"{' ' * bool(hint)}{hint}"
            )
    return [(pattern, {"weight_decay": value}) for pattern, value in decay.items()]


def decay_of(name: str, groups: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """The settings of the first group whose pattern matches a parameter, or none."""
    return next((settings for pattern, settings in groups if fnmatch.fnmatch(name, pattern)), {})
