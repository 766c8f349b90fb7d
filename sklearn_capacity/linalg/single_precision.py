r"""The norm of a large operator by products in single precision, with a bound that holds in double precision.

Let G be a Gram matrix. Block Lanczos in single precision gives an orthonormal basis V of a few vectors near its leading
eigenvectors, whose Ritz values :math:`\theta_i` and residuals :math:`\rho_i = \|G v_i - \theta_i v_i\|` are computed in
double precision. With P the projection on the vectors orthogonal to V, and :math:`\mu` the largest eigenvalue of P G P,
the largest eigenvalue of G is at most that of the small matrix

.. math:: \begin{pmatrix} \mathrm{diag}(\theta) & \rho \\ \rho^\top & \mu \end{pmatrix}.

It exceeds :math:`\theta_1` by about :math:`\rho_1^2 / (\theta_1 - \mu)`, which is negligible even for a bound of
:math:`\mu` that is barely below :math:`\theta_1`. Single precision can give that: j steps of Lanczos on P G P from a
random start b of length one, with Ritz values :math:`\mu_i` and off-diagonal entries :math:`\beta_i`, give for an
eigenvector u with the eigenvalue :math:`\mu > \max_i \mu_i`

.. math:: |\langle b, u \rangle| \le \prod_{i \le j} \frac{\beta_i}{\mu - \mu_i}.

So no eigenvalue exceeds :math:`\mu` if the right side is less than :math:`\delta`, unless the part of b along u is
below :math:`\delta`. Several start vectors miss u independently, so their probabilities multiply.

References: van Dorsselaer, Hochstenbach, van der Vorst (2000), see `lanczos_process`; Golub, Underwood (1977), see
`block_lanczos`.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from .lanczos_process import MISS
from .operator_norm import OperatorNorm, Product, pause

__all__ = ["FEWEST", "basis_bytes", "norm_by_single_precision"]

#: Length of vectors from which the products take longer than all else.
FEWEST = 1024
#: Vectors in a block. The largest eigenvalues of convolutions often come in close pairs, and in single precision a
#: convolution of two small images takes no longer than that of one.
BLOCK = 2
#: Largest number of steps of either process, and of bytes for the basis of the first.
MOST_STEPS, BASIS_BYTES = 150, 2**26
CHECK_EVERY = 5
#: Residuals, relative to the largest eigenvalue, at which the first process stops, and up to which V has a vector.
CONVERGED, USEFUL = 1e-6, 1e-3
#: Error of an eigenvalue in single precision, relative to the largest one; coarser products are refused.
ROUNDING = 1e-5
#: Distances of the bound of mu from the largest eigenvalue, relative to it: the smallest that serves needs least steps.
GAPS = (2e-5, 1e-4, 5e-4, 2e-3, 5e-3)

TINY = float(np.finfo(np.float32).tiny)


def norm_by_single_precision(
    short: Product, gram: Product, size: int, *, tol: float = 1e-7, random_state: int = 0
) -> OperatorNorm | None:
    """The root of the largest eigenvalue of a Gram matrix, or None where single precision does not prove its accuracy.

    Parameters
    ----------
    short, gram : callable, Tensor of shape (k, size) -> Tensor of shape (k, size)
        The Gram matrix times each vector on the CPU, in single and in double precision.
    size : int
    tol : float, default=1e-7
        Relative error of the norm, as in `operator_norm`.
    random_state : int, default=0
        Seed of the start vectors.

    Returns
    -------
    OperatorNorm or None
        None if more than `BLOCK` eigenvalues are too close to the largest one, if they do not converge, or if products
        in single precision are coarser than usual.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.single_precision import norm_by_single_precision
    >>> d = torch.cat([torch.tensor([9.0]), torch.linspace(0, 6, 2000)])
    >>> round(norm_by_single_precision(lambda x: d * x, lambda x: d.double() * x, 2001).value, 6)
    3.0
    """
    generator = torch.Generator().manual_seed(random_state)

    def drawn() -> Tensor:
        return torch.randn((BLOCK, size), generator=generator, dtype=torch.float32, device="cpu")  # (k, size)

    vectors, steps = _leading_vectors(short, drawn())
    if vectors is None:
        return None
    theta, rho, V, images = _ritz(gram, vectors)  # (m,) twice, (m, size) twice
    top, basis = float(theta[0]), V.float()
    difference = float(torch.linalg.matrix_norm(short(basis) - images))
    if not (top > 0 and difference <= ROUNDING / 4 * top):
        return None
    excesses = {gap: _largest_of_arrow(theta, rho, top * (1 - gap)) / top - 1 for gap in GAPS}
    gap, excess = next(((gap, excess) for gap, excess in excesses.items() if excess <= tol / 4), (0.0, math.inf))
    if not excess <= tol:
        return None

    def deflated(x: Tensor) -> Tensor:
        image = short(x)  # (k, size)
        return image - (image @ basis.T) @ basis

    starts = drawn()
    starts = starts - (starts @ basis.T) @ basis
    proof = _steps_to_exclude(top * (1 - gap - ROUNDING), deflated, starts)
    if proof is None:
        return None
    # sqrt(1 + x) - 1, since the norm is the root of the eigenvalue.
    error = excess / (1 + math.sqrt(1 + excess)) + torch.finfo(torch.float64).eps * math.sqrt(size)
    return OperatorNorm(math.sqrt(top), float(rho[0]) / top, BLOCK * (steps + proof), error)


def basis_bytes(size: int) -> float:
    """Bytes that the vectors of the first process take at most."""
    return float(min(BASIS_BYTES, 4 * MOST_STEPS * BLOCK * size)) if size >= FEWEST else 0.0


def _leading_vectors(short: Product, start: Tensor) -> tuple[Tensor | None, int]:
    """Ritz vectors (m, size) of the largest Ritz values, m <= k, and the number of steps of block Lanczos.

    As in `operator_norm`, orthogonality is lost only along converged vectors.
    """
    k, size = start.shape
    most = min(MOST_STEPS, size // k - 1, BASIS_BYTES // (4 * start.numel()))
    basis = start.new_empty((k * max(most, 0), size))
    matrix = np.zeros((len(basis), len(basis)))  # basis G basis^T, block tridiagonal, its lower half
    block = torch.linalg.qr(start.T).Q.T  # (k, size)
    due, last = CHECK_EVERY, (0, math.inf)
    for step in range(1, most + 1):
        filled = k * step
        now, near = slice(filled - k, filled), slice(max(0, filled - 2 * k), filled)
        basis[now] = block
        image = short(block)  # (k, size)
        inner = image @ basis[near].T  # (k, k or 2 k)
        columns, below = torch.linalg.qr((image - inner @ basis[near]).T)  # (size, k), (k, k)
        block = columns.T
        matrix[now, now] = inner[:, -k:].numpy()
        if step == due or step == most:
            if not bool(below.isfinite().all()):
                return None, step
            values, coefficients = scipy.linalg.eigh(matrix[:filled, :filled], subset_by_index=(filled - k, filled - 1))
            residuals = np.linalg.norm(below.numpy() @ coefficients[-k:], axis=0) / max(values[-1], TINY)  # (k,)
            residual = float(residuals[-1])
            if residual <= CONVERGED:
                useful = torch.from_numpy(coefficients[:, residuals <= USEFUL]).to(start)  # (filled, m)
                return useful.T @ basis[:filled], step
            due, last = step + pause(last, (step, residual), CONVERGED, CHECK_EVERY), (step, residual)
        if step < most:
            matrix[filled : filled + k, now] = below.numpy()
    return None, most


def _ritz(gram: Product, vectors: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """Ritz values on the span of `vectors`, descending, and their residuals (m,); Ritz vectors and images (m, size)."""
    # One more product removes most of the rounding errors, whose parts along small eigenvalues shrink.
    V = torch.linalg.qr(gram(vectors.double()).T).Q.T  # (m, size), orthonormal
    images = gram(V)  # (m, size)
    theta, rotation = torch.linalg.eigh(V @ images.T)  # (m,), (m, m)
    theta, rotation = theta.flip(0), rotation.flip(1).T
    V, images = rotation @ V, rotation @ images
    rho = torch.linalg.vector_norm(images - theta[:, None] * V, dim=1)  # (m,)
    return theta.numpy(), rho.numpy(), V, images


def _largest_of_arrow(theta: np.ndarray, rho: np.ndarray, mu: float) -> float:
    """The largest eigenvalue of the matrix in the module docstring."""
    arrow = np.diag(np.append(theta, mu))
    arrow[-1, :-1] = arrow[:-1, -1] = rho
    return float(np.linalg.eigvalsh(arrow)[-1])


def _steps_to_exclude(ceiling: float, product: Product, starts: Tensor) -> int | None:
    """Steps of Lanczos from each start (k, size) until no eigenvalue can exceed `ceiling`; None if one may."""
    k, size = starts.shape
    # All starts miss an eigenvector with probability `MISS`; see `lanczos_process` for the factor.
    delta = MISS ** (1 / k) * math.sqrt(math.pi / (2 * size))
    vector = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)  # (k, size)
    previous, beta = torch.zeros_like(vector), vector.new_zeros((k, 1))
    alphas, betas = [], []
    for step in range(1, MOST_STEPS + 1):
        image = torch.addcmul(product(vector), beta, previous, value=-1)  # (k, size)
        alpha = torch.linalg.vecdot(image, vector)[:, None]  # (k, 1)
        image = torch.addcmul(image, alpha, vector, value=-1)
        beta = torch.linalg.vector_norm(image, dim=1, keepdim=True).clamp_min(TINY)  # (k, 1)
        alphas.append(alpha)
        betas.append(beta)
        previous, vector = vector, image / beta
        if step % CHECK_EVERY == 0:
            diagonal, off = (torch.cat(parts, dim=1).double().numpy() for parts in (alphas, betas))  # (k, step) each
            pairs = zip(diagonal, off[:, :-1], strict=True)
            values = np.stack([scipy.linalg.eigvalsh_tridiagonal(d, o) for d, o in pairs])  # (k, step)
            if not values.max() < ceiling:
                return None
            if (np.log(off / (ceiling - values)).sum(1) <= math.log(delta)).all():
                return step
    return None
