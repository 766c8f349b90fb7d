"""Distributions of the margins at the input and in the hidden layers, one box per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import float_array
from ..scoring.curves import hidden_margins
from .panels import direction_text, single_axes

__all__ = ["HiddenMarginDisplay"]


class HiddenMarginDisplay:
    """Box plots of the margins in every layer, from the input on, relative to the layer's spread.

    Parameters
    ----------
    margins : dict of str to ndarray of shape (n_samples,)
        Margins by the weight layer after the representation, in order; not modified. Infinite margins, of samples whose
        class no change in the layer can affect, are excluded from the boxes and counted below them.

    Attributes
    ----------
    boxes_ : dict of str to list
        The artists of :meth:`matplotlib.axes.Axes.boxplot`: boxes, medians, whiskers, caps and fliers.
    ax_ : Axes
    figure_ : Figure

    See Also
    --------
    MarginDisplay : Margins of the logits.

    References
    ----------
    Jiang, Krishnan, Mobahi, Bengio (2019), Predicting the generalization gap in deep networks with margin
    distributions.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_capacity.displays import HiddenMarginDisplay
    >>> display = HiddenMarginDisplay({"0": np.array([1.0, 2.0, 4.0]), "2": np.array([-1.0, 1.0, 3.0])}).plot()
    >>> [float(line.get_ydata()[0]) for line in display.boxes_["medians"]]
    [2.0, 1.0]
    """

    def __init__(self, margins: Mapping[str, Any]):
        self.margins = margins

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, *, classes: Any = None) -> HiddenMarginDisplay:
        """Create the display for one model.

        Parameters
        ----------
        estimator, X, y, classes
            As in `measure_capacity`.

        Returns
        -------
        HiddenMarginDisplay
            Not drawn yet: call `plot`.
        """
        return cls(hidden_margins(estimator, X, y, classes))

    def plot(self, ax: Any = None) -> HiddenMarginDisplay:
        """Draw the boxes.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.

        Returns
        -------
        HiddenMarginDisplay
            The display itself, with the artists as attributes.

        Raises
        ------
        ValueError
            If a layer has no finite margins, or some are NaN.
        """
        margins = self._checked()
        ax = single_axes(ax)
        self.ax_, self.figure_ = ax, ax.figure
        finite = {name: values[np.isfinite(values)] for name, values in margins.items()}
        self.boxes_ = ax.boxplot(list(finite.values()))
        missing = {name: len(values) - len(finite[name]) for name, values in margins.items()}
        labels = [f"{name}\n({n} infinite)" if n else name for name, n in missing.items()]
        ax.set_xticks(range(1, len(margins) + 1), labels, rotation=90 if len(margins) > 12 else 0)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xlabel("layer after the representation")
        ax.set_ylabel(f"margin over the layer's spread, {direction_text('higher')}")
        return self

    def _checked(self) -> dict[str, np.ndarray]:
        if not isinstance(self.margins, Mapping) or not self.margins:
            raise ValueError("`margins` must be a dict of at least one layer's margins.")
        checked = {name: float_array("margins", values).ravel() for name, values in self.margins.items()}
        for name, values in checked.items():
            if np.isnan(values).any() or not np.isfinite(values).any():
                raise ValueError(f"`margins` must hold finite numbers, got {values.tolist()[:3]} for {name!r}.")
        return checked
