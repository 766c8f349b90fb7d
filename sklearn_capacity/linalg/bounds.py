"""Both ends of a spectral norm."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NormBounds", "norm_bounds"]


@dataclass(frozen=True)
class NormBounds:
    """The spectral norm between its ends.

    Attributes
    ----------
    lower : float
        From below; converged to `residual` after `steps`, 0 steps meaning a direct computation.
    upper : float
        Proven.
    residual : float
    steps : int
    """

    lower: float
    upper: float
    residual: float
    steps: int

    @property
    def gap(self) -> float:
        """How far the ends are apart, relative to the lower one."""
        return self.upper / self.lower - 1 if self.lower > 0 else 0.0


def norm_bounds(operator, tol: float = 1e-7, *, random_state: int = 0) -> NormBounds:
    """Spectral norm of an operator from below and from above.

    Parameters
    ----------
    operator : MatrixOperator, DiagonalOperator, ConvOperator or PoolOperator
    tol : float in (0, 1), default=1e-7
        Relative residual of the lower end.
    random_state : int, default=0

    Returns
    -------
    NormBounds

    Notes
    -----
    The lower end comes first: it spares the upper one most of its work.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator, norm_bounds
    >>> bounds = norm_bounds(ConvOperator(torch.ones(1, 1, 3, 3), (1, 8, 8), padding=1))
    >>> bounds.lower <= bounds.upper, bounds.gap < 1e-8
    (True, True)
    """
    lower = operator.norm_lower(tol, random_state=random_state)
    return NormBounds(lower.value, operator.norm_upper(lower.value), lower.residual, lower.steps)
