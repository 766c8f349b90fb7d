"""Largest eigenvalues of symmetric operators that are known by their products, one or a batch of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_capacity._validation import (
    NotDefinedError,
    check_integer,
    check_interval,
    check_option,
    warn,
)

__all__ = ["Eigenvalue", "RitzValues", "lanczos", "largest_eigenvalue"]

BREAKDOWN = 1e-14


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue: its `value`, the relative `residual` and `error`, and the number of products."""

    value: float
    residual: float
    n_products: int
    error: float


@dataclass(frozen=True, eq=False)
class RitzValues:
    """Largest Ritz values, descending.

    Attributes
    ----------
    values : Tensor of shape (*batch, k), float64, on the CPU
        Never above the eigenvalue of the same rank (but for rounding).
    residuals : Tensor of shape (*batch, k)
        ``||A x - value x||`` over the largest absolute Ritz value; an eigenvalue lies within that of the value.
    n_products : int
    errors : Tensor of shape (*batch, k) or None
        Estimate of the values' error over the largest absolute Ritz value: the residual, or its square over the gap to
        the next Ritz values where that is less.
    """

    values: Tensor
    residuals: Tensor
    n_products: int
    errors: Tensor | None = None


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
    until: str = "vector",
) -> RitzValues:
    r"""Largest eigenvalues of a symmetric operator, or of a batch of them, by Lanczos with full reorthogonalisation.

    .. math:: \lambda_1 = \max_x x^\top A x / x^\top x

    Parameters
    ----------
    product : callable, Tensor of `shape` -> Tensor of `shape`
        A times each vector of the last axis. Leading axes hold a batch, each entry with its own operator.
    shape : sequence of int, (*batch, n)
    k : int >= 1, default=1
        Eigenvalues wanted, at most n. A repeated one is found once.
    tol : float in (0, 1), default=1e-5
        Of all k pairs, in all of the batch; see `until`.
    max_steps : int >= 1, default=200
        Products at most; when they are spent before `tol` is reached, a `CapacityWarning` says so.
    check_every : int >= 1, default=2
        Products between looks at the residual, each of which waits for the device.
    dtype : torch.dtype, default=torch.float64
    device : torch.device or str, default="cpu"
    random_state : int, default=0
        Seed of the start vector, drawn on the CPU.
    until : "vector" or "value", default="vector"
        What `tol` bounds: the relative residual (the value is then off by about its square over the gap), or the error
        of the value, which takes fewer products.

    Returns
    -------
    RitzValues

    Raises
    ------
    ValueError
        If the operator returns a number that is not finite.

    Notes
    -----
    One product per step and four passes over the basis, which holds one vector per step.

    References
    ----------
    Parlett: The symmetric eigenvalue problem (1998), chapter 13.

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
        raise ValueError("`shape` must hold at least one size, got none.")
    k = check_integer("k", k, 1, shape[-1])
    tol = check_interval("tol", tol, 0, 1, closed="neither")
    max_steps = min(check_integer("max_steps", max_steps, k), shape[-1])
    check_every = check_integer("check_every", check_every, 1)
    check_option("until", until, ("vector", "value"))
    generator = torch.Generator().manual_seed(check_integer("random_state", random_state, 0))
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device=device, dtype=dtype)
    with torch.no_grad():
        process = _Process(product, start.reshape(-1, shape[-1]), shape)
        for step in range(1, max_steps + 1):
            process.step()
            if step >= k and (step % check_every == 0 or step == max_steps):
                values, residuals, errors = process.ritz(k)
                missed = (residuals if until == "vector" else errors) > tol
                if not bool(missed.any()):
                    break
    if bool(missed.any()):
        warn(
            f"The largest eigenvalues have a relative residual of {float(residuals.max()):.1e} after {step} products; "
            "they are lower bounds that may not have converged. Raise `max_steps`.",
        )
    full = (*shape[:-1], k)
    return RitzValues(values.reshape(full), residuals.reshape(full), step, errors.reshape(full))


def largest_eigenvalue(product: Callable[[Tensor], Tensor], size: int, **options) -> Eigenvalue:
    """Largest eigenvalue of one symmetric operator; see `lanczos`, whose options it takes.

    Parameters
    ----------
    product : callable, Tensor of shape (size,) -> Tensor of shape (size,)
    size : int >= 1
    **options
        `tol`, `max_steps`, `check_every`, `dtype`, `device`, `random_state`, `until`.

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
    found = lanczos(product, (check_integer("size", size, 1),), **options)
    assert found.errors is not None
    return Eigenvalue(float(found.values[0]), float(found.residuals[0]), found.n_products, float(found.errors[0]))


class _Process:
    """A Q_j = Q_j T_j + beta q_{j+1} e_j^T for each operator of the batch, with orthonormal Q_j."""

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor, shape: tuple[int, ...]):
        self.product = lambda x: product(x.reshape(shape)).reshape(start.shape)
        self.basis = start.new_zeros((16, *start.shape))  # vectors first: rows of one operator are strided
        self.basis[0] = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.scale = start.new_zeros(start.shape[0])

    def step(self) -> None:
        j = len(self.alphas)
        if j + 2 > len(self.basis):
            self.basis = torch.cat([self.basis, torch.zeros_like(self.basis)])
        known = self.basis[: j + 1]
        vector = self.product(self.basis[j])
        self.alphas.append((vector * self.basis[j]).sum(-1))
        for _ in range(2):  # twice, since once leaves rounding where little remains
            inner = torch.einsum("jbn,bn->jb", known, vector)
            vector = vector - torch.einsum("jbn,jb->bn", known, inner)
        length = torch.linalg.vector_norm(vector, dim=-1)
        self.scale = torch.maximum(self.scale, torch.maximum(length, self.alphas[-1].abs()))
        # Where only rounding is left the space is exhausted: a zero vector ends the process for that operator.
        alive = length > BREAKDOWN * self.scale
        self.betas.append(torch.where(alive, length, torch.zeros_like(length)))
        safe = torch.where(alive, length, torch.ones_like(length))
        self.basis[j + 1] = vector * (alive / safe)[:, None]

    def ritz(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Largest Ritz values, relative residuals and errors, on the CPU; the one place that waits for the device."""
        packed = torch.stack(self.alphas + self.betas).to("cpu", torch.float64)
        if not bool(torch.isfinite(packed).all()):
            raise NotDefinedError("`product` returned numbers that are not finite. Check the weights for nan and inf.")
        alphas, betas = packed.chunk(2)
        tridiagonal = torch.diag_embed(alphas.T)
        if len(alphas) > 1:
            off = betas[:-1].T
            tridiagonal = tridiagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        largest = values.abs().amax(dim=-1, keepdim=True)
        largest = torch.where(largest > 0, largest, math.inf)
        residuals = (betas[-1][:, None] * vectors[:, -1]).abs() / largest
        # Temple's bound r^2 / gap with the next Ritz values for eigenvalues, the gap less what this value may move.
        steps = (values[:, 1:] - values[:, :-1]) / largest
        gaps = torch.minimum(F.pad(steps, (0, 1), value=math.inf), F.pad(steps, (1, 0), value=0.0)) - residuals
        errors = torch.where(gaps > residuals, residuals**2 / gaps, residuals)
        return values.flip(-1)[:, :k], residuals.flip(-1)[:, :k], errors.flip(-1)[:, :k]
