"""The power law in the tail of a sample, by maximum likelihood above the best-fitting threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sklearn_capacity._validation import NotDefinedError

__all__ = ["PowerLaw", "fit_power_law"]

#: Numbers with a smaller relative difference count as equal, since eigenvalues repeat up to rounding.
SAME = 1e-9


@dataclass(frozen=True)
class PowerLaw:
    """A density proportional to x^-alpha above a threshold.

    Attributes
    ----------
    alpha : float
    standard_error : float
        (alpha - 1) / sqrt(n_tail), from the likelihood at the given threshold.
    x_min : float
        The threshold.
    n_tail : int
        Number of sample values at or above the threshold.
    distance : float
        The Kolmogorov-Smirnov distance between these values and the law.
    """

    alpha: float
    standard_error: float
    x_min: float
    n_tail: int
    distance: float


def fit_power_law(values: np.ndarray) -> PowerLaw:
    r"""The exponent of a power law in the tail of a sample.

    .. math:: \alpha = 1 + n \Big( \sum_{x_i \ge x_{\min}} \ln (x_i / x_{\min}) \Big)^{-1}

    over the n values from :math:`x_{\min}` on. The threshold is the sample value that minimises the largest distance
    between the distribution functions of the law and of the sample. The latter is evaluated just below each value, as
    in the code of Clauset et al., in `powerlaw` and in WeightWatcher.

    Parameters
    ----------
    values : ndarray of positive numbers

    Returns
    -------
    PowerLaw

    Raises
    ------
    NotDefinedError
        If there are fewer than two distinct numbers.

    Notes
    -----
    The cost is quadratic in the number of values.

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
    logs = np.sort(np.log(np.asarray(values, dtype=np.float64)))  # (n,), ascending
    best: PowerLaw | None = None
    for i in range(len(logs) - 1):
        repeated = i > 0 and logs[i] - logs[i - 1] < SAME
        if repeated or logs[-1] - logs[i] < SAME:
            continue
        excess = logs[i:] - logs[i]  # (n,)
        n = len(excess)
        slope = n / float(excess.sum())  # alpha - 1, eq. 3.1
        # The law's distribution function is 1 - (x / x_min)^(1 - alpha) = 1 - exp(-(alpha - 1) excess), eq. 3.9.
        distance = float(np.abs(-np.expm1(-slope * excess) - np.arange(n) / n).max())
        if best is None or distance < best.distance:
            best = PowerLaw(1 + slope, slope / math.sqrt(n), math.exp(logs[i]), n, distance)
    if best is None:
        raise NotDefinedError(f"A power law needs two distinct numbers, got {len(logs)} that are equal.")
    return best
