"""The largest singular value of a linear map that is given only by its products.

The squared singular values of A are the eigenvalues of its two Gram matrices, A^T A and A A^T. Lanczos on the smaller
one needs three vectors of the shorter side; a bidiagonalisation of A stores vectors of both sides and gains nothing:
squaring does not reduce the relative accuracy of the *largest* singular value.

The vectors are not reorthogonalised. They lose orthogonality only along Ritz vectors that have converged (Paige 1980);
copies of known Ritz values then appear later, but the largest one, its residual and its part of the start vector remain
correct. So the memory does not grow with the steps, and no restart is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError, check_integer, check_interval, warn

from .lanczos_process import BREAKDOWN, error_bound

__all__ = ["OperatorNorm", "Product", "operator_norm", "pause"]

Product = Callable[[Tensor], Tensor]
#: Steps before the first check, which costs as much as a few of them: the error bound rarely falls below 1e-7 sooner.
FIRST_CHECK = 20


@dataclass(frozen=True)
class OperatorNorm:
    """A spectral norm from below.

    Attributes
    ----------
    value : float
        Never above the true norm (except for rounding).
    residual : float
        ``||A^T A v - value^2 v|| / value^2`` for a unit vector v: some singular value of A is within
        ``residual * value`` of `value`.
    steps : int
        Number of products with A, and of products with its adjoint; 0 for a direct computation.
    error : float
        The norm is at most ``(1 + error) * value`` with probability at least 1 - 1e-6 over the random start vector (see
        `lanczos.error_bound`); for a direct computation, an allowance for rounding.
    """

    value: float
    residual: float
    steps: int
    error: float = 0.0


def operator_norm(
    forward: Product,
    adjoint: Product,
    input_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    tol: float = 1e-7,
    max_steps: int = 1000,
    check_every: int = 5,
    random_state: int = 0,
) -> OperatorNorm:
    r"""Largest singular value of a linear map, from below, by Lanczos on the smaller of its two Gram matrices.

    .. math:: \|A\|_2 = \max_v \|A v\|_2 / \|v\|_2

    Parameters
    ----------
    forward : callable, (1, *input_shape) -> (1, *output_shape)
        The linear map; the leading axis of length one serves layers that expect a batch.
    adjoint : callable, (1, *output_shape) -> (1, *input_shape)
    input_shape : sequence of int
    dtype : torch.dtype, default=torch.float64
    device : torch.device or str, default="cpu"
    tol : float in (0, 1), default=1e-7
        Relative error at which to stop. It bounds the distance of the true norm from the value even for close singular
        values, so the residual is much smaller and the value usually much closer.
    max_steps : int >= 1, default=1000
        After this many steps, the value is returned with its current error and a `CapacityWarning`.
    check_every : int >= 1, default=5
        Smallest number of steps between checks of the error, which synchronise the device.
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
    Each step costs one product with A and one with its adjoint. The squares of the entries must not overflow or
    underflow.

    References
    ----------
    Paige: Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem (1980).
    Hochstenbach: Probabilistic upper bounds for the matrix two-norm (2013).

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
    check_every = check_integer("check_every", check_every, 1)
    generator = torch.Generator().manual_seed(check_integer("random_state", random_state, 0))
    with torch.no_grad():
        shape = torch.Size((1, *input_shape))
        output_shape = forward(torch.zeros(shape, dtype=dtype, device=device)).shape
        first, second = forward, adjoint
        if output_shape.numel() < shape.numel():
            shape, first, second = output_shape, adjoint, forward
        start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")  # (1, *shorter side)
        process = _GramLanczos(lambda v: second(first(v)), start.to(device=device, dtype=dtype))
        due = min(max(check_every, FIRST_CHECK), process.size)
        last = (0, math.sqrt(error_bound(1.0, 1.0, process.size)))  # of the start vector alone
        for step in range(1, max_steps + 1):
            process.step()
            if step == due or step == max_steps:
                value, residual, error = process.ritz()
                if error <= tol:
                    break
                due, last = step + pause(last, (step, error), tol, check_every), (step, error)
                if step < process.size < due:
                    due = process.size  # where the space is exhausted
    if error > tol:
        warn(
            f"The operator norm {value:.6g} has a relative residual of {residual:.1e} after {max_steps} steps, and an "
            f"error of up to {error:.1e}; it is a lower bound. Raise `max_steps`.",
        )
    return OperatorNorm(value, residual, step, error + torch.finfo(dtype).eps * math.sqrt(start.numel()))


def pause(before: tuple[int, float], now: tuple[int, float], tol: float, shortest: int) -> int:
    """Number of steps until the next check, from the steps and errors of the last two.

    Half of the steps that are left if the error falls at the same rate, since it falls faster towards the end; and at
    most half of those taken so far.
    """
    (step_before, error_before), (step, error) = before, now
    if not error < error_before:
        return shortest
    rate = math.log(error_before / error) / (step - step_before)  # inf at the first check
    return max(shortest, min(int(math.log(error / tol) / rate / 2), step // 2))


class _GramLanczos:
    """The three-term recurrence G v_j = beta_{j-1} v_{j-1} + alpha_j v_j + beta_j v_{j+1} of a Gram matrix G."""

    def __init__(self, gram: Product, start: Tensor):
        self.gram = gram
        self.size = start.numel()
        self.previous = torch.zeros_like(start)  # (1, *side), like all vectors here
        self.vector = start / torch.linalg.vector_norm(start)
        self.beta = start.new_zeros(())
        self.alphas: list[Tensor] = []  # tensors of shape (), like the betas
        self.betas: list[Tensor] = []
        self.tiny = torch.finfo(start.dtype).tiny

    def step(self) -> None:
        # For small vectors the calls cost as much as the arithmetic, so every sum is one call, and nothing is decided
        # here: an exhausted space, where beta is 0 or rounding, goes on with a zero or meaningless vector (see `ritz`).
        image = torch.addcmul(self.gram(self.vector), self.beta, self.previous, value=-1)  # (1, *side)
        alpha = torch.dot(image.flatten(), self.vector.flatten())  # v_j^T G v_j, ()
        image = torch.addcmul(image, alpha, self.vector, value=-1)
        self.beta = torch.linalg.vector_norm(image)  # ()
        self.alphas.append(alpha)
        self.betas.append(self.beta)
        self.previous, self.vector = self.vector, image / self.beta.clamp_min(self.tiny)

    def ritz(self) -> tuple[float, float, float]:
        """Root of the largest Ritz value, its relative residual and error; only this synchronises the device."""
        packed = torch.stack(self.alphas + self.betas).to("cpu", torch.float64)  # (2 j,)
        if not bool(torch.isfinite(packed).all()):
            raise NotDefinedError(
                "`forward` returned numbers that are not finite. Check the weights for NaN and infinity."
            )
        alphas, betas = packed.numpy().reshape(2, -1)  # (j,) each
        scale = np.maximum.accumulate(np.maximum(alphas, betas))
        exhausted = np.flatnonzero(betas <= BREAKDOWN * scale)
        if len(exhausted):  # the first steps span an invariant space, whose Ritz values are eigenvalues
            alphas, betas = alphas[: exhausted[0] + 1], np.append(betas[: exhausted[0]], 0.0)
        top = len(alphas) - 1
        values, vectors = scipy.linalg.eigh_tridiagonal(alphas, betas[:-1], select="i", select_range=(top, top))
        eigenvalue, vector = float(values[0]), vectors[:, 0]  # (j,)
        if eigenvalue <= 0:
            return 0.0, 0.0, 0.0
        # G V s = theta V s + beta_j s_j v_{j+1}: the last entry of s gives the residual, the first one is <b, y>.
        residual = float(betas[-1] * abs(vector[-1])) / eigenvalue
        # sqrt(1 + x) - 1, since the norm is the root of the eigenvalue.
        excess = error_bound(residual, float(abs(vector[0])), self.size)
        return math.sqrt(eigenvalue), residual, excess / (1 + math.sqrt(1 + excess))
