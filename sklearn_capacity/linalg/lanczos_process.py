"""The Lanczos iteration for one symmetric operator or a batch, and the error of its largest Ritz value.

The possible distance of a value from the largest eigenvalue is bounded as follows. Let y be the Ritz vector of the
largest Ritz value theta, with all vectors of length one: A y = theta y + r q, where q is the next basis vector. The
inner product with the leading eigenvector u gives

    lambda - theta = r <q, u> / <y, u> <= r / |<y, u>|.

y is a polynomial of A times the start vector b, and the zeros of the polynomial are the other Ritz values. It increases
above them, so y contains at least the part of u that b contains: |<y, u>| >= |<b, u>| / |<b, y>|. For a random b of
length one in n dimensions, |<b, u>| < delta has probability below delta sqrt(2 n / pi). With this probability set to
`MISS`,

    lambda - theta <= r |<b, y>| / delta,    delta = MISS sqrt(pi / (2 n)).

The bound also holds for close and for repeated eigenvalues. Temple's r^2 / gap, with Ritz values for eigenvalues, is
not a bound: with theta between two close eigenvalues, the gap to the second one is not visible.

Reference: van Dorsselaer, Hochstenbach, van der Vorst (2000), Computing probabilistic bounds for extreme eigenvalues of
symmetric matrices with the Lanczos method, SIAM J. Matrix Anal. Appl. 22.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError

__all__ = ["BREAKDOWN", "MISS", "LanczosProcess", "error_bound"]

#: The probability, over the random start vector, that the true error exceeds the stated one.
MISS = 1e-6
#: A new direction shorter than this, relative to the operator, is rounding error: the Krylov space is exhausted.
BREAKDOWN = 1e-14
#: Number of vectors whose memory is taken at once.
BLOCK = 16

Number = TypeVar("Number", float, Tensor)


def error_bound(residual: Number, start: Number, size: int) -> Number:
    """Bound of the distance of a largest Ritz value from the largest eigenvalue, in the unit of its residual.

    Parameters
    ----------
    residual : float or Tensor
        ``||A y - theta y||`` of the Ritz vector y of length one.
    start : float or Tensor
        ``|<b, y>|`` for the start vector b of length one, drawn uniformly.
    size : int
        The dimension.

    Returns
    -------
    float or Tensor
        Holds with probability at least 1 - `MISS`; see the module docstring.

    Examples
    --------
    >>> from sklearn_capacity.linalg.lanczos_process import error_bound
    >>> error_bound(1e-12, 0.1, 100) < 1e-5
    True
    """
    return residual * start / (MISS * math.sqrt(math.pi / (2 * size)))


class LanczosProcess:
    """A Q_j = Q_j T_j + beta q_{j+1} e_j^T for each operator of the batch, with orthonormal Q_j.

    The first vectors of Q_j are kept as far as `memory` has room for them, and the last two. The largest eigenvector is
    soon almost within the span of the first ones, so that the later ones stay orthogonal to it.
    """

    def __init__(
        self, product: Callable[[Tensor], Tensor], start: Tensor, shape: tuple[int, ...], memory: float = math.inf
    ):
        # start: (batch, n); it is not kept, since one vector may take hundreds of megabytes
        flat = start.shape
        self.product = lambda x: product(x.reshape(shape)).reshape(flat)
        self.size = start.shape[-1]
        most = memory / (start.numel() * start.element_size())
        self.most = max(1, int(min(most, sys.maxsize)))
        # The first vectors in blocks, (vectors, batch, n) each: another block moves none of the vectors before.
        self.blocks = [start.new_empty((min(BLOCK, self.most), *start.shape))]
        self.filled = 0  # vectors in the last block
        self.others: list[Tensor] = []  # places of the last two beyond, (batch, n) each
        self.image = torch.empty_like(start)  # (batch, n); new tensors of this size cost more than the arithmetic
        self.vector = self._place().copy_(start)  # (batch, n)
        self.vector /= torch.linalg.vector_norm(start, dim=-1, keepdim=True)
        self.previous = self.vector  # (batch, n)
        self.alphas: list[Tensor] = []  # diagonal of T_j, (batch,) each
        self.betas: list[Tensor] = []  # below the diagonal, then one for the next vector, (batch,) each
        self.scale = start.new_zeros(start.shape[0])  # (batch,)

    def step(self) -> None:
        """Add a basis vector: the image of the last one, orthogonalised against all, divided by its length."""
        image = self.image.copy_(self.product(self.vector))  # (batch, n)
        self.alphas.append((image[:, None] @ self.vector[:, :, None])[:, 0, 0])  # q_j^T A q_j, (batch,)
        # The three-term recurrence leaves nothing but rounding along the basis, which one pass over it then removes.
        image.addcmul_(self.alphas[-1][:, None], self.vector, value=-1)
        if self.betas:
            image.addcmul_(self.betas[-1][:, None], self.previous, value=-1)
        for basis in self._basis():
            basis = basis.transpose(0, 1)  # (batch, vectors, n)
            inner = basis @ image[:, :, None]  # (batch, vectors, 1)
            image[:, None].baddbmm_(inner.transpose(1, 2), basis, alpha=-1)
        length = torch.linalg.vector_norm(image, dim=-1)  # (batch,)
        self.scale = torch.maximum(self.scale, torch.maximum(length, self.alphas[-1].abs()))
        # If only rounding is left, the space is exhausted: a zero vector ends the process for this operator, and the
        # others continue. Asking the device which ones have ended would stall it at every step.
        alive = (length > BREAKDOWN * self.scale) & (len(self.alphas) < self.size)  # (batch,)
        self.betas.append(torch.where(alive, length, torch.zeros_like(length)))
        divisor = torch.where(alive, length, torch.ones_like(length))  # (batch,)
        place = self._place()
        self.previous, self.vector = self.vector, place.copy_(image.mul_((alive / divisor)[:, None]))

    def _basis(self) -> list[Tensor]:
        """The vectors that are kept, (vectors, batch, n) in every block."""
        return [*self.blocks[:-1], self.blocks[-1][: self.filled]]

    def _place(self) -> Tensor:
        """Memory for the next vector, (batch, n)."""
        if self.filled == len(self.blocks[-1]):
            room = self.most - sum(map(len, self.blocks))
            if room <= 0:
                self.others = self.others or [torch.empty_like(self.image) for _ in range(2)]
                return self.others[len(self.alphas) % 2]
            self.blocks.append(self.image.new_empty((min(BLOCK, room), *self.image.shape)))
            self.filled = 0
        self.filled += 1
        return self.blocks[-1][self.filled - 1]

    def ritz(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Largest Ritz values and residuals (batch, k), errors and largest absolute values (batch,), on the CPU.

        Residuals and errors are fractions of the largest absolute value.
        """
        values, vectors = self.eigen()
        largest = values.abs().amax(dim=-1, keepdim=True)  # (batch, 1)
        divisor = torch.where(largest > 0, largest, math.inf)  # (batch, 1); a zero operator has residuals of 0
        last = self.betas[-1].to("cpu", torch.float64)[:, None]  # (batch, 1)
        # A Q s = theta Q s + beta s_j q_{j+1}: the last entry of s gives the residual, the first one is <b, y>.
        residuals = (last * vectors[:, -1]).abs() / divisor
        errors = error_bound(residuals[:, -1], vectors[:, 0, -1].abs(), self.size)
        return values.flip(-1)[:, :k], residuals.flip(-1)[:, :k], errors, largest.squeeze(-1)

    def leading_vector(self) -> Tensor:
        """Ritz vectors of the largest Ritz values, (batch, n)."""
        _, vectors = self.eigen()  # (batch, j, j)
        coefficients = vectors[:, :, -1].to(self.vector)  # (batch, j)
        basis = torch.cat(self._basis())[: coefficients.shape[1]]  # (j, batch, n)
        return torch.einsum("jbn,bj->bn", basis, coefficients)

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (batch, j), ascending, and eigenvectors (batch, j, j) of T_j, on the CPU.

        The only place that synchronises the device.
        """
        packed = torch.stack(self.alphas + self.betas).to("cpu", torch.float64)  # (2 j, batch)
        if not bool(torch.isfinite(packed).all()):
            raise NotDefinedError(
                "`product` returned numbers that are not finite. Check the weights for NaN and infinity."
            )
        alphas, betas = packed.chunk(2)  # (j, batch) each
        alphas, betas = alphas.T, betas.T[:, :-1]  # (batch, j), (batch, j - 1)
        ended = torch.nn.functional.pad(betas == 0, (1, 0)).cumsum(-1) > 0  # the zero vectors after the last direction
        if bool(ended.any()):
            # Their Rayleigh quotient of 0 may exceed all eigenvalues, so the smallest Ritz value replaces it.
            within = torch.where(ended, alphas[:, :1], alphas)  # (batch, j)
            least = torch.linalg.eigvalsh(_tridiagonal(within, betas))[:, :1]  # (batch, 1)
            alphas = torch.where(ended, least, alphas)
        return torch.linalg.eigh(_tridiagonal(alphas, betas))


def _tridiagonal(diagonal: Tensor, off: Tensor) -> Tensor:
    """Symmetric matrices (batch, j, j) with diagonals (batch, j) and off-diagonals (batch, j - 1)."""
    matrix = torch.diag_embed(diagonal)  # (batch, j, j)
    if off.shape[-1]:
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return matrix
