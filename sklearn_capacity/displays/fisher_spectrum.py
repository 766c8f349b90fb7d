"""Eigenvalues of the Fisher information and their mean-field predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import check_instance, float_array
from ..theory import MeanField
from .panels import single_axes

__all__ = ["FisherSpectrumDisplay"]


class FisherSpectrumDisplay:
    """Eigenvalues over their rank on logarithmic axes, with mean-field predictions.

    Parameters
    ----------
    eigenvalues : array-like of shape (n,), or dict of str to array-like
        Eigenvalues from `fisher_spectrum`, one line per key for a dict; not modified.
    mean_field : MeanField, default=None
        From `theory.mean_field`: adds the mean eigenvalue (theorem 1), the interval of the largest one (theorem 4) and
        the bound of the number of larger ones (corollary 2).

    Attributes
    ----------
    lines_ : dict of str to Line2D
        Eigenvalues by key; "" if no names were given.
    mean_ : Line2D or None
        Mean-field mean eigenvalue.
    largest_ : PolyCollection or None
        Mean-field interval of the largest eigenvalue.
    bound_ : Line2D or None
        Corollary 2: an upper bound of the number of eigenvalues above each height.
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    HessianSpectrumDisplay : The same for the Hessian of the loss.
    sklearn_capacity.fisher_spectrum : The eigenvalues it draws.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, section 3.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_capacity.displays import FisherSpectrumDisplay
    >>> display = FisherSpectrumDisplay([100.0, 1.0, 0.1, 0.0]).plot()
    >>> display.lines_[""].get_ydata().tolist()
    [100.0, 1.0, 0.1]
    """

    def __init__(self, eigenvalues: Any, mean_field: Any = None):
        self.eigenvalues = eigenvalues
        self.mean_field = check_instance(
            "mean_field", mean_field, (MeanField, type(None)), "None or the result of `theory.mean_field`"
        )

    @classmethod
    def from_estimator(cls, model: Any, X: Any, *, mean_field: Any = None, **params: Any) -> FisherSpectrumDisplay:
        """Display of a model's Fisher information.

        Parameters
        ----------
        model, X
            As in `fisher_spectrum`.
        mean_field : MeanField, default=None
        **params
            Keyword arguments of `fisher_spectrum`.

        Returns
        -------
        FisherSpectrumDisplay
            Not drawn yet: call `plot`.
        """
        from ..scoring import fisher_spectrum

        return cls(fisher_spectrum(model, X, **params), mean_field)

    from_model = from_estimator  # the name before

    def plot(self, ax: Any = None) -> FisherSpectrumDisplay:
        """Draw the eigenvalues, without those below 1e-12 of the largest, which are rounding errors.

        Parameters
        ----------
        ax : Axes, default=None
            None creates a figure.

        Returns
        -------
        FisherSpectrumDisplay
            The display itself, with the artists as attributes.
        """
        spectra = self._checked()
        ax = single_axes(ax)
        self.lines_: dict[str, Any] = {}
        longest, smallest = 1, np.inf
        for name, values in spectra.items():
            shown = values[values > 1e-12 * values.max()]
            longest, smallest = max(longest, len(shown)), min(smallest, shown[-1])
            ranks = np.arange(1, len(shown) + 1)
            (self.lines_[name],) = ax.plot(ranks, shown, marker=".", ms=4, lw=1, label=str(name) or "eigenvalues")
        self.mean_ = self.largest_ = self.bound_ = None
        if self.mean_field is not None:
            self._plot_theory(ax, longest, smallest)
        ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue of the Fisher information")
        ax.grid(alpha=0.3)
        if self.mean_field is not None or any(map(str, spectra)):
            ax.legend(fontsize="small", loc="upper right")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_theory(self, ax: Any, longest: int, smallest: float) -> None:
        theory = self.mean_field
        low, high = theory.max_eigenvalue_bounds
        self.mean_ = ax.axhline(
            theory.mean_eigenvalue, color="0.3", ls=":", label=f"mean over all {theory.n_parameters} (theorem 1)"
        )
        # Only at rank 1, since it is an interval for the largest eigenvalue; a bound of 0 cannot be drawn on the axis.
        bottom, label = low or min(smallest, high), "largest (theorem 4)"
        self.largest_ = ax.fill_between([0.85, 1.18], bottom, high, color="C1", alpha=0.3, label=label)
        ranks = np.geomspace(1, max(longest, 2), 50)
        bound = theory.alpha * theory.K1 * theory.width / ranks
        (self.bound_,) = ax.plot(ranks, bound, color="C3", ls="--", lw=1, label="upper bound (corollary 2)")

    def _checked(self) -> dict[str, np.ndarray]:
        named = self.eigenvalues if isinstance(self.eigenvalues, dict) else {"": self.eigenvalues}
        spectra = {name: np.sort(float_array("eigenvalues", values))[::-1] for name, values in named.items()}
        for name, values in spectra.items():
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values[0] <= 0:
                raise ValueError(
                    "`eigenvalues` must be one-dimensional and finite, with at least one above 0, got "
                    f"shape {values.shape}{f' for {name!r}' if name else ''}."
                )
        if not spectra:
            raise ValueError("`eigenvalues` must contain at least one spectrum, got none.")
        return spectra
