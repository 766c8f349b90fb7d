"""Products of a convolution on an image of few pixels, put together from products of single pixels.

torch multiplies every tap for every pixel of the output, also those that read padding: of the 36 of a padded 3 x 3
kernel on 2 x 2 pixels, 16 read a pixel. A product of the channels' matrix of one tap with one pixel then streams the
weights at the speed of memory, where the products of torch's convolution with four columns do not.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .conv import ConvOperator

__all__ = ["PixelProducts", "pixel_products"]

#: Fewest entries of a kernel for which the arithmetic outweighs the calls, and the largest number of calls.
FEWEST_ENTRIES, MOST_CALLS = 2**16, 64


class PixelProducts:
    """A convolution without groups and its adjoint, on one array at a time."""

    def __init__(self, operator: ConvOperator, calls: list[tuple[int, int, int]]):
        self.domain, self.image = operator.domain, operator.image
        #: Pixel of the image, pixel of the domain, and tap of each product, by taps: weights are read once.
        self.calls = sorted(calls, key=lambda call: call[2])
        # (taps, image channels, domain channels)
        self.matrices = operator.blocks[0].flatten(2).permute(2, 0, 1).contiguous().unbind(0)
        self.transposes = [matrix.T for matrix in self.matrices]

    def convolve(self, x: Tensor) -> Tensor:
        """(1, *domain) -> (1, *image)."""
        read, (rows, pixels) = _pixels(x).unbind(0), _zeros(x, self.image)
        for target, source, tap in self.calls:
            pixels[target].addmv_(self.matrices[tap], read[source])
        return rows.T.reshape(1, *self.image)

    def convolve_transposed(self, y: Tensor) -> Tensor:
        """(1, *image) -> (1, *domain)."""
        read, (rows, pixels) = _pixels(y).unbind(0), _zeros(y, self.domain)
        for source, target, tap in self.calls:
            pixels[target].addmv_(self.transposes[tap], read[source])
        return rows.T.reshape(1, *self.domain)


def pixel_products(operator: ConvOperator) -> PixelProducts | None:
    """The products by pixels, where they take less time than torch's convolution."""
    if operator.groups > 1 or operator.weight.device.type != "cpu" or operator.weight.numel() < FEWEST_ENTRIES:
        return None
    if math.prod(operator.image[1:]) > MOST_CALLS:
        return None
    calls = _calls(operator)
    all_taps = math.prod(operator.image[1:]) * math.prod(operator.kernel)
    return PixelProducts(operator, calls) if len(calls) <= min(MOST_CALLS, all_taps // 2) else None


def _calls(operator: ConvOperator) -> list[tuple[int, int, int]]:
    """Pixel of the image, pixel of the domain, and tap, as flat indices, wherever a tap reads a pixel."""
    axes = []
    for taps in operator.taps:
        read = taps.pixels  # (outputs, kernel)
        axes.append([(m, int(read[m, t]), t) for m in range(len(read)) for t in range(taps.kernel) if read[m, t] >= 0])
    sizes = operator.image[1:], operator.domain[1:], operator.kernel
    return [
        tuple(_flat(indices, shape) for indices, shape in zip(zip(*steps, strict=True), sizes, strict=True))  # type: ignore[misc]
        for steps in itertools.product(*axes)
    ]


def _flat(indices: tuple[int, ...], shape: tuple[int, ...]) -> int:
    position = 0
    for index, size in zip(indices, shape, strict=True):
        position = position * size + index
    return position


def _pixels(x: Tensor) -> Tensor:
    """(1, channels, *sizes) -> (pixels, channels), contiguous."""
    return x[0].flatten(1).T.contiguous()


def _zeros(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Zeros of shape (pixels, channels), and views of their rows."""
    rows = torch.zeros(math.prod(shape[1:]), shape[0], dtype=like.dtype, device=like.device)
    return rows, rows.unbind(0)
