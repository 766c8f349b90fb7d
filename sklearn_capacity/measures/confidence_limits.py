"""Upper limits of an expectation from draws in [0, 1]."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["kl_inverse", "upper_limit"]


def upper_limit(errors: Tensor, delta: float) -> float:
    """An upper limit of the expectation of draws in [0, 1], exceeded with probability at most delta.

    The smaller of two limits, each at delta / 2: Chernoff's kl(mean, p) <= ln(1 / delta) / n, which is tight near 0,
    and the empirical Bernstein bound, which is tight if the draws hardly differ (Maurer and Pontil 2009, theorem 4).
    """
    n, mean = len(errors), float(errors.mean())
    limit = kl_inverse(mean, math.log(2 / delta) / n)
    if n > 1:
        log = math.log(4 / delta)
        limit = min(limit, mean + math.sqrt(2 * float(errors.var()) * log / n) + 7 * log / (3 * (n - 1)))
    return limit


def kl_inverse(q: float, budget: float) -> float:
    """The largest p with kl(q, p) <= budget, rounded up; kl is the divergence of Bernoulli distributions.

    Examples
    --------
    >>> round(kl_inverse(0.0, 0.1), 6)  # 1 - exp(-0.1)
    0.095163
    """
    low, high = q, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _binary_kl(q, middle) > budget:
            high = middle
        else:
            low = middle
    return high


def _binary_kl(q: float, p: float) -> float:
    if p >= 1:
        return 0.0 if q >= 1 else math.inf
    first = q * math.log(q / p) if q > 0 else 0.0
    return first + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)
