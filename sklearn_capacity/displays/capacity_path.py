"""Accuracy and capacity along a regularisation strength."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._validation import as_list, check_column, check_instance
from ..model_selection import capacity_table
from .panels import is_wide, plot_direction, several_axes, unit_text
from .sources import results_of

__all__ = ["CapacityPathDisplay"]


class CapacityPathDisplay:
    """Score and capacities over a strength, one panel each with a common axis.

    Parameters
    ----------
    table : DataFrame
        A table from `model_selection.capacity_table` with one row per strength.
    strength : str, default="jacobian_penalty"
        Column of the strengths.
    score : str, default="accuracy"
        The score whose ``test_`` and ``train_`` columns are drawn.
    capacities : sequence of str, default=None
        Columns of capacities; None takes all that follow the scores.
    chosen : float, default=None
        The strength to mark in every panel.

    Attributes
    ----------
    lines_ : dict of str to Line2D
    axes_ : ndarray of Axes
    figure_ : Figure

    See Also
    --------
    CapacityGapDisplay : Measures against the generalization gap.
    sklearn_capacity.model_selection.capacity_table : The table it draws.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import pandas as pd
    >>> from sklearn_capacity.displays import CapacityPathDisplay
    >>> table = pd.DataFrame({"jacobian_penalty": [0.0, 0.1], "test_accuracy": [0.9, 0.95], "path_norm": [3.0, 1.0]})
    >>> display = CapacityPathDisplay(table).plot()
    >>> len(display.axes_)
    2
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        strength: str = "jacobian_penalty",
        score: str = "accuracy",
        capacities: Sequence[str] | None = None,
        chosen: float | None = None,
    ):
        self.table = check_instance("table", table, pd.DataFrame, "a DataFrame (use `from_search` for a search)")
        self.strength = strength
        self.score = score
        self.capacities = capacities
        self.chosen = chosen

    @classmethod
    def from_search(cls, search: Any, **kwargs: Any) -> CapacityPathDisplay:
        """Display of a fitted search, its choice marked.

        Parameters
        ----------
        search : fitted GridSearchCV or the like, scored by a `CapacityScorer`
        **kwargs
            Parameters of the display.
        """
        strength = kwargs.get("strength", "jacobian_penalty")
        chosen = [value for key, value in getattr(search, "best_params_", {}).items() if key.endswith(strength)]
        return cls(capacity_table(results_of(search)), **{"chosen": chosen[0] if chosen else None, **kwargs})

    def plot(self, axes: Any = None) -> CapacityPathDisplay:
        """Draw the panels.

        Parameters
        ----------
        axes : array of Axes, default=None
            One for the score and one per capacity; None creates a figure.

        Returns
        -------
        CapacityPathDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.pyplot as plt

        strengths = self.table[self._column(self.strength)]
        if not pd.api.types.is_numeric_dtype(strengths):
            raise ValueError(
                f"`strength` must be a column of numbers, and {self.strength!r} contains {strengths.iloc[0]!r}. Name a "
                "hyper-parameter with numerical values."
            )
        table = self.table.sort_values(self.strength)
        capacities = self._capacities()
        if axes is None:
            n = 1 + len(capacities)
            _, axes = plt.subplots(n, 1, sharex=True, figsize=(6, 1.3 + 1.5 * n), layout="constrained")
        self.axes_ = several_axes(axes, 1 + len(capacities))
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[str, Any] = {}
        x = table[self.strength].to_numpy(dtype=float)
        self._plot_score(self.axes_[0], x, table)
        for ax, name in zip(self.axes_[1:], capacities, strict=True):
            (self.lines_[name],) = ax.plot(x, table[self._column(name)], marker="o", color="C3")
            ax.set_ylabel(f"{textwrap.fill(name.replace('_', ' '), 14)}\n{unit_text(name)}".strip())
            if is_wide(self.lines_[name].get_ydata()):
                ax.set_yscale("log")
            plot_direction(ax, name, self.table.attrs.get("better", {}).get(name))
        for ax in self.axes_:
            _scale_strength(ax, x)
            ax.grid(alpha=0.3)
            if self.chosen is not None:
                line = ax.axvline(self.chosen, color="black", ls=":", label="chosen")
        if self.chosen is not None:
            self.lines_["chosen"] = line
            self.axes_[0].legend()
        self.axes_[-1].set_xlabel(self.strength.replace("_", " "))
        return self

    def _plot_score(self, ax: Any, x: np.ndarray, table: pd.DataFrame) -> None:
        test = table[self._column(f"test_{self.score}")]
        error = table.get(f"test_{self.score}_se")
        container = ax.errorbar(x, test, yerr=error, marker="o", capsize=3, color="C0", label="test folds")
        self.lines_[f"test_{self.score}"] = container.lines[0]
        train = table.get(f"train_{self.score}")
        if train is not None:
            (line,) = ax.plot(x, train, marker="o", mfc="none", ls="--", color="C1", label="training folds")
            self.lines_[f"train_{self.score}"] = line
        ax.set_ylabel(self.score.replace("_", " "))
        ax.legend()

    def _capacities(self) -> list[str]:
        if self.capacities is not None:
            return [self._column(name) for name in as_list("capacities", self.capacities)]
        columns = list(self.table.columns)
        scores = [i for i, name in enumerate(columns) if name.startswith(("test_", "train_"))]
        return columns[max(scores, default=0) + 1 :]

    def _column(self, name: str) -> str:
        return check_column(name, self.table.columns)


def _scale_strength(ax: Any, x: np.ndarray) -> None:
    """Use a logarithmic scale above the smallest positive strength, with room for 0 but for nothing below."""
    positive = x[x > 0]
    if len(positive) and positive.max() / positive.min() >= 10:
        lowest = positive.min()
        if (x == 0).any():
            ax.set_xscale("symlog", linthresh=lowest, linscale=0.5)
            ax.set_xlim(-lowest / 3, 1.5 * positive.max())
        else:
            ax.set_xscale("log")
            ax.set_xlim(lowest / 1.5, 1.5 * positive.max())
