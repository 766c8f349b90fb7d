"""Trace of a symmetric operator that is given by its products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._validation import check_integer

__all__ = ["TraceEstimate", "trace_estimate"]

#: Copies of its vectors that are held at once: signs, images, and those of a factorisation or a projection.
COPIES = 4


class TraceEstimate(NamedTuple):
    """An unbiased estimate of a trace.

    Attributes
    ----------
    value : float
    standard_error : float
        Standard error of the random part, including rounding.
    n_products : int
    """

    value: float
    standard_error: float
    n_products: int


def trace_estimate(
    products: Callable[[Tensor], Tensor],
    size: int,
    *,
    n_products: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float64,
    memory: float = math.inf,
) -> TraceEstimate:
    r"""Trace of a symmetric operator by Hutch++.

    .. math:: \mathrm{tr}\, A = \mathrm{tr}\, Q^\top A Q + E\, g^\top (I - Q Q^\top) A (I - Q Q^\top) g

    The columns of Q span the image of random vectors under A, which captures the large eigenvalues; the first term is
    exact and the second is the mean over vectors g of random signs.

    Parameters
    ----------
    products : callable, Tensor of shape (size, k) -> Tensor of shape (size, k)
        A times every column.
    size : int >= 1
    n_products : int >= 6
        Total number of columns, a third for each of the three steps; the remainder goes to the last step.
    generator : torch.Generator
        A generator on the CPU.
    device : torch.device or str, default="cpu"
    precision : torch.dtype, default=torch.float64
        The precision inside `products`; its rounding is part of the standard error.
    memory : float, default=inf
        Number of bytes for vectors. With few of them Q has fewer columns, down to none (Hutchinson's estimate), and the
        vectors of random signs are processed a few at a time.

    Returns
    -------
    TraceEstimate

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation, algorithm 1.

    Examples
    --------
    A matrix of rank one is captured exactly.

    >>> import torch
    >>> from sklearn_capacity.linalg.trace_estimate import trace_estimate
    >>> a = torch.arange(9.0, dtype=torch.float64)
    >>> A = torch.outer(a, a)
    >>> round(trace_estimate(lambda v: A @ v, 9, n_products=6, generator=torch.Generator().manual_seed(0)).value, 9)
    204.0
    """
    size = check_integer("size", size, 1)
    n_products = check_integer("n_products", n_products, 6)
    at_once = max(1, int(min(memory / (8 * size * COPIES), n_products)))
    sketch = min(n_products // 3, size)
    if sketch > at_once:
        sketch = at_once // 2
        at_once -= sketch
    n_probes = n_products - 2 * sketch

    def signs(count: int) -> Tensor:
        drawn = torch.randint(0, 2, (size, count), generator=generator, device="cpu")
        return drawn.to(device=device, dtype=torch.float64).mul_(2).sub_(1)  # (size, count), 0 and 1 -> -1 and 1

    with torch.no_grad():
        Q = signs(0)  # (size, 0)
        if sketch:
            Q = torch.linalg.qr(products(signs(sketch))).Q  # (size, sketch)
        inside = (Q * products(Q)).sum(0) if sketch else Q.new_zeros(1)  # (sketch,)

        def quadratic_forms(count: int) -> Tensor:
            probes = signs(count)  # (size, count)
            for _ in range(2 if sketch else 0):  # twice, since after one pass rounding dominates a small remainder
                probes = probes - Q @ (Q.T @ probes)
            return (probes * products(probes)).sum(0)  # (count,): g^T A g

        counts = [min(at_once, n_probes - done) for done in range(0, n_probes, at_once)]
        outside = torch.cat([quadratic_forms(count) for count in counts])  # (n_probes,)
        spread = float(outside.std()) / math.sqrt(n_probes)
        rounding = torch.finfo(precision).eps * float(inside.abs().sum() + outside.abs().mean())
    return TraceEstimate(float(inside.sum() + outside.mean()), math.hypot(spread, rounding), n_products)
