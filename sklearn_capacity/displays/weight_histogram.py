"""Distributions of the weights of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import check_boolean, check_instance, check_integer, float_array
from ..scoring.landscape import network_weights
from .panels import single_axes

__all__ = ["WeightHistogramDisplay"]


class WeightHistogramDisplay:
    """Densities of the weights of one or more networks on a common axis.

    Networks that fitted random labels have heavier tails than those that learned; the legend shows the standard
    deviation and the excess kurtosis (0 for a Gaussian) of each.

    Parameters
    ----------
    weights : dict of str to array-like of shape (n_weights,)
        Weights by label; not modified.

    Attributes
    ----------
    patches_ : dict of str to matplotlib Polygon
        The outline of each histogram.
    edges_ : ndarray
        The common bins.
    ax_ : Axes
    figure_ : Figure

    See Also
    --------
    HistoryDisplay : What training records per epoch.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, figure 1.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_capacity.displays import WeightHistogramDisplay
    >>> rng = np.random.default_rng(0)
    >>> display = WeightHistogramDisplay({"before": rng.normal(size=900), "after": rng.laplace(size=900)}).plot()
    >>> list(display.patches_)
    ['before', 'after']
    """

    def __init__(self, weights: Mapping[str, Any]):
        self.weights = check_instance("weights", weights, Mapping, "a dict of label to weights")

    @classmethod
    def from_estimator(cls, estimator: Any, *, label: str = "trained", initial: bool = True) -> WeightHistogramDisplay:
        """Create the display for a fitted model, with its weights before training.

        Parameters
        ----------
        estimator : fitted estimator, skorch net, nn.Module or scikit-learn network
        label : str, default="trained"
        initial : bool, default=True
            Whether to also show the weights before training, which estimators of this package store.

        Returns
        -------
        WeightHistogramDisplay
        """
        weights = (
            {"initialization": network_weights(estimator, initial=True)} if check_boolean("initial", initial) else {}
        )
        return cls({**weights, check_instance("label", label, str, "text"): network_weights(estimator)})

    @classmethod
    def from_estimators(cls, estimators: Mapping[str, Any]) -> WeightHistogramDisplay:
        """Create the display for several fitted models.

        Parameters
        ----------
        estimators : dict of label to model

        Returns
        -------
        WeightHistogramDisplay
        """
        check_instance("estimators", estimators, Mapping, "a dict of label to model")
        return cls({label: network_weights(estimator) for label, estimator in estimators.items()})

    def plot(self, ax: Any = None, *, bins: int = 100, log: bool = True) -> WeightHistogramDisplay:
        """Draw the densities.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.
        bins : int >= 1, default=100
            Number of bins of equal width over the range of all weights.
        log : bool, default=True
            Whether to use a logarithmic axis, which shows the tails.

        Returns
        -------
        WeightHistogramDisplay
            The display itself, with the artists as attributes.
        """
        check_integer("bins", bins, 1)
        arrays = {label: _checked(label, values) for label, values in self.weights.items()}
        if not arrays:
            raise ValueError("`weights` must contain at least one network's weights, got none.")
        ax = single_axes(ax, figsize=(6, 4))
        self.ax_, self.figure_ = ax, ax.figure
        self.edges_ = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=bins)
        self.patches_: dict[str, Any] = {}
        for label, values in arrays.items():
            shown = f"{label} (sd {values.std():.3g}, excess kurtosis {_excess_kurtosis(values):.2g})"
            _, _, (self.patches_[label],) = ax.hist(
                values, bins=self.edges_, density=True, histtype="step", log=check_boolean("log", log), label=shown
            )
        ax.set(xlabel="weight", ylabel="density")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)  # above, since the tails fill the axes
        return self


def _checked(label: str, values: Any) -> np.ndarray:
    array = float_array("weights", values).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"`weights` of {label!r} must be finite numbers, at least one.")
    return array


def _excess_kurtosis(values: np.ndarray) -> float:
    """Fourth moment over the squared variance, minus 3; 0 for a Gaussian and for equal values."""
    centred = values - values.mean()
    variance = np.mean(centred**2)
    return float(np.mean(centred**4) / variance**2 - 3) if variance > 0 else 0.0
