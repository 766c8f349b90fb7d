"""The power law in the tail of a sample, by maximum likelihood above the threshold where it fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sklearn_capacity._validation import NotDefinedError

__all__ = ["PowerLaw", "fit_power_law"]

#: Numbers that differ by less than this part are the same one: eigenvalues repeat up to rounding.
SAME = 1e-9


@dataclass(frozen=True)
class PowerLaw:
    """A density in proportion to x^-alpha above a threshold.

    Attributes
    ----------
    alpha : float
    standard_error : float
        (alpha - 1) / sqrt(n_tail), of the likelihood at the given threshold.
    x_min : float
        The threshold.
    n_tail : int
        Numbers of the sample that are at least that.
    distance : float
        The Kolmogorov-Smirnov distance between these and the law.
    """

    alpha: float
    standard_error: float
    x_min: float
    n_tail: int
    distance: float


def fit_power_law(values: np.ndarray) -> PowerLaw:
    r"""The exponent of a power law in the tail of a sample.

    .. math:: \alpha = 1 + n \Big( \sum_{x_i \ge x_{\min}} \ln (x_i / x_{\min}) \Big)^{-1}

    over the n numbers from :math:`x_{\min}` on, which is the number of the sample at which the largest distance between
    the law's distribution function and that of the sample is least. The latter is taken just below each number, as in
    the code of Clauset et al., in `powerlaw` and in WeightWatcher.

    Parameters
    ----------
    values : ndarray of positive numbers

    Returns
    -------
    PowerLaw

    Raises
    ------
    NotDefinedError
        If there are not two different numbers.

    Notes
    -----
    Quadratic in their number.

    References
    ----------
    Clauset, Shalizi, Newman (2009), Power-law distributions in empirical data, eqs. 3.1, 3.2 and 3.9.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.linalg import fit_power_law
    >>> law = fit_power_law(1 / (1 - np.arange(0.0, 1.0, 0.001)))  # evenly spaced quantiles of x^-2
    >>> round(law.alpha, 1), law.x_min
    (2.0, 1.0)
    """
    logs = np.sort(np.log(np.asarray(values, dtype=np.float64)))
    best: PowerLaw | None = None
    for i in range(len(logs) - 1):
        repeated = i > 0 and logs[i] - logs[i - 1] < SAME
        if repeated or logs[-1] - logs[i] < SAME:
            continue
        excess = logs[i:] - logs[i]  # (n,)
        n = len(excess)
        slope = n / float(excess.sum())
        distance = float(np.abs(-np.expm1(-slope * excess) - np.arange(n) / n).max())
        if best is None or distance < best.distance:
            best = PowerLaw(1 + slope, slope / math.sqrt(n), math.exp(logs[i]), n, distance)
    if best is None:
        raise NotDefinedError(f"A power law needs two different numbers, got {len(logs)} that are the same.")
    return best
