"""Proofs in floating point that no singular value exceeds a number."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROUNDING", "certified_norm", "exceeds", "largest_gram_root"]

# Bound for the effect of rounding on a proof: a successful Cholesky factorisation shows lambda_min >= -n eps trace-like
# terms (Rump 2006), below 1e-9 of the norm squared up to n = 2000. Every upper bound is raised by this fraction.
ROUNDING = 1e-9


def exceeds(gram: Tensor, squared: Tensor | float) -> Tensor:
    """For each matrix of the batch `gram` (Hermitian, >= 0), whether it may have an eigenvalue above `squared`.

    False is a proof, up to `ROUNDING`: squared * I - gram has a Cholesky factorisation.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)  # (side, side)
    return torch.linalg.cholesky_ex(identity * squared - gram).info != 0


def largest_gram_root(gram: Tensor, floor: float, ceiling: float = float("inf")) -> float:
    """The root of the largest eigenvalue over Gram matrices (n, side, side), or `floor` if that is larger.

    A Cholesky factorisation is several times cheaper than eigenvalues, so these are computed only for the few matrices
    whose root can exceed the largest one so far; a value above `ceiling` is returned at once.
    """
    best = floor
    # (n,): the largest eigenvalue is probably among the first
    order = torch.linalg.matrix_norm(gram).argsort(descending=True)
    gram = gram[order]
    while gram.shape[0] and best <= ceiling:
        # Slightly raised: otherwise rounding could retain the matrix just evaluated, and the loop would not end.
        if best > 0:
            gram = gram[exceeds(gram, (best * (1 + ROUNDING / 8)) ** 2)]
            if not gram.shape[0]:
                break
        count = max(1, 1024 // gram.shape[-1])
        head, gram = gram[:count], gram[count:]  # (count, side, side), and the rest
        best = max(best, float(torch.linalg.eigvalsh(head)[:, -1].max().clamp(min=0).sqrt()))
    return best


def certified_norm(matrices: Tensor, lower: float = 0.0) -> float:
    """A proven upper bound of the largest spectral norm in a batch of matrices (n, rows, columns).

    If `lower` has converged, the bound is within 1e-7 of it at the cost of a Cholesky factorisation.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.certificate import certified_norm
    >>> round(certified_norm(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))[None]), 6)
    3.0
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices  # (n, side, side), of the shorter side
    if lower > 0:
        for slack in (ROUNDING, 100 * ROUNDING):  # the usual accuracy of `operator_norm`, and its tolerance
            if not bool(exceeds(gram, (lower * (1 + slack)) ** 2).any()):
                return lower * (1 + slack) * (1 + ROUNDING)
    return largest_gram_root(gram, lower) * (1 + ROUNDING)
