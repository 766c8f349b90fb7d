"""Measures of capacity against the generalization gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._validation import check_column, check_instance
from ..model_selection import capacity_table
from ..model_selection.rank_measures import generalization_gap, rank_measures
from ..scoring import compare_capacity
from .panels import direction_text, several_axes, unit_text
from .sources import results_of

__all__ = ["CapacityGapDisplay"]

COLUMNS = 3


class CapacityGapDisplay:
    r"""Scatter plots of the generalization gap over each measure, with Kendall's tau.

    Parameters
    ----------
    table : DataFrame
        One row per trained model, from `model_selection.capacity_table`; not modified.
    gap : str or (str, str), default=None
        Column of the gaps, or a training and a test score; see `model_selection.rank_measures`.
    measures : sequence of str, default=None
        Columns to draw; None uses those that `rank_measures` finds.
    color : str, default=None
        Column (a hyper-parameter) that colours the points.

    Attributes
    ----------
    ranks_ : DataFrame
        The result of `rank_measures` for the plotted measures.
    points_ : dict of str to PathCollection
        The points of each panel.
    axes_ : ndarray of Axes
    figure_ : Figure

    See Also
    --------
    CapacityComparisonDisplay : Ranks of the models, with the values.
    sklearn_capacity.model_selection.rank_measures : The correlations it shows.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import pandas as pd
    >>> from sklearn_capacity.displays import CapacityGapDisplay
    >>> table = pd.DataFrame({"gap": [0.1, 0.2, 0.3], "path_norm": [1.0, 3.0, 2.0], "width": [8, 16, 32]})
    >>> display = CapacityGapDisplay(table, "gap", measures=["path_norm"], color="width").plot()
    >>> display.axes_[0].get_title()
    'path norm\n$\\tau$ = 0.33 [-1.00, 1.00]'
    """

    def __init__(
        self,
        table: pd.DataFrame,
        gap: str | tuple[str, str] | None = None,
        *,
        measures: Sequence[str] | None = None,
        color: str | None = None,
    ):
        self.table = check_instance("table", table, pd.DataFrame, "a DataFrame")
        self.gap = gap
        self.measures = measures
        self.color = color

    @classmethod
    def from_search(cls, search: Any, gap: str | tuple[str, str] | None = None, **params: Any) -> CapacityGapDisplay:
        """Create the display for the candidates of a fitted search.

        Parameters
        ----------
        search : fitted GridSearchCV or the like, scored by a `CapacityScorer`
            Searched with ``return_train_score=True``.
        gap : str or (str, str), default=None
        **params
            Further parameters of the display.

        Returns
        -------
        CapacityGapDisplay
            Not drawn yet: call `plot`.
        """
        return cls(capacity_table(results_of(search)), gap, **params)

    @classmethod
    def from_estimators(cls, models: Any, X: Any, y: Any, *args: Any, **params: Any) -> CapacityGapDisplay:
        """Create the display for trained models.

        Parameters
        ----------
        models, X, y, *args, **params
            As in `compare_capacity`, including `X_test` and `y_test`.

        Returns
        -------
        CapacityGapDisplay
            Not drawn yet: call `plot`.
        """
        return cls(compare_capacity(models, X, y, *args, **params))

    def plot(self, axes: Any = None) -> CapacityGapDisplay:
        """Draw the panels, the measure with the largest tau first.

        Parameters
        ----------
        axes : array of Axes, default=None
            One per measure; None creates a figure.

        Returns
        -------
        CapacityGapDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.pyplot as plt

        gaps, used = generalization_gap(self.table, self.gap)
        self.ranks_ = rank_measures(self.table, self.gap, measures=self.measures)
        n = len(self.ranks_)
        if axes is None:
            rows, columns = -(-n // COLUMNS), min(n, COLUMNS)
            size = (3.4 * columns + 0.8, 3.0 * rows)
            _, axes = plt.subplots(rows, columns, sharey=True, squeeze=False, figsize=size, layout="constrained")
            for spare in axes.flat[n:]:
                spare.remove()
            axes = axes.flat[:n]
        self.axes_ = several_axes(axes, n, "one per measure")
        self.figure_ = self.axes_[0].figure
        self.points_: dict[str, Any] = {}
        colours = self._colours()
        for ax, row in zip(self.axes_, self.ranks_.itertuples(), strict=True):
            self.points_[row.measure] = self._panel(ax, row, gaps, colours)
        label = next(iter(used)) if len(used) == 1 else "train minus test score"
        for ax in self.axes_[::COLUMNS]:
            ax.set_ylabel(label.replace("_", " "))
        self._legend(colours)
        return self

    def _panel(self, ax: Any, row: Any, gaps: np.ndarray, colours: tuple[np.ndarray | None, list[str]]) -> Any:
        values = self.table[row.measure].to_numpy(dtype=np.float64)
        shown = np.isfinite(values) & np.isfinite(gaps)
        codes, _ = colours
        c: Any = "C0" if codes is None else codes[shown]
        cmap = None if codes is None else "viridis"
        points = ax.scatter(values[shown], gaps[shown], c=c, cmap=cmap, s=28, alpha=0.7, ec="0.3", lw=0.5)
        if codes is not None:
            points.set_clim(0, max(codes.max(), 1))
        positive = values[shown]
        if len(positive) and positive.min() > 0 and positive.max() > 20 * positive.min():
            ax.set_xscale("log")
        hidden = int((~shown).sum())
        if hidden:
            ax.annotate(f"{hidden} not finite", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize="small")
        name = row.measure.replace("_", " ")
        ax.set_title(f"{name}\n$\\tau$ = {row.tau:.2f} [{row.tau_low:.2f}, {row.tau_high:.2f}]", fontsize="medium")
        ax.set_xlabel(f"{unit_text(row.measure)} {direction_text(row.better)}".strip())
        ax.grid(alpha=0.3)
        return points

    def _colours(self) -> tuple[np.ndarray | None, list[str]]:
        """A number per model, and the value for each number."""
        if self.color is None:
            return None, []
        column = self.table[check_column(self.color, self.table.columns)]
        try:
            codes, values = pd.factorize(column, sort=True)
        except TypeError:  # values that cannot be ordered or hashed, such as lists
            codes, values = pd.factorize(column.map(repr))
        return codes, [str(value) for value in values]

    def _legend(self, colours: tuple[np.ndarray | None, list[str]]) -> None:
        codes, names = colours
        if codes is None:
            return
        points = next(iter(self.points_.values()))
        handles = [
            self.axes_[0].plot([], [], "o", ms=5, color=points.cmap(points.norm(i)), mec="0.3", label=name)[0]
            for i, name in enumerate(names)
        ]
        assert self.color is not None
        self.axes_[0].legend(handles=handles, title=self.color.replace("_", " "), fontsize="small")
