"""The largest singular value of a linear map that is known by its products only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError, check_integer, check_interval, warn

__all__ = ["OperatorNorm", "dense_operator", "operator_norm"]

Product = Callable[[Tensor], Tensor]

# A new direction shorter than this, relative to the norm found so far, is rounding: the Krylov space is exhausted.
BREAKDOWN = 1e-14
# Both bases together stay below this many numbers (512 MB); larger operators restart earlier.
BASIS_NUMBERS = 2**26


@dataclass(frozen=True)
class OperatorNorm:
    """A spectral norm from below: its value, the relative residual and the steps taken.

    Attributes
    ----------
    value : float
        Never above the true norm (but for rounding).
    residual : float
        ``||A^T u - value v|| / value`` for unit vectors with ``A v = value u``: a singular value of A lies within
        ``residual * value`` of `value`, and the error of `value` itself is of the order of the residual squared.
    steps : int
        Products with A that were formed, and as many with its adjoint.
    """

    value: float
    residual: float
    steps: int


def operator_norm(
    forward: Product,
    adjoint: Product,
    input_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    tol: float = 1e-7,
    max_steps: int = 1000,
    max_basis: int = 50,
    check_every: int = 5,
    random_state: int = 0,
) -> OperatorNorm:
    r"""Largest singular value of a linear map, from below, by Golub-Kahan bidiagonalisation.

    .. math:: \|A\|_2 = \max_v \|A v\|_2 / \|v\|_2

    Both bases are reorthogonalised fully, after the short recurrence; when they are full, the process is restarted with
    its best Ritz vectors (thick restart), so that memory stays bounded.

    Parameters
    ----------
    forward : callable, (1, *input_shape) -> (1, *output_shape)
        The linear map; a leading axis of length one is kept for layers that want a batch.
    adjoint : callable, (1, *output_shape) -> (1, *input_shape)
    input_shape : sequence of int
    dtype : torch.dtype, default=torch.float64
    device : torch.device or str, default="cpu"
    tol : float in (0, 1), default=1e-7
        Relative residual at which to stop.
    max_steps : int >= 1, default=1000
        After this many steps the value is returned with the residual reached, and a `CapacityWarning`.
    max_basis : int >= 8, default=50
        Vectors held per side between restarts.
    check_every : int >= 1, default=5
        Steps between looks at the residual, each of which waits for the device.
    random_state : int, default=0
        Seed of the start vector, drawn on the CPU.

    Returns
    -------
    OperatorNorm

    Raises
    ------
    ValueError
        If the operator returns a number that is not finite.

    Notes
    -----
    Each step costs one product with A, one with its adjoint and two passes over either basis.

    References
    ----------
    Golub, Kahan: Calculating the singular values and pseudo-inverse of a matrix (1965).
    Baglama, Reichel: Augmented implicitly restarted Lanczos bidiagonalization methods (2005), section 3.1.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import operator_norm
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> round(operator_norm(lambda v: v @ A.T, lambda u: u @ A, (3,)).value, 12)
    3.0
    """
    tol = check_interval("tol", tol, 0, 1, closed="neither")
    max_steps = check_integer("max_steps", max_steps, 1)
    max_basis = check_integer("max_basis", max_basis, 8)
    check_every = check_integer("check_every", check_every, 1)
    shape = (1, *input_shape)
    generator = torch.Generator().manual_seed(check_integer("random_state", random_state, 0))
    start = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64, device="cpu")
    start = start.to(device=device, dtype=dtype)
    with torch.no_grad():
        process = _Bidiagonalisation(forward, adjoint, shape, start, max_basis)
        residual = math.inf
        for step in range(1, max_steps + 1):
            process.step()
            if process.full or step % check_every == 0 or step == max_steps:
                value, residual = process.ritz()
                if residual <= tol:
                    break
                if process.full:
                    process.restart()
    if residual > tol:
        warn(
            f"The operator norm {value:.6g} has a relative residual of {residual:.1e} after {max_steps} steps; it is a "
            "lower bound that may not have converged. Raise `max_steps`.",
        )
    return OperatorNorm(value, residual, step)


class _Bidiagonalisation:
    """A V_j = U_j B_j and A^T U_j = V_j B_j^T + beta v_{j+1} e_j^T with orthonormal U and V."""

    def __init__(self, forward: Product, adjoint: Product, shape: tuple[int, ...], start: Tensor, max_basis: int):
        self.shape = shape
        image = forward(start.reshape(shape))
        self.image_shape = image.shape
        self.forward = lambda v: forward(v.reshape(shape)).reshape(-1)
        self.adjoint = lambda u: adjoint(u.reshape(self.image_shape)).reshape(-1)
        n, m = start.numel(), image.numel()
        # min(n, m + 1) steps exhaust the space: one more than m, since the last right vector may still carry weight.
        self.exact = min(n, m + 1)
        self.size = min(self.exact, max_basis, max(8, BASIS_NUMBERS // (n + m)))
        self.V = start.new_zeros((self.size + 1, n))
        self.U = start.new_zeros((self.size, m))
        self.B = start.new_zeros((self.size, self.size))
        self.scale = self.beta = start.new_zeros(())
        self.V[0] = start / torch.linalg.vector_norm(start)
        self.j = self.kept = 0

    @property
    def full(self) -> bool:
        return self.j == self.size

    def step(self) -> None:
        j = self.j
        left = self.forward(self.V[j])
        if j == self.kept:  # the first column, or the one that couples the kept vectors with the new ones
            left, coupling = _orthogonalise(left, self.U[:j])
            left, correction = _orthogonalise(left, self.U[:j])
            self.B[:j, j] = coupling + correction
        else:
            left, self.B[:j, j] = _orthogonalise(left - self.beta * self.U[j - 1], self.U[:j])
            self.B[j - 1, j] += self.beta
        self.U[j], alpha = self._unit(left)
        self.B[j, j] = alpha
        right, _ = _orthogonalise(self.adjoint(self.U[j]) - alpha * self.V[j], self.V[: j + 1])
        self.V[j + 1], self.beta = self._unit(right)
        self.j = j + 1

    def _unit(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The vector over its length, or zero where only rounding is left; no look from the host is needed."""
        length = torch.linalg.vector_norm(vector)
        self.scale = torch.maximum(self.scale, length)
        alive = length > BREAKDOWN * self.scale
        length = torch.where(alive, length, torch.zeros_like(length))
        return vector / torch.where(alive, length, torch.ones_like(length)) * alive, length

    def ritz(self) -> tuple[float, float]:
        """Largest Ritz value and its relative residual; the one place that waits for the device."""
        j = self.j
        packed = torch.cat([self.B[:j, :j].reshape(-1), self.beta.reshape(1)]).cpu()
        if not bool(torch.isfinite(packed).all()):
            raise NotDefinedError("`forward` returned numbers that are not finite. Check the weights for nan and inf.")
        self.left, self.values, self.right = torch.linalg.svd(packed[:-1].reshape(j, j))
        self.coupling = packed[-1] * self.left[-1]
        value = float(self.values[0])
        return value, float(self.coupling[0].abs()) / value if value > 0 else 0.0

    def restart(self) -> None:
        """Keep the leading Ritz vectors: B becomes diagonal there, and the next step fills its coupling column."""
        kept = max(1, min(self.size // 3, self.size - 3))
        right, left = (q[:, :kept].to(self.V) for q in (self.right.mT, self.left))
        follower = self.V[self.j].clone()
        self.V[:kept] = right.mT @ self.V[: self.j]
        self.U[:kept] = left.mT @ self.U[: self.j]
        self.V[kept] = follower
        self.B.zero_()
        self.B[:kept, :kept] = torch.diag(self.values[:kept]).to(self.B)
        self.j = self.kept = kept


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Take the span of `basis` out of `vector`: rounding that the short recurrence leaves, or all of it."""
    coefficients = basis @ vector
    return vector - coefficients @ basis, coefficients


def dense_operator(
    forward: Product,
    input_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """The matrix of a linear map, one column per input number.

    Parameters
    ----------
    forward : callable, (n, *input_shape) -> (n, *output_shape)
    input_shape : sequence of int
    dtype : torch.dtype, default=torch.float64
    device : torch.device or str, default="cpu"
    batch_size : int >= 1, default=256
        Columns computed at once.

    Returns
    -------
    Tensor of shape (prod(output_shape), prod(input_shape))

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import dense_operator
    >>> dense_operator(lambda x: x.flip(1), (2,))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    size = math.prod(input_shape)
    columns = []
    with torch.no_grad():
        for start in range(0, size, check_integer("batch_size", batch_size, 1)):
            count = min(batch_size, size - start)
            block = torch.zeros((count, size), dtype=dtype, device=device)
            block[:, start : start + count] = torch.eye(count, dtype=dtype, device=device)
            columns.append(forward(block.reshape(count, *input_shape)).reshape(count, -1))
    return torch.cat(columns).mT
