"""What displays share: axes to draw on, when they are logarithmic, units, and which direction is better."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import check_axes
from ..measures import MEASURES

__all__ = ["direction_text", "is_wide", "plot_direction", "several_axes", "single_axes", "unit_text"]

#: Positive values whose largest is this many times their smallest are drawn on a logarithmic axis.
WIDE_RANGE = 100


def single_axes(ax: Any, figsize: tuple[float, float] | None = None) -> Any:
    """The axes that a user gives, or those of a new figure for None."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    if check_axes("ax", ax)[0] is not ax:
        raise TypeError(f"`ax` must be one of matplotlib's Axes, got a {type(ax).__name__} of them.")
    return ax


def several_axes(axes: Any, n: int, each: str = "") -> np.ndarray:
    """The n axes of a user or of a figure, in one row; `each` says in an error what each of them is for."""
    row = np.array(check_axes("axes", axes), dtype=object)
    if len(row) != n:
        raise ValueError(f"`axes` must contain {n} Axes{each and ', '}{each}, got {len(row)}.")
    return row


def is_wide(values: Any) -> bool:
    """Whether a logarithmic axis shows these values better than a linear one."""
    finite = np.asarray(values)[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > WIDE_RANGE * finite.min())


def direction_text(better: str) -> str:
    """Which direction is better, with an arrow that points there along an axis whose label is read along it."""
    return r"$\leftarrow$ lower is better" if better == "lower" else r"higher is better $\rightarrow$"


def unit_text(name: str) -> str:
    """The unit of a measure in brackets; nothing for plain numbers and for counts, whose name says it."""
    unit = MEASURES[name].unit if name in MEASURES else "1"
    return "" if unit in ("1", "parameters") else f"[{unit}]".replace("^2", "²")


def plot_direction(ax: Any, name: str, better: str | None = None) -> None:
    """Write beside a panel which direction goes with better generalisation, if the measure has one."""
    if better is None and name in MEASURES:
        better = "lower" if MEASURES[name].lower_is_better else "higher"
    if better is not None:
        text = direction_text(better)
        ax.text(1.01, 0.5, text, fontsize="small", transform=ax.transAxes, rotation=90, va="center")
