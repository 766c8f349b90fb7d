"""Expected sharpness against Kullback-Leibler divergence, one curve per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._validation import check_instance, float_array
from ..scoring import bicriteria_curve
from .panels import direction_text, single_axes
from .sources import named_data

__all__ = ["BicriteriaDisplay"]

#: Strengths of the noise at which `from_estimator` and `from_estimators` draw curves.
ALPHAS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2)


class BicriteriaDisplay:
    """Curves of expected sharpness over divergence; of two networks, the one with the lower curve generalises better.

    Parameters
    ----------
    curves : dict of str to ndarray of shape (n_alphas, 2), or one such array
        Curves from `bicriteria_curve` by name in the legend; not modified.

    Attributes
    ----------
    lines_ : dict of str to Line2D
    ax_ : Axes
    figure_ : Figure

    See Also
    --------
    sklearn_capacity.bicriteria_curve : The curve of one model.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, figures 2-4.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_capacity.displays import BicriteriaDisplay
    >>> true, random = np.array([[0.01, 900.0], [0.3, 90.0]]), np.array([[0.1, 900.0], [0.9, 90.0]])
    >>> display = BicriteriaDisplay({"true labels": true, "random labels": random}).plot()
    >>> sorted(display.lines_)
    ['random labels', 'true labels']
    """

    def __init__(self, curves: Mapping[str, Any] | Any):
        self.curves = curves

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, alphas: Sequence[float] = ALPHAS, *, name: str = "", **params: Any
    ) -> BicriteriaDisplay:
        """Create the display for one model.

        Parameters
        ----------
        estimator, X, y, alphas
            As in `bicriteria_curve`.
        name : str, default=""
            Name in the legend.
        **params
            The other parameters of `bicriteria_curve`.

        Returns
        -------
        BicriteriaDisplay
            Not drawn yet: call `plot`.
        """
        check_instance("name", name, str, "text")
        return cls({name: bicriteria_curve(estimator, X, y, alphas, **params)})

    @classmethod
    def from_estimators(
        cls, models: Mapping[str, tuple[Any, Any, Any]], alphas: Sequence[float] = ALPHAS, **params: Any
    ) -> BicriteriaDisplay:
        """Create the display for several models, each on its own training data.

        Parameters
        ----------
        models : dict of str to (model, X, y)
        alphas : sequence of float > 0, default=0.001 to 0.05
        **params
            The other parameters of `bicriteria_curve`.

        Returns
        -------
        BicriteriaDisplay
            Not drawn yet: call `plot`.
        """
        return cls({name: bicriteria_curve(*entry, alphas, **params) for name, entry in named_data(models).items()})

    from_models = from_estimators  # the name before

    def plot(self, ax: Any = None) -> BicriteriaDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.

        Returns
        -------
        BicriteriaDisplay
            The display itself, with the artists as attributes.
        """
        curves = self._checked()
        ax = single_axes(ax)
        self.lines_: dict[str, Any] = {}
        for name, curve in curves.items():
            curve = curve[np.argsort(curve[:, 1])]
            (self.lines_[name],) = ax.plot(curve[:, 1], curve[:, 0], marker="o", label=str(name) or None)
        better = direction_text("lower")
        ax.set(
            xscale="log", xlabel=f"Kullback-Leibler divergence [nats] {better}", ylabel=f"expected sharpness {better}"
        )
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
        ax.grid(alpha=0.3)
        if any(map(str, curves)):
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _checked(self) -> dict[str, np.ndarray]:
        named = self.curves if isinstance(self.curves, Mapping) else {"": self.curves}
        curves = {name: float_array("curves", curve) for name, curve in named.items()}
        for name, curve in curves.items():
            if curve.ndim != 2 or curve.shape[1] != 2 or not len(curve):
                raise ValueError(
                    f"`curves` must contain arrays of shape (n_alphas, 2), got {curve.shape} for {name!r}."
                )
        if not curves:
            raise ValueError("`curves` must contain at least one curve, got none.")
        return curves
