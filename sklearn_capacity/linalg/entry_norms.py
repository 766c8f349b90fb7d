"""Exact l_p norms of the rows and columns of a convolution's matrix, without forming it.

Away from the border, every unit has the same weights, so the units along an axis fall into few patterns. A pattern is
a list of sets of taps: the taps in one set read the same pixel (with reflecting, replicating or circular padding), so
their weights add up before the absolute value is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sklearn_capacity._validation import check_interval

__all__ = ["Taps", "dense_blocks", "described", "entry_norms", "stable_norm"]


def described(weight: object) -> str:
    """A description of a weight for a message."""
    return f"{type(weight).__name__} of shape {tuple(getattr(weight, 'shape', ()))}"


@dataclass(frozen=True, eq=False)
class Taps:
    """One axis of a convolution: `source` holds the pixel that each padded pixel copies, -1 for none."""

    source: np.ndarray
    inputs: int
    outputs: int
    stride: int
    dilation: int
    kernel: int

    @property
    def pixels(self) -> np.ndarray:
        """The input pixel under each tap of each output pixel, shape (outputs, kernel)."""
        return self.source[np.arange(self.outputs)[:, None] * self.stride + self.dilation * np.arange(self.kernel)]

    @property
    def selects(self) -> bool:
        """Whether there is one tap, and every output reads another pixel or none, but not all of them none."""
        read = self.pixels[self.pixels >= 0]
        return self.kernel == 1 and 0 < len(read) == len(np.unique(read))

    @property
    def indicator(self) -> Tensor:
        """Ones where a tap of an output pixel reads an input pixel, shape (kernel, outputs, inputs)."""
        pixels = torch.as_tensor(self.pixels.T, dtype=torch.int64, device="cpu")  # (kernel, outputs)
        return (pixels[:, :, None] == torch.arange(self.inputs, device="cpu")).to(torch.float64)

    def row_patterns(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Sets of taps that read one input pixel, as 0/1 arrays (kernel, sets), and the pattern of each output."""
        pixels = self.pixels
        # Relative to the window, so that all windows away from the border are equal.
        relative = np.where(pixels < 0, np.iinfo(np.int64).max, pixels - self.stride * np.arange(self.outputs)[:, None])
        _, first, index = np.unique(relative, axis=0, return_index=True, return_inverse=True)  # (patterns,), (outputs,)
        return [self._sets(pixels[i]) for i in first], index.reshape(-1)

    def column_patterns(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Sets of taps through which one output reads an input pixel, and the pattern of each input pixel."""
        pixels = self.pixels
        hits: list[dict[int, list[int]]] = [{} for _ in range(self.inputs)]  # per input pixel: output -> its taps
        for output, tap in zip(*np.nonzero(pixels >= 0), strict=True):
            hits[pixels[output, tap]].setdefault(output, []).append(tap)
        known: dict[tuple, int] = {}
        index = [known.setdefault(tuple(sorted(map(tuple, hit.values()))), len(known)) for hit in hits]
        return [self._selection(sets) for sets in known], np.array(index)

    def _sets(self, window: np.ndarray) -> np.ndarray:
        return self._selection([np.flatnonzero(window == pixel) for pixel in np.unique(window[window >= 0])])

    def _selection(self, sets: Sequence) -> np.ndarray:
        # (kernel, sets); an empty pattern gets one zero, so that its norm is 0
        selection = np.zeros((self.kernel, max(len(sets), 1)))
        for column, taps in enumerate(sets):
            selection[list(taps), column] = 1.0
        return selection


def entry_norms(blocks: Tensor, axes: Sequence[Taps], p: float, *, rows: bool) -> Tensor:
    """The l_p norm of every row, or column, of the operator; see `ConvOperator.row_norms`.

    Parameters
    ----------
    blocks : Tensor of shape (groups, image channels, domain channels, *kernel)
    axes : sequence of Taps
    p : float in (0, inf]
    rows : bool
        Rows belong to pixels of the image, columns to pixels of the domain.

    Returns
    -------
    Tensor of shape (channels, *sizes)

    Notes
    -----
    The cost is one pass over the weights; where taps read the same pixel, as with reflecting padding, one for each
    combination of patterns (9 for a padded 3 x 3 kernel with stride 1).
    """
    check_interval("p", p, 0, closed="right")
    patterns, indices = zip(*((taps.row_patterns() if rows else taps.column_patterns()) for taps in axes), strict=True)
    weight = (blocks if rows else blocks.transpose(1, 2)).flatten(0, 1)  # (channels, channels of a window, *kernel)
    if all(selection.sum(0).max() <= 1 for axis in patterns for selection in axis):  # no taps add up before the norm
        weight = stable_norm(weight.movedim(1, -1), p)[:, None]  # (channels, 1, *kernel): the l_p norm of l_p norms
    norms = [_norm_at(weight, choice, p) for choice in itertools.product(*patterns)]  # (channels,) each
    table = torch.stack(norms, dim=1).reshape(-1, *(len(group) for group in patterns))  # (channels, *patterns)
    for axis, index in enumerate(indices, start=1):
        # patterns -> sizes
        table = table.index_select(axis, torch.as_tensor(index, dtype=torch.int64, device=table.device))
    return table


def _norm_at(weight: Tensor, choice: Sequence[np.ndarray], p: float) -> Tensor:
    for selection in choice:  # the leading kernel axis is summed over, the axis of sets is appended
        sets = torch.as_tensor(selection, dtype=weight.dtype, device=weight.device)  # (kernel, sets)
        weight = torch.tensordot(weight, sets, dims=([2], [0]))  # (channels, window channels, *kernel left, *sets)
    return stable_norm(weight.flatten(1), p)


def dense_blocks(blocks: Tensor, axes: Sequence[Taps]) -> Tensor:
    """The matrix of a convolution, one diagonal block per group.

    Parameters
    ----------
    blocks : Tensor of shape (groups, image channels, domain channels, *kernel)
    axes : sequence of Taps

    Returns
    -------
    Tensor of shape (groups, image channels * image pixels, domain channels * domain pixels)
    """
    matrix = blocks
    # A[(o, m), (c, j)] = sum_t W[o, c, t] 1[tap t of output m reads input j], one axis at a time: the leading kernel
    # axis is summed over, and (outputs, inputs) are appended.
    for taps in axes:
        matrix = torch.tensordot(matrix, taps.indicator.to(matrix), dims=([3], [0]))
    n = len(axes)
    # groups, image (channels, *outputs), domain (channels, *inputs)
    order = [0, 1, *range(3, 3 + 2 * n, 2), 2, *range(4, 4 + 2 * n, 2)]
    image = blocks.shape[1] * math.prod(taps.outputs for taps in axes)
    return matrix.permute(order).reshape(blocks.shape[0], image, -1)


def stable_norm(x: Tensor, p: float) -> Tensor:
    """The l_p norm over the last axis for any p in (0, inf], without overflow in the powers.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.entry_norms import stable_norm
    >>> stable_norm(torch.tensor([3e200, 4e200], dtype=torch.float64), 2)
    tensor(5.0000e+200, dtype=torch.float64)
    """
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1])
    x = x.contiguous()  # a copy takes less time than strided passes
    if math.isinf(p):
        return x.abs().amax(dim=-1)
    if p in (1, 2):
        norms = torch.linalg.vector_norm(x, ord=p, dim=-1)  # (...)
        least = torch.finfo(x.dtype).tiny ** 0.25
        # Squares that underflow, or nearly so, are then negligible, and no sum has overflowed.
        if bool(((norms > least) & (norms < 1 / least)).all()):
            return norms
    largest = x.abs().amax(dim=-1, keepdim=True)  # (..., 1); powers of x / largest cannot overflow
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # (..., 1), no division by 0
    return torch.linalg.vector_norm(x / scale, ord=p, dim=-1) * scale.squeeze(-1)
