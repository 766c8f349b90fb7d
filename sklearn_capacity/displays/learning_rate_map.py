"""Training losses over learning rates and networks, with the critical rate of mean-field theory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import check_instance
from ..theory import LearningRateMap
from .panels import single_axes

__all__ = ["LearningRateMapDisplay"]

LABELS = {"width": "width M", "depth": "depth L", "sigma_w2": r"$\sigma_w^2$", "sigma_b2": r"$\sigma_b^2$"}


class LearningRateMapDisplay:
    """Colour map of training losses; diverged cells are grey, the red line is the critical learning rate.

    Parameters
    ----------
    learning_rate_map : LearningRateMap
        The result of `theory.learning_rate_map`; not modified.

    Attributes
    ----------
    image_ : matplotlib QuadMesh
        log10 of the mean losses, masked where any trial diverged.
    line_ : matplotlib Line2D
        Critical learning rate over the varied parameter (theorem 6).
    colorbar_, ax_, figure_ : matplotlib artists

    See Also
    --------
    sklearn_capacity.theory.mean_field : Predicts the critical rate.

    References
    ----------
    Karakida, Akaho, Amari 2019, figure 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.displays.learning_rate_map import LearningRateMapDisplay
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.standard_normal((30, 20)), rng.standard_normal(30)
    >>> display = LearningRateMapDisplay.from_data(X, y, [1e-3, 1e-2], [20, 40], n_steps=5, n_trials=1)
    >>> display.learning_rate_map.losses.shape
    (2, 2, 1)
    """

    def __init__(self, learning_rate_map: Any) -> None:
        self.learning_rate_map = check_instance(
            "learning_rate_map", learning_rate_map, LearningRateMap, "the result of `theory.learning_rate_map`"
        )

    @classmethod
    def from_data(cls, X: Any, y: Any, learning_rates: Any, values: Any, **params: Any) -> LearningRateMapDisplay:
        """Train the networks and create the display, with the parameters of `theory.learning_rate_map`.

        Parameters
        ----------
        X, y, learning_rates, values
            As in `theory.learning_rate_map`.
        **params
            Keyword arguments of `theory.learning_rate_map`.

        Returns
        -------
        LearningRateMapDisplay
            Not drawn yet: call `plot`.
        """
        from sklearn_capacity.theory import learning_rate_map

        return cls(learning_rate_map(X, y, learning_rates, values, **params))

    def plot(self, ax: Any = None, *, cmap: str = "viridis") -> LearningRateMapDisplay:
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None creates a figure.
        cmap : str or matplotlib.colors.Colormap, default="viridis"

        Returns
        -------
        LearningRateMapDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.colors

        ax = single_axes(ax)
        data = self.learning_rate_map
        losses = np.ma.masked_invalid(np.log10(np.maximum(data.mean_losses, 1e-12)))
        check_instance("cmap", cmap, (str, matplotlib.colors.Colormap), "a colormap or the name of one")
        colours = matplotlib.colormaps.get_cmap(cmap).with_extremes(bad="0.7")
        self.image_ = ax.pcolormesh(
            _edges(data.values), np.exp(_edges(np.log(data.learning_rates))), losses.T, cmap=colours, shading="flat"
        )
        finite = np.where(np.isfinite(data.critical_learning_rates), data.critical_learning_rates, np.nan)
        label = r"critical rate $\eta_c^*$"
        (self.line_,) = ax.plot(data.values, finite, color="red", marker="o", label=label)
        ax.set(yscale="log", xlabel=LABELS[data.vary], ylabel="learning rate", title="Training loss (grey: diverged)")
        if len(data.values) <= 8:
            ax.set_xticks(data.values)
        ax.legend(loc="upper right")
        self.colorbar_ = ax.figure.colorbar(self.image_, ax=ax, label=r"$\log_{10}$ loss")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell borders half-way between the centres, so that each cell shows its own value."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
