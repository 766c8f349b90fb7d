"""The spectral density of the Hessian of the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._validation import check_instance, check_interval, float_array
from .panels import single_axes

__all__ = ["HessianSpectrumDisplay"]


class HessianSpectrumDisplay:
    r"""Smoothed density of the Hessian's eigenvalues.

    .. math:: \phi(t) = \frac{1}{K} \sum_{k=1}^K \sum_j w_{kj}\, \mathcal{N}(t; \theta_{kj}, \sigma^2)

    from K draws of stochastic Lanczos quadrature, or from all eigenvalues with equal weights. The band shows one
    standard error over the draws in each direction.

    Parameters
    ----------
    nodes, weights : array-like of shape (n_draws, n_nodes)
        Nodes and weights of the quadrature; the weights of a draw are nonnegative and sum to 1. Neither is modified.

    Attributes
    ----------
    line_ : Line2D
    band_ : PolyCollection or None
        None for a single draw.
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    FisherSpectrumDisplay : The same for the Fisher information.

    References
    ----------
    Ghorbani, Krishnan, Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue density;
    Yao, Gholami, Keutzer, Mahoney (2020), PyHessian.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_capacity.displays import HessianSpectrumDisplay
    >>> display = HessianSpectrumDisplay([[0.0, 1.0]], [[0.75, 0.25]])
    >>> t, density, _ = display.density(width=0.01)
    >>> round(float(t[density.argmax()]), 1)
    0.0
    """

    def __init__(self, nodes: Any, weights: Any):
        self.nodes = nodes
        self.weights = weights

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, **params: Any) -> HessianSpectrumDisplay:
        """Create the display for a model's Hessian.

        Parameters
        ----------
        estimator, X, y
            As in `measure_capacity`.
        **params
            `n_draws` (default 10) and `n_steps` (default 80): the number of random vectors, and of Hessian-vector
            products for each; with up to 300 parameters all eigenvalues are computed instead. Also `loss`,
            `max_samples`, `batch_size`, `device`, `random_state` and `verbose`, as in `measure_capacity`.

        Returns
        -------
        HessianSpectrumDisplay
            Not drawn yet: call `plot`.
        """
        from ..scoring.spectrum import hessian_quadrature

        return cls(*hessian_quadrature(estimator, X, y, **params))

    def density(self, *, width: float | None = None, n_points: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the smoothed density.

        Parameters
        ----------
        width : float > 0, default=None
            Standard deviation sigma of the smoothing; None uses a hundredth of the range of the nodes.
        n_points : int, default=1000
            Number of points; they extend four widths beyond the range of the nodes.

        Returns
        -------
        t, density, standard_error : ndarray of shape (n_points,)
            The standard error is 0 for a single draw.
        """
        nodes, weights = self._checked()
        span = float(np.ptp(nodes))
        if width is None:
            width = 0.01 * (span or abs(float(nodes.flat[0])) or 1.0)
        check_interval("width", width, 0, math.inf, closed="neither")
        t = np.linspace(nodes.min() - 4 * width, nodes.max() + 4 * width, n_points)
        height = 1 / (width * math.sqrt(2 * math.pi))
        draws = np.stack(
            [
                np.exp(-(((t[:, None] - theta) / width) ** 2) / 2) @ (height * w)
                for theta, w in zip(nodes, weights, strict=True)
            ]
        )  # (n_draws, n_points)
        error = draws.std(0, ddof=1) / math.sqrt(len(draws)) if len(draws) > 1 else np.zeros_like(t)
        return t, draws.mean(0), error

    def plot(self, ax: Any = None, *, width: float | None = None, label: str | None = None) -> HessianSpectrumDisplay:
        """Draw the density on a logarithmic axis, from a millionth of its maximum.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.
        width : float > 0, default=None
            As in `density`.
        label : str, default=None
            Label of the line, for a legend.

        Returns
        -------
        HessianSpectrumDisplay
            The display itself, with the artists as attributes.
        """
        t, density, error = self.density(width=width)
        ax = single_axes(ax)
        if label is not None:
            check_instance("label", label, str, "a string")
        floor = 1e-6 * density.max()
        (self.line_,) = ax.plot(t, np.maximum(density, floor), label=label)
        self.band_ = None
        if len(self._checked()[0]) > 1:
            low, high = (np.maximum(density + sign * error, floor) for sign in (-1, 1))
            self.band_ = ax.fill_between(t, low, high, color=self.line_.get_color(), alpha=0.3, lw=0)
        ax.set(yscale="log", xlabel="eigenvalue of the Hessian", ylabel="density")
        ax.grid(alpha=0.3)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _checked(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = float_array("nodes", self.nodes), float_array("weights", self.weights)
        if nodes.ndim != 2 or nodes.shape != weights.shape or not nodes.size or not np.isfinite(nodes).all():
            raise ValueError(
                "`nodes` and `weights` must be finite and of one shape (n_draws, n_nodes), got shapes "
                f"{nodes.shape} and {weights.shape}."
            )
        if not (weights >= 0).all() or not np.allclose(weights.sum(1), 1):
            raise ValueError("`weights` must be at least 0 and sum to 1 in every draw, got others.")
        return nodes, weights
