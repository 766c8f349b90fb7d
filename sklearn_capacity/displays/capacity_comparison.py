"""Several models side by side: a heat map of their ranks, with the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._validation import check_instance
from ..measures import MEASURES
from ..scoring import compare_capacity
from .panels import single_axes

__all__ = ["CapacityComparisonDisplay"]


class CapacityComparisonDisplay:
    """Heat map of the ranks of models in each score and measure, with the values in the cells.

    Parameters
    ----------
    table : DataFrame
        One row per model, from `compare_capacity`; not modified.

    Attributes
    ----------
    ranks_ : DataFrame
        1 is the best model of a column: the highest score, the smallest gap, the better capacity. Equal values share
        the mean of their ranks; nan has no rank.
    image_ : AxesImage
    texts_ : ndarray of Text
        The values, with the shape of the table.
    ax_ : Axes
    figure_ : Figure

    See Also
    --------
    CapacityGapDisplay : Measures against the generalization gap.
    sklearn_capacity.compare_capacity : The table it draws.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import pandas as pd
    >>> from sklearn_capacity.displays import CapacityComparisonDisplay
    >>> table = pd.DataFrame({"test_accuracy": [0.9, 0.8], "l2_path_norm": [5.0, 3.0]}, index=["wide", "narrow"])
    >>> CapacityComparisonDisplay(table).plot().ranks_
            test_accuracy  l2_path_norm
    wide              1.0           2.0
    narrow            2.0           1.0
    """

    def __init__(self, table: pd.DataFrame):
        self.table = check_instance("table", table, pd.DataFrame, "a DataFrame such as from `compare_capacity`")

    @classmethod
    def from_estimators(
        cls, models: Mapping[str, Any] | Sequence[Any], X: Any = None, y: Any = None, *args: Any, **params: Any
    ) -> CapacityComparisonDisplay:
        """Create the display for trained models.

        Parameters
        ----------
        models, X, y, *args, **params
            As in `compare_capacity`.

        Returns
        -------
        CapacityComparisonDisplay
            Not drawn yet: call `plot`.
        """
        return cls(compare_capacity(models, X, y, *args, **params))

    def plot(self, ax: Any = None) -> CapacityComparisonDisplay:
        """Draw the heat map.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.

        Returns
        -------
        CapacityComparisonDisplay
            The display itself, with the artists as attributes.
        """
        n_models, n_columns = self.table.shape
        ax = single_axes(ax, figsize=(1.5 + 1.1 * n_columns, 1.8 + 0.45 * n_models))
        self.ax_, self.figure_ = ax, ax.figure
        signs = [1.0 if _lower_is_better(str(name), self.table) else -1.0 for name in self.table.columns]
        self.ranks_ = (self.table * signs).rank()
        ranks = self.ranks_.to_numpy()
        self.image_ = ax.imshow(ranks, cmap="Blues_r", vmin=1, vmax=max(n_models, 2), aspect="auto", alpha=0.5)
        ax.set_xticks(range(n_columns), [str(name).replace("_", " ") for name in self.table.columns])
        for label in ax.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(n_models), [str(label) for label in self.table.index])
        self.texts_ = np.empty(self.table.shape, dtype=object)
        for (i, j), value in np.ndenumerate(self.table.to_numpy(dtype=np.float64)):
            self.texts_[i, j] = ax.text(j, i, _short(value), ha="center", va="center", fontsize="small")
        ax.set_title("the darker a cell, the better its rank in the column", fontsize="medium")
        return self


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _lower_is_better(name: str, table: pd.DataFrame) -> bool:
    if name in table.attrs.get("better", {}):
        return table.attrs["better"][name] == "lower"
    if name.startswith(("train_", "test_")):
        return False
    return MEASURES[name].lower_is_better if name in MEASURES else True
