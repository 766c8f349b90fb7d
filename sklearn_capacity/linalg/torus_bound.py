r"""A proven upper bound of a convolution's spectral norm from a slightly larger torus.

Let x be supported on n pixels, and extend it quasi-periodically, x(j + N) = e^{i theta} x(j), with zeros in between. If
N is at least n plus the larger padding, no window of a zero-padded convolution covers two copies, so its matrix is a
submatrix of the convolution on the torus for **every** twist theta, and cannot have a larger norm. The latter is block
diagonal in the frequencies (2 pi j + theta) / N: the norm of the largest block :math:`\hat K(\omega)` is the bound.
With a stride s that divides N, s frequencies alias, and the block is their row
:math:`[\hat K(\omega_0), ..., \hat K(\omega_{s-1})] / \sqrt s`. The result is the smallest bound over the twists 0 and
pi per axis: pi avoids the frequency 0, where kernels often peak, and is exact for [1, 1, 1]. On a periodic image,
theta is 0 and N is n, and the bound usually equals the norm.

References: Sedghi, Gupta, Long: The singular values of convolutional layers (2019) for theta = 0 and stride 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .banded_certificate import band_products, is_upper_end
from .certificate import ROUNDING, certified_norm, largest_gram_root
from .entry_norms import dense_blocks
from .padding import padding_norm

__all__ = ["CHUNK", "DENSE_PRODUCTS", "DENSE_SIDE", "convolution_bound", "torus_bound"]

# Number of complex entries in one chunk of frequencies (16 MB).
CHUNK = 2**20
# Up to these sizes (per group, and in total) the matrix itself is certified by Gram and Cholesky, in about a second.
DENSE_SIDE, DENSE_PRODUCTS = 2048, 10**10
# Above them, if the torus bound is looser than this factor, a banded factorisation of similar cost is tried.
LOOSE, BAND_PRODUCTS = 1.05, 10**10


@dataclass(frozen=True)
class Axis:
    """One axis of the torus: its `period`, the `stride` that divides it, and the number of twists to try, 1 or 2.

    The twists 0 and pi equal their negatives; with other twists, conjugate frequencies would not be equivalent.
    """

    period: int
    stride: int
    twists: int


def convolution_bound(operator, lower: float = 0.0) -> float:
    """The smallest of the bounds listed in `conv_norm_upper`."""
    sides = [math.prod(shape) // operator.groups for shape in (operator.domain, operator.image)]
    products = min(sides) * math.prod(sides) * operator.groups
    selectors = max(taps.kernel * taps.inputs * taps.outputs for taps in operator.taps)
    if min(sides) <= DENSE_SIDE and products <= DENSE_PRODUCTS and selectors <= 2**24:
        return certified_norm(dense_blocks(operator.blocks, operator.taps), lower)
    # ||A||_1 and ||A||_inf
    one, infinity = (float(norms.max()) for norms in (operator.column_norms(1), operator.row_norms(1)))
    simple = min(operator.frobenius_norm(), math.sqrt(one) * math.sqrt(infinity)) * (1 + ROUNDING)
    if simple == 0:
        return 0.0
    bound = min(simple, torus_bound(operator, lower, simple))
    slack = 1 + 100 * ROUNDING  # as in `certified_norm`
    if lower > 0 and bound > LOOSE * lower and band_products(operator) <= BAND_PRODUCTS:
        if is_upper_end(operator, lower * slack):
            return lower * slack * (1 + ROUNDING)
    return bound


def torus_bound(operator, lower: float = 0.0, ceiling: float = math.inf) -> float:
    """The torus bound of a `ConvOperator`; the computation may stop at any value above `ceiling`.

    Parameters
    ----------
    operator : ConvOperator
    lower : float, default=0.0
        A lower bound of the norm, which saves work.
    ceiling : float, default=inf
        Another upper bound: the computation stops above it.

    Returns
    -------
    float

    Notes
    -----
    The cost is about 4 N^2 / 2 factorisations of matrices of the smaller channel count (per group), in chunks of 16 MB.
    For reflecting or replicating padding, the bound is the norm of the padding times the bound of the unpadded
    convolution on the padded image; for circular padding, the smaller of this and the bound on the torus of the image
    itself.
    """
    mode = operator.padding_mode
    if mode == "zeros":
        return _zero_padded_bound(operator, operator.domain[1:], operator.pads, lower, ceiling)
    factor = padding_norm(operator.domain[1:], operator.pads, mode)
    padded = [n + a + b for n, (a, b) in zip(operator.domain[1:], operator.pads, strict=True)]
    bounds = [ceiling]
    if mode == "circular":
        bounds.append(_periodic_bound(operator, lower, ceiling))
    if mode != "circular" or bounds[-1] > lower * (1 + 2 * ROUNDING):
        unpadded = ((0, 0),) * len(padded)
        bounds.append(factor * _zero_padded_bound(operator, padded, unpadded, lower / factor, min(bounds) / factor))
    return min(bounds)


def _zero_padded_bound(operator, sizes, pads, lower: float, ceiling: float) -> float:
    axes = []
    for n, (before, _), s, reach, outputs in zip(
        sizes, pads, operator.stride, operator.reach, operator.image[1:], strict=True
    ):
        # Windows that are entirely in the padding read nothing, and no window reads pixels after the last one.
        last = (outputs - 1) * s - before + reach
        margin = max(0, min(before, reach), min(last - (n - 1), reach))  # the larger padding that windows read
        axes.append(Axis(-(-(n + margin) // s) * s, s, 2))
    return _least_over_twists(operator, axes, lower, ceiling)


def _periodic_bound(operator, lower: float, ceiling: float) -> float:
    """The torus of the image itself; an output pixel that occurs m times there has weight sqrt(m)."""
    axes, repeats = [], 1
    for n, (before, _), s, outputs in zip(
        operator.domain[1:], operator.pads, operator.stride, operator.image[1:], strict=True
    ):
        axes.append(Axis(n, s if n % s == 0 else 1, 1))
        repeats *= int(np.bincount((np.arange(outputs) * s - before) % n).max())
    factor = math.sqrt(repeats)
    return factor * _least_over_twists(operator, axes, lower / factor, ceiling / factor)


def _least_over_twists(operator, axes: Sequence[Axis], lower: float, ceiling: float) -> float:
    for twist in itertools.product(*(range(axis.twists) for axis in axes)):
        largest = lower
        for gram in _gram_chunks(operator, axes, twist):
            largest = largest_gram_root(gram, largest, ceiling)
            if largest > ceiling:
                break
        ceiling = min(ceiling, largest * (1 + ROUNDING))
    return ceiling


def _gram_chunks(operator, axes: Sequence[Axis], twist: Sequence[int]) -> Iterator[Tensor]:
    """Gram matrices of the frequency blocks of one twist, (frequencies * groups, side, side) at a time.

    The block of a frequency is the row [K(w_0), ..., K(w_{s-1})] / sqrt(s) of the kernel's Fourier transform at its s
    aliases; its Gram matrix is computed for the shorter side.
    """
    groups, image, domain = operator.blocks.shape[:3]
    frequencies, aliases = _frequencies(axes, twist)  # (frequencies, axes), (s, axes)
    step = max(1, CHUNK // (len(aliases) * groups * image * max(domain, image)))
    for start in range(0, len(frequencies), step):
        chunk = frequencies[start : start + step, None, :] + aliases[None]  # (chunk, s, axes)
        symbols = _fourier_transform(operator, axes, chunk.reshape(-1, len(axes)))  # (chunk * s, groups, image, domain)
        symbols = symbols.unflatten(0, (-1, len(aliases))) / math.sqrt(len(aliases))
        rows = symbols.permute(0, 2, 3, 1, 4).reshape(-1, image, len(aliases) * domain)  # (chunk * groups, ...)
        yield rows @ rows.mH if image <= rows.shape[-1] else rows.mH @ rows


def _fourier_transform(operator, axes: Sequence[Axis], frequencies: np.ndarray) -> Tensor:
    r"""The kernel's transform at `frequencies` (n, axes), of shape (n, groups, image, domain), complex128.

    .. math:: \hat K(\omega)[o, c] = \sum_t w[o, c, t] \, e^{i \omega \cdot d t}

    A kernel has few taps, so this sum costs less than a fast transform of a kernel padded to the entire torus. It is
    one matrix product of the phases (n, taps) and the weights (taps, groups * image * domain). The angle of tap t at
    frequency j is 2 pi j d t / (twists * period); full turns are removed from j d t in integer arithmetic, since the
    rounding error of a large angle would grow with the angle.
    """
    blocks = operator.blocks  # (groups, image, domain, *kernel)
    weights = blocks.flatten(3).flatten(0, 2).T.to(torch.complex128)  # (taps, groups * image * domain)
    positions = [[d * t for t in range(k)] for d, k in zip(operator.dilation, operator.kernel, strict=True)]
    taps = np.array(list(itertools.product(*positions)), dtype=np.int64)  # (taps, axes)
    turn = np.array([axis.twists * axis.period for axis in axes])  # (axes,), in units of `frequencies`
    angles = 2 * np.pi * ((frequencies[:, None, :] * taps) % turn / turn).sum(axis=2)  # (n, taps)
    phases = torch.as_tensor(angles, dtype=torch.float64, device=blocks.device)  # (n, taps)
    return (torch.polar(torch.ones_like(phases), phases) @ weights).unflatten(1, blocks.shape[:3])


def _frequencies(axes: Sequence[Axis], twist: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of one twist, (n, axes), and the offsets of their aliases, (s, axes).

    Both are integers in units of one turn per twists * period: the frequency (2 pi j + theta) / N of the module
    docstring is twists * j + twist. A stride s on an axis keeps the N / s lowest ones; the others differ from these by
    multiples of N / s and are their aliases.
    """
    ranges, offsets = [], []
    for number, (axis, theta) in enumerate(zip(axes, twist, strict=True)):
        coarse = axis.twists * axis.period // axis.stride
        # The kernel is real: conjugate frequencies share their norm, so half of the last axis suffices.
        stop = coarse // 2 + 1 if number == len(axes) - 1 else coarse
        ranges.append(range(theta, stop, axis.twists))
        offsets.append([r * coarse for r in range(axis.stride)])
    grid, shifts = (np.array(list(itertools.product(*part)), dtype=np.int64) for part in (ranges, offsets))
    return grid, shifts
