r"""The transpose of a convolution to few channels, as a convolution to blocks of pixels.

In single precision on a CPU, a convolution computes as many channels at once as a vector register holds: an image of 3
channels takes as long as one of 16. The transpose of a convolution with stride s and a zeros before the image is

.. math:: z[c, B j + b] = \sum_{o, u} w[o, c, t] \; g[o, (B / s) j + u], \qquad t = b + a - s u,

where B is a multiple of s. The window of u depends on the block j only, so the pixels b of a block are channels of an
ordinary convolution: 12 instead of 3 for blocks of 2 x 2, with the stride B / s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PixelBlocks", "pixel_blocks"]

#: Longest side of a block, unless the stride is longer.
LONGEST = 4
#: Share of the multiplications from which on blocks are not worth their rearrangement.
WORTH = 0.75


@dataclass(frozen=True, eq=False)
class PixelBlocks:
    """A convolution whose output channels are the pixels of a block, and where its output lies in the image.

    Attributes
    ----------
    weight : Tensor of shape (channels * block * block, image channels, *window)
    stride, padding : list of int
        Of the convolution with `weight`.
    """

    weight: Tensor
    stride: list[int]
    padding: list[int]
    block: int
    kept: tuple[slice, ...]
    sides: tuple[int, ...]

    def __call__(self, g: Tensor) -> Tensor:
        """The transpose of the convolution: (n, image channels, *grid) -> (n, channels, *sides)."""
        return self.image(F.conv2d(g, self.weight, None, self.stride, self.padding))

    def image(self, blocks: Tensor) -> Tensor:
        """The image (n, channels, *sides) from the convolution's output."""
        rows, columns = self.kept
        height, width = self.sides
        return F.pixel_shuffle(blocks[..., rows, columns], self.block)[..., :height, :width]


def pixel_blocks(
    weight: Tensor,
    sides: Sequence[int],
    grid: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> PixelBlocks | None:
    """The transpose of a convolution of images without groups; None where torch's own takes no longer.

    Parameters
    ----------
    weight : Tensor of shape (image channels, channels, *kernel)
    sides, grid : sequence of int
        The sizes of the convolution's input and of its output.
    stride, padding, dilation : sequence of int
        Of the convolution; padding with zeros, before the first pixel.

    Examples
    --------
    >>> import torch
    >>> pixel_blocks(torch.ones(1, 64, 3, 3), (8, 8), (8, 8), (1, 1), (1, 1), (1, 1)) is None  # many channels
    True
    """
    single = weight.is_cpu and weight.dtype == torch.float32 and weight.dim() == 4
    if not (single and torch.backends.mkldnn.is_available()):
        return None
    kernel = tuple(weight.shape[2:])
    axes = tuple(zip(kernel, stride, padding, dilation, strict=True))
    block = _best_block(weight.shape[1], axes, _lanes())
    if not block:
        return None
    places = [_places(block, *axis, m, n) for axis, m, n in zip(axes, sides, grid, strict=True)]
    rows, columns = (torch.tensor(place.taps, device="cpu") for place in places)
    taps = F.pad(weight, (0, 1, 0, 1))  # one more tap of zeros along each axis
    taps = taps[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # (o, c, B, B, *window)
    return PixelBlocks(
        taps.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last),
        [place.stride for place in places],
        [place.padding for place in places],
        block,
        tuple(place.kept for place in places),
        tuple(sides),
    )


class _Places(NamedTuple):
    """One axis of the convolution to blocks."""

    taps: list[list[int]]  # of each pixel (B) at each window position, the tap; the size of the kernel where none is
    stride: int
    padding: int
    kept: slice  # the outputs that are blocks of the image


@functools.lru_cache(maxsize=256)
def _places(block: int, kernel: int, stride: int, padding: int, dilation: int, side: int, n_outputs: int) -> _Places:
    first, window = _window(block, kernel, stride, padding, dilation)
    n_blocks, step = -(-side // block), block // stride
    after = step * (n_blocks - 1) + first + window - n_outputs
    # torch pads both ends equally: by whole steps more, whose outputs come first.
    skipped = max(0, -((-first - after) // step))
    pixels, positions = (torch.arange(n, device="cpu") for n in (block, window))
    taps = pixels[:, None] + padding - stride * (first + positions)  # (B, window), dilated
    taken = (taps >= 0) & (taps < kernel * dilation) & (taps % dilation == 0)
    return _Places(
        torch.where(taken, taps // dilation, kernel).tolist(),  # not as a tensor, which could be one of inference mode
        step,
        skipped * step - first,
        slice(skipped, skipped + n_blocks),
    )


def _window(block: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """The first position, and the number of positions, of the convolution's output that pixels of block 0 read."""
    first = -(((kernel - 1) * dilation - padding) // stride)
    return first, (block - 1 + padding) // stride - first + 1


@functools.lru_cache(maxsize=256)
def _best_block(channels: int, axes: tuple[tuple[int, int, int, int], ...], lanes: int) -> int:
    """The side of the blocks that take fewest multiplications, or 0 if single pixels take hardly more."""
    unit = math.lcm(*(stride for _, stride, _, _ in axes))
    work = {0: WORTH * _rounded(channels, lanes) * math.prod(kernel / stride for kernel, stride, _, _ in axes)}
    for block in range(unit, max(unit, LONGEST) + 1, unit):
        windows = [_window(block, *axis) for axis in axes]
        if all(first <= 0 for first, _ in windows):
            area = block**2
            work[block] = _rounded(channels * area, lanes) * math.prod(size for _, size in windows) / area
    return min(work, key=work.__getitem__)


def _rounded(channels: int, lanes: int) -> int:
    return -(-channels // lanes) * lanes


def _lanes() -> int:
    """Numbers in single precision that a vector register holds."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
