r"""Norms :math:`\|A\|_{p \to q}` induced by l_p and l_q, for the pairs that can be computed exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklearn_capacity._validation import check_interval

from .entry_norms import stable_norm
from .matrix import DiagonalOperator, MatrixOperator

__all__ = ["diagonal_norm", "dual_exponent", "induced_norm"]


def dual_exponent(p: float) -> float:
    """The exponent p* with 1/p + 1/p* = 1.

    Parameters
    ----------
    p : float in [1, inf]

    Returns
    -------
    float

    Examples
    --------
    >>> from sklearn_capacity.linalg import dual_exponent
    >>> dual_exponent(1.0), dual_exponent(2.0), dual_exponent(4.0)
    (inf, 2.0, 1.3333333333333333)
    """
    p = check_interval("p", p, 1)
    if p == 1:
        return math.inf
    return 1.0 if math.isinf(p) else p / (p - 1)


def induced_norm(operator, p: float, q: float) -> float:
    r"""Norm of a linear map from l_p to l_q.

    .. math:: \|A\|_{p \to q} = \max_v \|A v\|_q / \|v\|_p

    With p = 1, the largest l_q norm of a column; with q = inf, the largest l_{p*} norm of a row; with p = q = 2, the
    spectral norm (for convolutions its lower bound). Diagonal maps support every pair.

    Parameters
    ----------
    operator : Tensor of shape (out, in), MatrixOperator, DiagonalOperator, ConvOperator or PoolOperator
    p, q : float in [1, inf]

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For other pairs, whose norms are NP-hard or have no closed form.

    References
    ----------
    Hendrickx, Olshevsky: Matrix p-norms are NP-hard to approximate if p != 1, 2, inf (2010).

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import induced_norm
    >>> A = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    >>> induced_norm(A, 1, 1), induced_norm(A, float("inf"), float("inf")), induced_norm(A, 1, float("inf"))
    (6.0, 7.0, 4.0)
    """
    p, q = check_interval("p", p, 1), check_interval("q", q, 1)
    if isinstance(operator, Tensor):
        operator = MatrixOperator(operator)
    if isinstance(operator, DiagonalOperator):
        return diagonal_norm(operator.diagonal, p, q)
    # The l_1 ball is the convex hull of +-e_j, and ||A e_j||_q is the norm of a column.
    if p == 1:
        return float(operator.column_norms(q).max())
    # max_i max_v <a_i, v> over ||v||_p <= 1 is the largest dual norm of a row a_i.
    if math.isinf(q):
        return float(operator.row_norms(dual_exponent(p)).max())
    if p == q == 2:
        return operator.norm_lower().value
    raise ValueError(
        f"`p` and `q` must be a pair whose norm can be computed, got p={p:g}, q={q:g}. "
        "Use p = 1 with any q, any p with q = inf, or p = q = 2."
    )


def diagonal_norm(diagonal: Tensor, a: float, b: float) -> float:
    r"""Norm of diag(d) from l_a to l_b, for every pair.

    .. math:: \|\mathrm{diag}(d)\|_{a \to b} = \max_i |d_i| \text{ if } a \le b, \text{ else } \|d\|_r,
              \; 1/r = 1/b - 1/a

    Parameters
    ----------
    diagonal : Tensor
        All factors; a factor that acts on many entries is repeated.
    a, b : float in [1, inf]

    Returns
    -------
    float

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import diagonal_norm
    >>> d = torch.tensor([3.0, 4.0])
    >>> diagonal_norm(d, 1, 2), diagonal_norm(d, float("inf"), 2), diagonal_norm(d, float("inf"), 1)
    (4.0, 5.0, 7.0)
    """
    a, b = check_interval("a", a, 1), check_interval("b", b, 1)
    factors = diagonal.detach().to(torch.float64).reshape(-1)  # (n,)
    # Hoelder: ||d v||_b <= ||d||_r ||v||_a with 1/b = 1/r + 1/a, with equality for |v_i|^a proportional to |d_i|^r.
    return float(stable_norm(factors, math.inf if a <= b else 1 / (1 / b - 1 / a)))
