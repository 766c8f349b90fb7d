"""Largest eigenvalues of symmetric operators given by their products, for one operator or a batch.

`lanczos_process` has the iteration, and the proof of the error bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_capacity._validation import check_integer, check_interval, warn
from sklearn_capacity.linalg.lanczos_process import LanczosProcess

__all__ = ["Eigenvalue", "RitzValues", "lanczos", "lanczos_quadrature", "largest_eigenvalue"]


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
        Holds with probability at least 1 - `lanczos_process.MISS` for each operator. None from `block_lanczos`.
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
    Parlett: The symmetric eigenvalue problem (1998), chapter 13. For the errors see `linalg.lanczos_process`.

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
