"""The statistics of the Fisher information that follow from the order parameters."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sklearn_capacity._validation import check_interval
from sklearn_capacity.theory._integrals import Array

__all__ = ["MeanField"]

# The computed mean of an odd activation is a few units in the last place, and it enters as its square.
ROUNDING = (100 * np.finfo(np.float64).eps) ** 2


@dataclass(frozen=True, eq=False)
class MeanField:
    """Statistics of the Fisher information of a wide random network, as returned by `mean_field`.

    F = (1/T) sum_t sum_k grad f_k(x_t) grad f_k(x_t)^T over P weights and biases, T samples with E x_i^2 = 1.

    Attributes
    ----------
    depth, width, n_outputs : int
        Number of weight layers L, scale M of the widths, number of outputs C.
    width_ratios : ndarray of shape (L,)
        alpha_0 .. alpha_{L-1}: layer l has alpha_l M units.
    sigma_w2, sigma_b2 : ndarray of shape (L,)
        Entry l - 1 belongs to weight layer l.
    q_hat : ndarray of shape (L + 1,)
        Mean squared activation of layers 0 .. L, eq. (7); entry 0 is the input's, 1.
    q_hat_st : ndarray of shape (L + 1,)
        Mean product of the activations of two samples, layers 0 .. L, eq. (10); entry 0 is `input_correlation`.
    q_tilde : ndarray of shape (L,)
        Summed squared back-propagated signal of layers 1 .. L, eq. (8): entry l - 1 belongs to layer l.
    q_tilde_st : ndarray of shape (L,)
        The same for the product over two samples, eq. (11).
    fisher_rao : float
        Expectation of theta^T F theta, theta = weight matrices, **corrected** (see `mean_field`, Notes).
    fisher_rao_with_biases : float
        The same with the biases in theta.
    quadrature_error : float
        Largest relative change between the last two quadrature rules; 0 for closed forms.
    """

    depth: int
    width: int
    n_outputs: int
    width_ratios: Array
    sigma_w2: Array
    sigma_b2: Array
    q_hat: Array
    q_hat_st: Array
    q_tilde: Array
    q_tilde_st: Array
    fisher_rao: float
    fisher_rao_with_biases: float
    quadrature_error: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    @property
    def alpha(self) -> float:
        """sum_{l=1}^{L-1} alpha_l alpha_{l-1}, so that P is about alpha M^2."""
        return float(self.width_ratios[1:] @ self.width_ratios[:-1])

    @property
    def n_parameters(self) -> int:
        """P: weights and biases of the network whose layer l has round(alpha_l M) units."""
        units = [max(1, round(ratio * self.width)) for ratio in self.width_ratios] + [self.n_outputs]
        return sum(out * (into + 1) for into, out in zip(units, units[1:], strict=False))

    @property
    def K1(self) -> float:
        """C / alpha sum_l alpha_{l-1} q_tilde^l q_hat^{l-1}, eq. (9)."""
        return float(self.n_outputs / self.alpha * (self.width_ratios * self.q_tilde) @ self.q_hat[:-1])

    @property
    def K2_lower(self) -> float:
        """C / alpha (sum_l alpha_{l-1} q_tilde_st^l q_hat_st^{l-1})^2, eq. (12)."""
        return self.n_outputs / self.alpha * self._correlation**2

    @property
    def K2_upper(self) -> float:
        """alpha K1^2, eq. (12)."""
        return self.alpha * self.K1**2

    @property
    def mean_eigenvalue(self) -> float:
        """K1 / M, the mean of the P eigenvalues (theorem 1)."""
        return self.K1 / self.width

    @property
    def second_moment_bounds(self) -> tuple[float, float]:
        """Bounds of sum_i lambda_i^2 / P (theorem 3)."""
        return self.K2_lower, self.K2_upper

    @property
    def max_eigenvalue_bounds(self) -> tuple[float, float]:
        """Bounds of the largest eigenvalue (theorem 4)."""
        return self._correlation * self.width, float(np.sqrt(self.alpha * self.K2_upper) * self.width)

    @property
    def fisher_rao_theorem7(self) -> float:
        """C sum_l sigma_w^2 q_tilde^l q_hat^{l-1}, theorem 7 as printed: **incorrect**, kept for comparison."""
        return float(self.n_outputs * (self.sigma_w2 * self.q_tilde) @ self.q_hat[:-1])

    def n_large_eigenvalues(self, k: float) -> float:
        """Upper bound of the number of eigenvalues >= k: min(alpha K1 M / k, P) (corollary 2).

        Parameters
        ----------
        k : float in (0, inf)

        Returns
        -------
        float
        """
        k = check_interval("k", k, 0.0, closed="neither")
        return float(min(self.alpha * self.K1 * self.width / k, self.n_parameters))

    def critical_learning_rate(self, momentum: float = 0.0) -> float:
        """Learning rate above which gradient descent cannot converge: 2 (1 + mu) / lower bound of lambda_max.

        For full-batch descent on E = (1 / 2T) sum_t ||y_t - f(x_t)||^2; an upper bound of the true critical rate
        2 (1 + mu) / lambda_max (theorem 6). torch's MSELoss averages over the C outputs as well: multiply by C / 2.

        Parameters
        ----------
        momentum : float in [0, 1), default=0.0

        Returns
        -------
        float
            inf if the lower bound of lambda_max is 0 (odd activation, no biases, uncorrelated inputs): the theorem then
            excludes nothing.
        """
        momentum = check_interval("momentum", momentum, 0.0, 1.0, closed="left")
        lower = self.max_eigenvalue_bounds[0]
        return 2 * (1 + momentum) / lower if lower > 0 else float("inf")

    @property
    def _correlation(self) -> float:
        """sum_l alpha_{l-1} q_tilde_st^l q_hat_st^{l-1}; 0 if it is only rounding error of the integrals."""
        value = float((self.width_ratios * self.q_tilde_st) @ self.q_hat_st[:-1])
        alike = float((self.width_ratios * self.q_tilde) @ self.q_hat[:-1])  # for a sample with itself
        return value if value > ROUNDING * alike else 0.0
