r"""A test whether a number bounds a convolution's spectral norm, by a block-banded Cholesky factorisation.

In :math:`A^T A`, two rows of pixels have a nonzero product only if one window covers both. With pixels ordered row by
row, the matrix is therefore block banded for every padding; the band has one block more than the reach of the kernel.
The factorisation of :math:`\sigma^2 I - A^T A` exists exactly if :math:`\|A\| < \sigma`. It costs
n_rows (reach + 1)^2 products of blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .entry_norms import Taps, dense_blocks

__all__ = ["band_products", "is_upper_end"]

# Largest number of coupled rows of the matrix: with more, rounding could exceed `certificate.ROUNDING`.
WIDEST = 2048


def band_products(operator) -> float:
    """Number of multiplications of `is_upper_end` for a `ConvOperator`; inf if the band is too wide."""
    first, *rest = operator.taps
    reach = _reach(first)
    block = operator.blocks.shape[2] * math.prod(taps.inputs for taps in rest)
    if (reach + 1) * block > WIDEST:
        return math.inf
    return operator.groups * first.inputs * (reach + 1) * (reach + 2) * float(block) ** 3


def is_upper_end(operator, value: float) -> bool:
    """Whether the spectral norm of a `ConvOperator` is proven to be below `value`, up to rounding."""
    first, *rest = operator.taps
    gram = _gram_band(operator.blocks, first, rest)  # (rows, reach + 1, groups, block, block)
    rows, width = gram.shape[:2]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)  # (block, block)
    # (rows, reach + 1, groups, block, block) of value^2 I - A^T A; overwritten by what remains to be factorised.
    band = -gram
    band[:, 0] += value**2 * identity
    for row in range(rows):
        factor, failed = torch.linalg.cholesky_ex(band[row, 0])  # (groups, block, block), (groups,)
        if bool(failed.any()):
            return False
        below = range(1, min(width, rows - row))
        # Block column `row` of the Cholesky factor; its outer product is subtracted from the rest.
        # L_ir = B_ir L_rr^{-T}, each (groups, block, block), from the factor L_rr of the diagonal block.
        solved = {i: torch.linalg.solve_triangular(factor, band[row, i].mT, upper=False).mT for i in below}
        for i in below:
            for j in range(i, below.stop):
                band[row + i, j - i] -= solved[j] @ solved[i].mT
    return True


def _reach(taps: Taps) -> int:
    """Largest distance of two pixels under one window."""
    pixels = taps.pixels
    highest = pixels.max(axis=1)
    lowest = pixels.copy()
    lowest[lowest < 0] = taps.inputs  # padding (-1) must not count as the lowest pixel
    return max(0, int((highest - lowest.min(axis=1)).max()))


def _gram_band(blocks: Tensor, first: Taps, rest: list[Taps]) -> Tensor:
    """Entry [r, i] is the block of A^T A for pixel rows r + i and r, in total (rows, reach + 1, groups, side, side).

    With W_s the part of A for tap s of the first axis, the block between pixel rows a and b is the sum of W_s^T W_t
    over the windows that have tap s on row a and tap t on row b.
    """
    # One (groups, image, side) matrix for each tap of the first axis.
    parts = [dense_blocks(blocks[:, :, :, t], rest) if rest else blocks[:, :, :, t] for t in range(first.kernel)]
    pixels, reach, side = first.pixels, _reach(first), parts[0].shape[-1]
    band = parts[0].new_zeros(first.inputs, reach + 1, len(blocks), side, side)
    for s, upper in enumerate(parts):
        for t, lower in enumerate(parts):
            pairs = pixels[:, [s, t]]  # (windows, 2): the pixel rows under both taps, -1 for padding
            pairs = pairs[(pairs[:, 0] >= pairs[:, 1]) & (pairs[:, 1] >= 0)]
            if not len(pairs):
                continue
            product = upper.mT @ lower  # (groups, side, side)
            for a, b in pairs:
                band[b, a - b] += product
    return band
