"""Proofs, in floating point, that no singular value exceeds a number."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROUNDING", "exceeds", "largest_gram_root", "matrix_norm_upper"]

# What rounding can do to a proof: a Cholesky factorisation that succeeds shows lambda_min >= -n eps trace-like terms
# (Rump 2006), below 1e-9 of the norm squared up to n = 2000. Every upper end is raised by this part of itself.
ROUNDING = 1e-9


def exceeds(gram: Tensor, squared: Tensor | float) -> Tensor:
    """Which matrices of the batch `gram` (Hermitian, >= 0) may have an eigenvalue above `squared`.

    False is a proof, up to `ROUNDING`: squared * I - gram has a Cholesky factorisation.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky_ex(identity * squared - gram).info != 0


def largest_gram_root(gram: Tensor, floor: float, ceiling: float = float("inf")) -> float:
    """The root of the largest eigenvalue over a batch of Gram matrices, or `floor` if that is larger.

    A Cholesky factorisation is several times cheaper than eigenvalues, so these are computed only for the few matrices
    that can beat the best so far; a value above `ceiling` is returned at once.
    """
    best = floor
    order = torch.linalg.matrix_norm(gram).argsort(descending=True)
    gram = gram[order]
    while gram.shape[0] and best <= ceiling:
        # Slightly raised, or the matrix just measured would come back for ever.
        if best > 0:
            gram = gram[exceeds(gram, (best * (1 + ROUNDING / 8)) ** 2)]
            if not gram.shape[0]:
                break
        count = max(1, 1024 // gram.shape[-1])
        head, gram = gram[:count], gram[count:]
        best = max(best, float(torch.linalg.eigvalsh(head)[:, -1].max().clamp(min=0).sqrt()))
    return best


def matrix_norm_upper(matrix: Tensor, lower: float = 0.0) -> float:
    """A proven upper end of the spectral norm of a matrix, within 1e-8 of it if `lower` is.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.certificate import matrix_norm_upper
    >>> round(matrix_norm_upper(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))), 6)
    3.0
    """
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return largest_gram_root(gram[None], lower) * (1 + ROUNDING)
