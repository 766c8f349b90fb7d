"""Largest eigenvalues of symmetric operators given by their products, for one operator or a batch.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sklearn_capacity._validation import (
    NotDefinedError,
    check_integer,
    check_interval,
    warn,
)

__all__ = [
    "BREAKDOWN",
    "MISS",
    "Eigenvalue",
    "LanczosProcess",
    "RitzValues",
    "error_bound",
    "lanczos",
    "lanczos_quadrature",
    "largest_eigenvalue",
]

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
    >>> from sklearn_capacity.linalg.lanczos import error_bound
    >>> error_bound(1e-12, 0.1, 100) < 1e-5
    True
    """
    return residual * start / (MISS * math.sqrt(math.pi / (2 * size)))


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue of an operator, from below.

    Attributes
    ----------
    value : float
    residual : float
        As in `RitzValues`.
    n_products : int
    error : float
        As in `RitzValues`.
    scale : float
        The largest absolute Ritz value, of which `residual` and `error` are fractions.
    """

    value: float
    residual: float
    n_products: int
    error: float
    scale: float


@dataclass(frozen=True, eq=False)
class RitzValues:
    """Largest Ritz values, descending.

    Attributes
    ----------
    values : Tensor of shape (*batch, k), float64, on the CPU
        Never above the eigenvalue of the same rank (except for rounding).
    residuals : Tensor of shape (*batch, k)
        ``||A x - value x||`` over the largest absolute Ritz value: some eigenvalue is within this distance of the
        value, but not necessarily the one of the same rank.
    n_products : int
    errors : Tensor of shape (*batch,) or None
        Bound of the distance of the largest eigenvalue from ``values[..., 0]``, over the largest absolute Ritz value.
        Holds with probability at least 1 - `MISS` for each operator. None from `block_lanczos`.
    scales : Tensor of shape (*batch,) or None
        The largest absolute Ritz values. None from `block_lanczos`.
    """

    values: Tensor
    residuals: Tensor
    n_products: int
    errors: Tensor | None = None
    scales: Tensor | None = None


def lanczos(
    product: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    k: int = 1,
    tol: float = 1e-5,
    max_steps: int = 200,
    check_every: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    random_state: int = 0,
    precision: torch.dtype | None = None,
    memory: float = math.inf,
) -> RitzValues:
    r"""Largest eigenvalues of a symmetric operator, or of a batch of them, by Lanczos with full reorthogonalisation.

    .. math:: \lambda_1 = \max_x x^\top A x / x^\top x

    Parameters
    ----------
    product : callable, Tensor of `shape` -> Tensor of `shape`
        A times each vector along the last axis. Leading axes are a batch of operators.
    shape : sequence of int, (*batch, n)
    k : int >= 1, default=1
        Number of eigenvalues, at most n. A repeated eigenvalue is found only once.
    tol : float in (0, 1), default=1e-5
        Relative residual of all k pairs and relative error of the largest value, for the entire batch.
    max_steps : int >= 1, default=200
        Largest number of products; a `CapacityWarning` reports if `tol` was not reached.
    check_every : int >= 1, default=2
        Number of products between checks of the residual, which synchronise the device.
    dtype : torch.dtype, default=torch.float64
    device : torch.device or str, default="cpu"
    random_state : int, default=0
        Seed of the start vector, drawn on the CPU.
    precision : torch.dtype, default=None
        The precision inside `product` if coarser than `dtype`; its rounding is part of the errors.
    memory : float, default=inf
        Number of bytes for the basis. When they are used up, new vectors are orthogonalised against the vectors in them
        and the last two only.

    Returns
    -------
    RitzValues

    Raises
    ------
    ValueError
        If the operator returns a number that is not finite.

    Notes
    -----
    The cost is one product per step, and two passes over the basis, which has one vector per step. The value itself
    converges much earlier than its error bound: for well separated eigenvalues, the last third of the products serves
    the bound.

    Without the whole basis, vectors lose their orthogonality along converged Ritz vectors (Paige 1980): copies of known
    values appear, but the largest one, its residual and its part of the start vector remain right.

    References
    ----------
    Parlett: The symmetric eigenvalue problem (1998), chapter 13. For the errors see the module docstring.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import lanczos
    >>> d = torch.tensor([[5.0, 2.0, 1.0], [0.5, 0.25, 4.0]], dtype=torch.float64)
    >>> lanczos(lambda x: d * x, (2, 3)).values.round(decimals=9).flatten().tolist()
    [5.0, 4.0]
    """
    shape = tuple(check_integer("shape", size, 1) for size in shape)
    if not shape:
        raise ValueError("`shape` must have at least one size, got none.")
    k = check_integer("k", k, 1, shape[-1])
    tol = check_interval("tol", tol, 0, 1, closed="neither")
    max_steps = min(check_integer("max_steps", max_steps, k), shape[-1])
    check_every = check_integer("check_every", check_every, 1)
    generator = torch.Generator().manual_seed(check_integer("random_state", random_state, 0))
    # (*batch, n), with the uniform direction of a Gaussian vector, which the error bound assumes.
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device=device, dtype=dtype)
    with torch.no_grad():
        process = LanczosProcess(product, start.reshape(-1, shape[-1]), shape, memory)
        del start
        for step in range(1, max_steps + 1):
            process.step()
            if step >= k and (step % check_every == 0 or step == max_steps):
                values, residuals, errors, scales = process.ritz(k)  # (batch, k) twice, (batch,) twice
                converged = bool((residuals <= tol).all()) and bool((errors <= tol).all())
                if converged:
                    break
    if not converged:
        warn(
            f"The largest eigenvalues have a relative residual of {float(residuals.max()):.1e} after {step} products, "
            f"and an error of up to {float(errors.max()):.1e}; they are lower bounds. Raise `max_steps`.",
        )
    batch = shape[:-1]
    errors = errors + torch.finfo(precision or dtype).eps * math.sqrt(shape[-1])  # for rounding in the products
    return RitzValues(
        values.reshape(*batch, k), residuals.reshape(*batch, k), step, errors.reshape(batch), scales.reshape(batch)
    )


def largest_eigenvalue(product: Callable[[Tensor], Tensor], size: int, **options) -> Eigenvalue:
    """Largest eigenvalue of one symmetric operator; see `lanczos` for the options.

    Parameters
    ----------
    product : callable, Tensor of shape (size,) -> Tensor of shape (size,)
    size : int >= 1
    **options
        `tol`, `max_steps`, `check_every`, `dtype`, `device`, `random_state`, `precision`, `memory`.

    Returns
    -------
    Eigenvalue

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import largest_eigenvalue
    >>> round(largest_eigenvalue(lambda x: 2 * x, 7).value, 9)
    2.0
    """
    result = lanczos(product, (check_integer("size", size, 1),), **options)
    assert result.errors is not None and result.scales is not None
    return Eigenvalue(
        value=float(result.values[0]),
        residual=float(result.residuals[0]),
        n_products=result.n_products,
        error=float(result.errors),
        scale=float(result.scales),
    )


def lanczos_quadrature(
    product: Callable[[Tensor], Tensor], size: int, *, n_steps: int, start: Tensor, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of Gauss quadrature for the spectral measure of a symmetric operator at a vector.

    .. math:: \sum_j w_j f(\theta_j) \approx b^\top f(A) b / b^\top b

    Exact for polynomials f of degree up to 2 n_steps - 1. For random b with independent entries of mean 0 and variance
    1, the mean of the right side is about tr f(A) / size: this is stochastic Lanczos quadrature.

    Parameters
    ----------
    product : callable, Tensor of shape (size,) -> Tensor of shape (size,)
    size : int >= 1
    n_steps : int >= 1
        Number of products, at most `size`.
    start : Tensor of shape (size,)
        The vector b.
    device : torch.device or str, default="cpu"

    Returns
    -------
    nodes, weights : Tensor of shape (min(n_steps, size),), float64, on the CPU
        Ascending nodes, and positive weights that sum to 1.

    References
    ----------
    Golub, Meurant: Matrices, moments and quadrature (2010); Ghorbani, Krishnan, Xiao (2019), An investigation into
    neural net optimization via Hessian eigenvalue density.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.lanczos import lanczos_quadrature
    >>> d = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> nodes, weights = lanczos_quadrature(lambda x: d * x, 2, n_steps=2, start=torch.ones(2))
    >>> nodes.round(decimals=9).tolist(), weights.round(decimals=9).tolist()
    ([1.0, 3.0], [0.5, 0.5])
    """
    size = check_integer("size", size, 1)
    n_steps = min(check_integer("n_steps", n_steps, 1), size)
    with torch.no_grad():
        process = LanczosProcess(product, start.to(device=device, dtype=torch.float64).reshape(1, size), (size,))
        for _ in range(n_steps):
            process.step()
        nodes, vectors = process.eigen()  # (1, j), (1, j, j)
    return nodes[0], vectors[0, 0].square()


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
