"""Distributions of margins, one curve per network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import check_instance, check_interval, float_array
from ..scoring.curves import sample_margins
from .panels import direction_text, single_axes
from .sources import named_data

__all__ = ["MarginDisplay"]


class MarginDisplay:
    """Share of samples with a margin of at most m, over m: of two networks, the lower curve has the larger margins.

    Parameters
    ----------
    margins : dict of str to ndarray of shape (n_samples,), or one such array
        Margins f_y - max_{k != y} f_k of the samples by name in the legend; not modified.
    percentile : float in [0, 100], default=5
        Percentile to mark on every curve, as in the measure `margin`.

    Attributes
    ----------
    lines_ : dict of str to Line2D
    ax_ : Axes
    figure_ : Figure

    See Also
    --------
    HiddenMarginDisplay : Distances to the boundary in each layer.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.1.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_capacity.displays import MarginDisplay
    >>> display = MarginDisplay({"plain": np.array([-1.0, 2.0, 3.0]), "penalised": np.array([1.0, 1.5, 2.0])}).plot()
    >>> sorted(display.lines_)
    ['penalised', 'plain']
    """

    def __init__(self, margins: Mapping[str, Any] | Any, *, percentile: float = 5.0):
        self.margins = margins
        self.percentile = percentile

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, name: str = "", classes: Any = None, **params: Any
    ) -> MarginDisplay:
        """Create the display for one model.

        Parameters
        ----------
        estimator, X, y
            As in `measure_capacity`.
        name : str, default=""
            Name in the legend.
        classes : array-like of shape (n_outputs,), default=None
            As in `measure_capacity`.
        **params
            Parameters of the display.

        Returns
        -------
        MarginDisplay
            Not drawn yet: call `plot`.
        """
        check_instance("name", name, str, "text")
        return cls({name: sample_margins(estimator, X, y, classes)}, **params)

    @classmethod
    def from_estimators(
        cls, models: Mapping[str, tuple[Any, Any, Any]], *, classes: Any = None, **params: Any
    ) -> MarginDisplay:
        """Display of several models, each on its own data.

        Parameters
        ----------
        models : dict of str to (model, X, y)
        classes : array-like of shape (n_outputs,), default=None
            As in `measure_capacity`, for all of them.
        **params
            Parameters of the display.

        Returns
        -------
        MarginDisplay
            Not drawn yet: call `plot`.
        """
        margins = {name: sample_margins(*entry, classes) for name, entry in named_data(models).items()}
        return cls(margins, **params)

    from_models = from_estimators  # the name before

    def plot(self, ax: Any = None) -> MarginDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.

        Returns
        -------
        MarginDisplay
            The display itself, with the artists as attributes.

        Raises
        ------
        ValueError
            If there are no margins, or some are not finite.
        """
        check_interval("percentile", self.percentile, 0, 100)
        margins = self._checked()
        ax = single_axes(ax)
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_: dict[str, Any] = {}
        for i, (name, values) in enumerate(margins.items()):
            share = np.arange(1, len(values) + 1) / len(values)
            (line,) = ax.step(values, share, where="post", label=str(name) or None)
            place = np.percentile(values, self.percentile)
            ax.plot([place], [self.percentile / 100], "o", mfc="none", ms=6 + 3 * i, color=line.get_color())
            self.lines_[name] = line
        ax.axvline(0, color="black", lw=0.8)
        ax.axhline(self.percentile / 100, color="grey", ls=":", lw=1)
        ax.set_xlabel(f"margin [logit], errors below 0, {direction_text('higher')}")
        ax.set_ylabel("share of samples with a smaller margin")
        if any(map(str, margins)):
            ax.legend()
        return self

    def _checked(self) -> dict[str, np.ndarray]:
        given = self.margins if isinstance(self.margins, Mapping) else {"": self.margins}
        sorted_margins = {name: np.sort(float_array("margins", values).ravel()) for name, values in given.items()}
        for name, values in sorted_margins.items():
            if not len(values) or not np.isfinite(values).all():
                raise ValueError(f"`margins` must contain finite numbers, got {len(values)} values for {name!r}.")
        if not sorted_margins:
            raise ValueError("`margins` must contain at least one network's margins, got none.")
        return sorted_margins
