"""What training records after each epoch: losses, accuracies, penalties, measures of capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from .._validation import check_instance, closest
from .panels import is_wide, plot_direction, several_axes, unit_text
from .sources import history_of

__all__ = ["HistoryDisplay"]

N_COLUMNS = 3
#: Prefixes for the part of the data on which a value was computed. Without one it was the training data.
TRAINING, VALIDATION = "train_", "valid_"
PARTS = {"training": "-", "validation": "--"}
#: Counters and times of skorch, which do not show how training went.
BOOKKEEPING = ("epoch", "dur")
SPELLED = {"acc": "accuracy"}


class HistoryDisplay:
    """Losses, accuracies, penalties and measures over the epochs, one panel each.

    Columns that differ in the prefix ``train_`` or ``valid_`` share a panel: solid lines are values on the training
    data, dashed ones on the validation data. A dotted line marks the epoch of the lowest validation loss. Values that
    were not computed in an epoch (nan) are left out.

    Parameters
    ----------
    histories : dict of str to history, or one history
        Histories by name in the legend. A history is a list of dicts with one entry per epoch, such as ``history_``
        of an estimator, ``history`` of a skorch net, or what your own training loop collects; or a DataFrame. Not
        modified.
    columns : sequence of str, default=None
        The columns to draw; None takes all that contain numbers, except counts of batches and times.

    Attributes
    ----------
    lines_ : dict of str to dict of str to Line2D
        The lines by model and column.
    axes_ : ndarray of Axes
        One per panel.
    figure_ : Figure

    See Also
    --------
    sklearn_capacity.CapacityCallback : Records measures after each epoch.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_capacity.displays import HistoryDisplay
    >>> history = [{"train_loss": 2.0, "l2_path_norm": 1.0}, {"train_loss": 0.5, "l2_path_norm": 3.0}]
    >>> display = HistoryDisplay(history).plot()
    >>> [ax.get_title() for ax in display.axes_]
    ['loss', 'l2 path norm']
    """

    def __init__(self, histories: Any, *, columns: Sequence[str] | None = None):
        self.histories = histories
        self.columns = columns

    @classmethod
    def from_estimator(cls, estimator: Any, *, name: str = "", **params: Any) -> HistoryDisplay:
        """Create the display for one model.

        Parameters
        ----------
        estimator : fitted estimator or skorch net, or a Pipeline or search that ends in one
        name : str, default=""
            Name in the legend.
        **params
            Parameters of the display.

        Returns
        -------
        HistoryDisplay
            Not drawn yet: call `plot`.
        """
        return cls({name: history_of(estimator)}, **params)

    @classmethod
    def from_estimators(cls, estimators: Mapping[str, Any], **params: Any) -> HistoryDisplay:
        """Create the display for several models.

        Parameters
        ----------
        estimators : dict of str to model
            Each as in `from_estimator`.
        **params
            Parameters of the display.

        Returns
        -------
        HistoryDisplay
            Not drawn yet: call `plot`.
        """
        check_instance("estimators", estimators, Mapping, "a dict of name to model")
        return cls({name: history_of(estimator) for name, estimator in estimators.items()}, **params)

    def plot(self, axes: Any = None) -> HistoryDisplay:
        """Draw the panels.

        Parameters
        ----------
        axes : array of Axes, default=None
            One per panel; None creates a figure.

        Returns
        -------
        HistoryDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.pyplot as plt

        tables = self._tables()
        panels = self._panels(tables)
        n = len(panels)
        outside = axes is None
        if axes is None:
            n_rows, n_columns = -(-n // N_COLUMNS), min(n, N_COLUMNS)
            size = (3.4 * n_columns + 0.6, 2.8 * n_rows)
            _, axes = plt.subplots(n_rows, n_columns, squeeze=False, figsize=size, layout="constrained")
            for spare in axes.flat[n:]:
                spare.remove()
            axes = axes.flat[:n]
        self.axes_ = several_axes(axes, n, f"one for each of {list(panels)}")
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[str, dict[str, Any]] = {name: {} for name in tables}
        for ax, (title, columns) in zip(self.axes_, panels.items(), strict=True):
            self._panel(ax, title, columns, tables)
        entries = self._legend()
        if entries and outside:
            self.figure_.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 2 * n))
        elif entries:
            self.axes_[0].legend(handles=entries, fontsize="small")
        return self

    def _panel(self, ax: Any, title: str, columns: list[str], tables: Mapping[str, pd.DataFrame]) -> None:
        for i, (name, table) in enumerate(tables.items()):
            for column in (column for column in columns if column in table):
                values = table[column].dropna()
                marker = "o" if len(values) == 1 else None
                (line,) = ax.plot(values.index, values, color=f"C{i}", ls=_style(column), marker=marker)
                self.lines_[name][column] = line
        if is_wide(np.concatenate([line.get_ydata() for line in ax.lines])):
            ax.set_yscale("log")
        if "valid_loss" in columns:
            for i, table in enumerate(tables.values()):
                if "valid_loss" in table and table["valid_loss"].notna().any():
                    ax.axvline(table["valid_loss"].idxmin(), color=f"C{i}", ls=":", lw=1)
        ax.set(title=title, xlabel="epoch", ylabel=unit_text(_quantity(columns[0])))
        ax.grid(alpha=0.3)
        plot_direction(ax, _quantity(columns[0]), {"loss": "lower", "error": "lower", "accuracy": "higher"}.get(title))

    def _legend(self) -> list[Any]:
        """One entry per model in its colour, and one per kind of line if there are several kinds."""
        from matplotlib.lines import Line2D

        entries = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(self.lines_) if name]
        columns = {column for lines in self.lines_.values() for column in lines}
        if any(column.startswith(VALIDATION) for column in columns):
            entries += [Line2D([], [], color="0.3", ls=ls, label=part) for part, ls in PARTS.items()]
        if "valid_loss" in columns:
            entries.append(Line2D([], [], color="0.3", ls=":", lw=1, label="lowest validation loss"))
        return entries

    def _tables(self) -> dict[str, pd.DataFrame]:
        """The columns of numbers of each history, indexed by epoch."""
        given = self.histories if isinstance(self.histories, Mapping) else {"": self.histories}
        if not given:
            raise ValueError("`histories` must contain at least one history, got none.")
        return {str(name): _numbers(name, history) for name, history in given.items()}

    def _panels(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
        """The columns of each panel by its title."""
        known = list(dict.fromkeys(column for table in tables.values() for column in table))
        if self.columns is not None:
            for column in self.columns:
                if column not in known:
                    hint = f"{closest(column, known)} There are: {', '.join(known)}.".lstrip()
                    raise ValueError(f"No history has a column {column!r}. {hint}")
        shown = [column for column in known if column not in BOOKKEEPING and not column.endswith("_batch_count")]
        panels: dict[str, list[str]] = {}
        for column in shown if self.columns is None else self.columns:
            panels.setdefault(_quantity(column).replace("_", " "), []).append(column)
        if not panels:
            raise ValueError("`histories` must contain a column of numbers per epoch to draw, got none.")
        first = [title for start in ("loss", "penalty", "accuracy") for title in panels if title.startswith(start)]
        return {title: panels[title] for title in dict.fromkeys([*first, *panels])}


def _style(column: str) -> str:
    return PARTS["validation" if column.startswith(VALIDATION) else "training"]


def _quantity(column: str) -> str:
    base = column.removeprefix(TRAINING).removeprefix(VALIDATION)
    return SPELLED.get(base, base)


def _numbers(name: Any, history: Any) -> pd.DataFrame:
    """A history as a table of its real numbers, infinities as nan, indexed by epochs from 1."""
    if not isinstance(history, pd.DataFrame):
        if not isinstance(history, list | tuple) or not all(isinstance(row, Mapping) for row in history):
            raise TypeError(
                f"`histories` must contain a list with one dict per epoch, or a DataFrame, got "
                f"{type(history).__name__} for {name!r}. Use `from_estimator` for a model."
            )
        history = pd.DataFrame([{key: value for key, value in row.items() if _is_number(value)} for row in history])
    if not len(history):
        raise ValueError(f"`histories` must contain at least one epoch, got none for {name!r}.")
    table = history.select_dtypes("number").astype(np.float64)
    table.index = pd.Index(table["epoch"] if "epoch" in table else range(1, 1 + len(table)))
    return table.replace([np.inf, -np.inf], np.nan)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)
