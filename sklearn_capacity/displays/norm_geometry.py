"""Level sets of capacities over two weights of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import check_instance, check_integer
from ..scoring.landscape import MeasureLandscape, measure_landscape
from .panels import several_axes

__all__ = ["NormGeometryDisplay"]


class NormGeometryDisplay:
    """Contours of measures over two weights with all others fixed, one panel per measure.

    The level sets of the Fisher-Rao norm depend only on the data and on the function; those of a path norm are
    symmetric in the signs of the weights.

    Parameters
    ----------
    landscape : MeasureLandscape
        The result of `scoring.landscape.measure_landscape`; not modified.

    Attributes
    ----------
    contours_ : dict of str to matplotlib QuadContourSet
    points_ : dict of str to Line2D
        The position of the model.
    axes_ : ndarray of Axes
    figure_ : Figure

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, figure 6.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity.displays import NormGeometryDisplay
    >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    >>> display = NormGeometryDisplay.from_estimator(net, torch.eye(2), loss="absolute", resolution=5).plot()
    >>> sorted(display.contours_)
    ['fisher_rao_norm', 'l2_path_norm']
    """

    def __init__(self, landscape: MeasureLandscape):
        self.landscape = check_instance("landscape", landscape, MeasureLandscape, "a MeasureLandscape")

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any = None, **params: Any) -> NormGeometryDisplay:
        """Measure a model over a grid of two of its weights.

        Parameters
        ----------
        estimator : fitted estimator, skorch net, nn.Module or scikit-learn network
        X, y
            Data for measures that need them.
        **params
            `weights`, `measures`, `half_width`, `resolution` and `loss` of `scoring.landscape.measure_landscape`.

        Returns
        -------
        NormGeometryDisplay
        """
        return cls(measure_landscape(estimator, X, y, **params))

    def plot(self, axes: Any = None, *, levels: int = 8) -> NormGeometryDisplay:
        """Draw the panels.

        Parameters
        ----------
        axes : array of Axes, default=None
            One per measure; None creates a figure.
        levels : int >= 1, default=8
            Approximate number of contours per panel.

        Returns
        -------
        NormGeometryDisplay
            The display itself, with the artists as attributes.
        """
        import matplotlib.pyplot as plt

        check_integer("levels", levels, 1)
        land = self.landscape
        n = len(land.values)
        if axes is None:
            _, axes = plt.subplots(1, n, sharex=True, sharey=True, figsize=(0.8 + 3.2 * n, 3.6), layout="constrained")
        self.axes_ = several_axes(axes, n)
        self.figure_ = self.axes_[0].figure
        self.contours_: dict[str, Any] = {}
        self.points_: dict[str, Any] = {}
        for ax, (name, values) in zip(self.axes_, land.values.items(), strict=True):
            # Infinite values have no contour.
            contours = ax.contour(land.x, land.y, np.ma.masked_invalid(values), levels=levels, cmap="viridis")
            ax.clabel(contours, contours.levels[::2], fontsize=7)
            self.contours_[name] = contours
            (self.points_[name],) = ax.plot(*land.here, marker="*", color="C3", ls="none", ms=10, label="network")
            ax.set(title=name.replace("_", " "), xlabel=land.names[0], aspect="equal")
        self.axes_[0].set_ylabel(land.names[1])
        self.axes_[0].legend(fontsize="small")
        return self
