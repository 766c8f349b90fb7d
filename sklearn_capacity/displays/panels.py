"""What panels of several displays share: when an axis is logarithmic, and which direction is better."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..measures import MEASURES

__all__ = ["is_wide", "plot_direction"]

#: Positive values whose largest is this many times their smallest are drawn on a logarithmic axis.
WIDE_RANGE = 100


def is_wide(values: Any) -> bool:
    """Whether a logarithmic axis shows these values better than a linear one."""
    finite = np.asarray(values)[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > WIDE_RANGE * finite.min())


def plot_direction(ax: Any, name: str, better: str | None = None) -> None:
    """Write beside a panel which direction goes with better generalisation, if the measure has one."""
    if better is None and name in MEASURES:
        better = "lower" if MEASURES[name].lower_is_better else "higher"
    if better is not None:
        ax.text(1.01, 0.5, f"{better} is better", fontsize="small", transform=ax.transAxes, rotation=-90, va="center")
