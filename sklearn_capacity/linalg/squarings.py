"""The leading eigenvectors of many small matrices, by repeated squaring."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["leading_eigenvectors"]

#: Rows from which squaring takes less than `torch.linalg.eigh`, which computes all eigenvectors.
WORTHWHILE = 16
#: Squarings between two normalisations, after which no power of a normalised matrix has vanished, and how often.
SQUARINGS, ROUNDS = 3, 4


def leading_eigenvectors(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    r"""Unit eigenvectors of the largest eigenvalues of positive semidefinite matrices.

    Powers of a matrix, divided by their traces, have positive eigenvalues p_i whose sum is 1, and converge to
    :math:`u u^\top` for its leading eigenvector u. How close they are shows in their squared Frobenius norm, as
    :math:`\sum_i p_i^2 \leq \max_i p_i`. Matrices whose two largest eigenvalues are too close for a power of 4096 are
    decomposed in full.

    Parameters
    ----------
    matrices : Tensor of shape (n, m, m)
    dtype : torch.dtype, default=None
        That of the powers, single precision or more; None is that of the matrices.

    Returns
    -------
    Tensor of shape (n, m)
        In the matrices' precision. If the largest eigenvalue is not simple, some vector of its eigenspace.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.squarings import leading_eigenvectors
    >>> leading_eigenvectors(torch.diag(torch.arange(3.0))[None]).abs()
    tensor([[0., 0., 1.]])
    """
    n, m, _ = matrices.shape
    if m < WORTHWHILE:
        return _decomposed(matrices)
    dtype = torch.promote_types(dtype or matrices.dtype, torch.float32)
    close = 0.1 * torch.finfo(dtype).eps ** 0.5  # the last product squares it
    vectors = matrices.new_empty(n, m)
    left = torch.arange(n, device=matrices.device)  # those without a vector
    powers = _normalized(matrices).to(dtype)  # (n, m, m)
    for _ in range(ROUNDS):
        for _ in range(SQUARINGS):
            powers = powers @ powers
        powers = _normalized(powers)
        converged = 1 - powers.square().sum((1, 2)) <= close  # (n',)
        vectors[left[converged]] = _columns(powers[converged]).to(vectors.dtype)
        left, powers = left[~converged], powers[~converged]
        if not len(left):
            return vectors
    vectors[left] = _decomposed(matrices[left])
    return vectors


def _normalized(matrices: Tensor) -> Tensor:
    """Each matrix over its trace."""
    return matrices / matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _columns(powers: Tensor) -> Tensor:
    """``S s / |S s|`` for the column s of each matrix S with the largest entry on the diagonal, (n, m)."""
    largest = powers.diagonal(dim1=1, dim2=2).argmax(1)  # (n,)
    columns = powers[torch.arange(len(powers), device=powers.device), largest]  # (n, m), rows of symmetric matrices
    products = (powers @ columns[:, :, None]).squeeze(2)
    return products / torch.linalg.vector_norm(products, dim=1, keepdim=True)


def _decomposed(matrices: Tensor) -> Tensor:
    return torch.linalg.eigh(matrices.double()).eigenvectors[:, :, -1].to(matrices.dtype)
