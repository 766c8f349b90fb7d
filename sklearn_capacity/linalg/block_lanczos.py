"""Several largest eigenvalues of a symmetric operator, repeated ones included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError, check_integer, check_interval, warn
from sklearn_capacity.linalg.lanczos import RitzValues

__all__ = ["block_lanczos"]


def block_lanczos(
    product: Callable[[Tensor], Tensor],
    size: int,
    *,
    k: int,
    block: int = 1,
    tol: float = 1e-5,
    max_steps: int = 100,
    device: torch.device | str = "cpu",
    random_state: int = 0,
) -> RitzValues:
    r"""Largest eigenvalues of a symmetric operator by block Lanczos with full reorthogonalisation.

    Lanczos from one vector finds a repeated eigenvalue once; a block of b vectors finds it up to b times.

    Parameters
    ----------
    product : callable, Tensor of shape (size,) -> Tensor of shape (size,)
    size : int >= 1
    k : int >= 1
        Number of eigenvalues, at most `size`.
    block : int >= 1, default=1
        Vectors per step; the largest multiplicity that can be found.
    tol : float in (0, 1), default=1e-5
        Relative residual of all k pairs.
    max_steps : int >= 1, default=100
        Each step takes `block` products; a `CapacityWarning` reports if `tol` was not reached.
    device : torch.device or str, default="cpu"
    random_state : int, default=0
        Seed of the start block, drawn on the CPU.

    Returns
    -------
    RitzValues
        In descending order, without `errors`. If the operator maps the start block to only r < k directions, the
        last k - r values are 0.

    Notes
    -----
    The basis grows by `block` vectors of `size` numbers per step. A small residual shows that an eigenvalue is near,
    not that none was missed: eigenvalues of a multiplicity above `block` may be missing.

    References
    ----------
    Golub, Underwood (1977), The block Lanczos method for computing eigenvalues.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.block_lanczos import block_lanczos
    >>> d = torch.tensor([3.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    >>> block_lanczos(lambda x: d * x, 4, k=3, block=2).values.round(decimals=9).tolist()
    [3.0, 3.0, 1.0]
    """
    size = check_integer("size", size, 1)
    k = check_integer("k", k, 1, size)
    block = min(check_integer("block", block, 1), size)
    tol = check_interval("tol", tol, 0, 1, closed="neither")
    generator = torch.Generator().manual_seed(check_integer("random_state", random_state, 0))
    # (size, block)
    start = torch.randn((size, block), generator=generator, dtype=torch.float64, device="cpu").to(device)
    basis, images = start.new_zeros((size, 0)), start.new_zeros((size, 0))  # (size, vectors), and A times each
    directions = torch.linalg.qr(start).Q  # (size, block), the next columns of the basis
    n_products = 0
    for _ in range(check_integer("max_steps", max_steps, 1)):
        image = torch.stack([product(vector) for vector in directions.T], dim=1)  # (size, block)
        n_products += directions.shape[1]
        basis, images = torch.cat([basis, directions], dim=1), torch.cat([images, image], dim=1)
        values, residuals = _ritz(basis, images, k)  # (k,) each, or fewer while the basis is small
        directions = _new_directions(image, basis, float(values.abs().max()))
        if directions.shape[1] == 0 or (basis.shape[1] >= k and bool((residuals <= tol).all())):
            break
    if bool((residuals > tol).any()) and directions.shape[1]:
        warn(
            f"The largest eigenvalues have a relative residual of {float(residuals.max()):.1e} after {n_products} "
            "products; they are lower bounds that may not have converged. Raise `max_steps`.",
        )
    missing = k - len(values)
    return RitzValues(
        torch.nn.functional.pad(values, (0, missing)), torch.nn.functional.pad(residuals, (0, missing)), n_products
    )


def _ritz(basis: Tensor, images: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest Ritz values and relative residuals, on the CPU."""
    inner = basis.T @ images  # (vectors, vectors)
    if not bool(torch.isfinite(inner).all()):
        raise NotDefinedError("`product` returned numbers that are not finite. Check the weights for NaN and infinity.")
    values, vectors = torch.linalg.eigh((inner + inner.T).cpu() / 2)  # ascending; symmetric up to rounding
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]  # (k,), (vectors, k)
    coefficients = vectors.to(basis.device)  # (vectors, k)
    differences = images @ coefficients - (basis @ coefficients) * values.to(basis.device)  # (size, k)
    residuals = torch.linalg.vector_norm(differences, dim=0).cpu()  # (k,): ||A y - theta y|| for y = Q s of length one
    return values, residuals / values.abs().max().clamp_min(torch.finfo(torch.float64).tiny)


def _new_directions(image: Tensor, basis: Tensor, scale: float) -> Tensor:
    """Orthonormal vectors that span the part of `image` outside the basis, (size, at most block)."""
    for _ in range(2):  # twice, since after one pass rounding dominates a small remainder
        image = image - basis @ (basis.T @ image)
    room = basis.shape[0] - basis.shape[1]
    left, lengths, _ = torch.linalg.svd(image.cpu(), full_matrices=False)  # (size, block), (block,)
    count = min(room, int((lengths > 1e-12 * max(scale, torch.finfo(torch.float64).tiny)).sum()))
    # Short directions are rounding, which is not orthogonal to the basis; scaled to length one they would be wrong.
    directions = left[:, :count].to(image.device)
    return directions - basis @ (basis.T @ directions)
