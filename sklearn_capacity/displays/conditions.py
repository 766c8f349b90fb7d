"""Distributions of the constants of the conditions C1 to C3 on the interaction of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import check_instance
from ..scoring import interaction_conditions
from .panels import direction_text, several_axes

__all__ = ["InteractionConditionsDisplay"]

#: The better direction, and the constant that the paper reports for learnt networks: mu is at least 1/4, C2 at most 5,
#: C3 at most 3.
PANELS = {
    "C1": ("higher", 0.25),
    "C2": ("lower", 5.0),
    "C3": ("lower", 3.0),
}
COLUMNS = {"condition", "value"}


class InteractionConditionsDisplay:
    """Cumulative distributions over layers and samples, a panel per condition and a curve per network.

    Parameters
    ----------
    tables : dict of str to DataFrame, or one DataFrame
        Results of `interaction_conditions` by name in the legend; not modified. Infinite values, of layers whose units
        are all inactive, are the part of the distribution that a curve does not reach.

    Attributes
    ----------
    lines_ : dict of str to dict of str to Line2D
        By network and condition.
    axes_ : ndarray of Axes, one per condition
    figure_ : Figure

    See Also
    --------
    sklearn_capacity.interaction_conditions : The three conditions.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, figures 5-8. The
    dotted lines are the constants of section 4.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity.displays import InteractionConditionsDisplay
    >>> net = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    >>> display = InteractionConditionsDisplay.from_estimators({"random": net}, torch.ones(4, 3)).plot()
    >>> sorted(display.lines_["random"])
    ['C1', 'C2', 'C3']
    """

    def __init__(self, tables: Mapping[str, Any] | Any):
        self.tables = tables

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, *, name: str = "", **params: Any) -> InteractionConditionsDisplay:
        """Create the display for one network.

        Parameters
        ----------
        estimator, X
            As in `interaction_conditions`.
        name : str, default=""
            Name in the legend.
        **params
            The other parameters of `interaction_conditions`.

        Returns
        -------
        InteractionConditionsDisplay
            Not drawn yet: call `plot`.
        """
        check_instance("name", name, str, "text")
        return cls({name: interaction_conditions(estimator, X, **params)})

    @classmethod
    def from_estimators(cls, estimators: Mapping[str, Any], X: Any, **params: Any) -> InteractionConditionsDisplay:
        """Create the display for several networks on the same samples, such as before and after training.

        Parameters
        ----------
        estimators : dict of name in the legend to model
        X
            As in `interaction_conditions`.
        **params
            The other parameters of `interaction_conditions`.

        Returns
        -------
        InteractionConditionsDisplay
            Not drawn yet: call `plot`.
        """
        check_instance("estimators", estimators, Mapping, "a dict of name to model")
        return cls({name: interaction_conditions(model, X, **params) for name, model in estimators.items()})

    def plot(self, axes: Any = None) -> InteractionConditionsDisplay:
        """Draw the curves.

        Parameters
        ----------
        axes : array of 3 Axes, default=None
            One for each of C1, C2 and C3; None creates a figure.

        Returns
        -------
        InteractionConditionsDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.pyplot as plt

        tables = self._checked()
        if axes is None:
            _, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
        self.axes_ = several_axes(axes, len(PANELS), "one for each of C1, C2 and C3")
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[str, dict[str, Any]] = {name: {} for name in tables}
        for ax, (condition, (better, constant)) in zip(self.axes_, PANELS.items(), strict=True):
            for name, table in tables.items():
                values = np.sort(table["value"].to_numpy(dtype=float)[table["condition"] == condition])
                shares = np.arange(1, len(values) + 1) / max(1, len(values))
                finite = np.isfinite(values)
                (self.lines_[name][condition],) = ax.plot(
                    values[finite], shares[finite], drawstyle="steps-post", label=name or None
                )
            ax.axvline(constant, color="0.4", linestyle=":")
            ax.set(xscale="log", title=condition, xlabel=f"constant, {direction_text(better)}")
        self.axes_[0].set_ylabel("share of layers and samples")
        if any(tables):
            self.axes_[-1].legend()
        return self

    def _checked(self) -> dict[str, Any]:
        named = self.tables if isinstance(self.tables, Mapping) else {"": self.tables}
        for name, table in named.items():
            if not set(getattr(table, "columns", ())) >= COLUMNS:
                raise TypeError(
                    "`tables` must contain results of `interaction_conditions`, got "
                    f"{type(table).__name__} for {name!r}."
                )
            if table["value"].isna().any():
                raise ValueError(f"`tables` must not contain NaN, got some for {name!r}.")
        if not named:
            raise ValueError("`tables` must contain at least one network's table, got none.")
        return dict(named)
