r"""The norm of a large operator by products in single precision, with a bound that holds in double precision.

Let G be a Gram matrix. Lanczos in single precision gives an orthonormal basis V of a few vectors near its leading
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
below :math:`\delta`. If a Ritz value exceeds :math:`\mu` instead, its vector joins V once it has converged.

Reference: van Dorsselaer, Hochstenbach, van der Vorst (2000), see `lanczos_process`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from .lanczos_process import MISS
from .operator_norm import OperatorNorm, Product, pause

__all__ = ["basis_bytes", "norm_by_single_precision", "serves"]

#: Length of vectors from which the products take longer than all else.
FEWEST = 1024
#: Largest number of steps of one process, of bytes for its basis, and of processes.
MOST_STEPS, BASIS_BYTES, MOST_PROCESSES = 150, 2**26, 3
CHECK_EVERY = 5
#: Residuals, relative to the largest eigenvalue, at which a process stops, and up to which V has a second vector of it.
CONVERGED, USEFUL = 3e-6, 1e-3
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
    short : callable, Tensor of shape (1, size) -> Tensor of shape (1, size)
        The Gram matrix times a vector on the CPU, in single precision.
    gram : callable, Tensor of shape (k, size) -> Tensor of shape (k, size)
        The same for each of several vectors in double precision.
    size : int
    tol : float, default=1e-7
        Relative error of the norm, as in `operator_norm`.
    random_state : int, default=0
        Seed of the start vectors.

    Returns
    -------
    OperatorNorm or None
        None if more than two eigenvalues are too close to the largest one, if they do not converge, or if products
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

    def outside(x: Tensor) -> Tensor:
        return x - (x @ basis.T) @ basis  # P x, (k, size)

    basis = torch.empty((0, size), dtype=torch.float32, device="cpu")  # V
    norm, ceiling, total = OperatorNorm(0.0, 0.0, 0), -math.inf, 0
    for _ in range(MOST_PROCESSES):
        start = outside(torch.randn((1, size), generator=generator, dtype=torch.float32, device="cpu"))
        vectors, steps = _leading_vectors(lambda x: outside(short(x)), start, ceiling)
        total += steps
        if vectors is None:
            return None
        if not len(vectors):
            return replace(norm, steps=total)
        theta, rho, V, images = _ritz(gram, torch.cat([basis, vectors]))  # (m,) twice, (m, size) twice
        top, basis = float(theta[0]), V.float()
        difference = float(torch.linalg.matrix_norm(torch.cat([short(v) for v in basis.split(1)]) - images))
        if not (top > 0 and difference <= ROUNDING / 4 * top):
            return None
        excesses = {gap: _largest_of_arrow(theta, rho, top * (1 - gap)) / top - 1 for gap in GAPS}
        gap = next((gap for gap, excess in excesses.items() if excess <= tol / 4), None)
        if gap is None:
            return None
        # sqrt(1 + x) - 1, since the norm is the root of the eigenvalue.
        error = excesses[gap] / (1 + math.sqrt(1 + excesses[gap])) + torch.finfo(torch.float64).eps * math.sqrt(size)
        norm, ceiling = OperatorNorm(math.sqrt(top), float(rho[0]) / top, 0, error), top * (1 - gap - ROUNDING)
    return None


def serves(size: int, device: torch.device) -> bool:
    """Whether vectors of this length are long enough, on a device and in a mode that keep single precision."""
    return size >= FEWEST and device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def basis_bytes(size: int) -> float:
    """Bytes that the vectors of a process take at most."""
    return float(min(BASIS_BYTES, 4 * MOST_STEPS * size)) if size >= FEWEST else 0.0


def _leading_vectors(product: Product, start: Tensor, ceiling: float) -> tuple[Tensor | None, int]:
    """Ritz vectors (m, size) of the largest Ritz values, m <= 2, by Lanczos from `start` (1, size), and its steps.

    None of them as soon as no eigenvalue can exceed `ceiling`, and None if neither is known after `MOST_STEPS`. As in
    `operator_norm`, orthogonality is lost only along converged vectors.
    """
    size = start.numel()
    basis = start.new_empty((max(0, min(MOST_STEPS, size - 1, BASIS_BYTES // (4 * size))), size))
    # A random start misses an eigenvector with probability `MISS`; see `lanczos_process` for the factor.
    miss = math.log(MISS * math.sqrt(math.pi / (2 * size)))
    vector, previous, beta = start / torch.linalg.vector_norm(start), torch.zeros_like(start), start.new_zeros(())
    alphas, betas = [], []
    due, last = CHECK_EVERY, (0, math.inf)
    for step in range(1, len(basis) + 1):
        basis[step - 1] = vector[0]
        image = torch.addcmul(product(vector), beta, previous, value=-1)  # (1, size)
        alpha = torch.linalg.vecdot(image[0], vector[0])  # ()
        image = torch.addcmul(image, alpha, vector, value=-1)
        beta = torch.linalg.vector_norm(image).clamp_min(TINY)  # ()
        alphas.append(alpha)
        betas.append(beta)
        previous, vector = vector, image / beta
        if step < due and step < len(basis):
            continue
        diagonal, off = torch.stack(alphas + betas).double().numpy().reshape(2, -1)  # (step,) each
        if not np.isfinite(off).all():
            break
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, off[:-1])  # ascending
        due = step + CHECK_EVERY
        if values[-1] < ceiling:
            if np.log(off / (ceiling - values)).sum() <= miss:
                return basis[:0], step
            continue
        leading = (max(0, step - 2), step - 1)
        _, coefficients = scipy.linalg.eigh_tridiagonal(diagonal, off[:-1], select="i", select_range=leading)
        residuals = off[-1] * np.abs(coefficients[-1]) / max(values[-1], TINY)  # (2,), the last of the largest
        residual = float(residuals[-1])
        if residual <= CONVERGED:
            useful = torch.from_numpy(coefficients[:, residuals <= USEFUL]).to(start)  # (step, m)
            return useful.T @ basis[:step], step
        due, last = step + pause(last, (step, residual), CONVERGED, CHECK_EVERY), (step, residual)
    return None, len(basis)


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
