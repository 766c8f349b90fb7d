"""Products of a convolution on a few images of few pixels, as one matrix product with their windows.

In single precision, torch's convolution converts the layout of the weights in every call, which takes longer than the
arithmetic if the channels are many and the pixels few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .operator_norm import Product
from .padding import pad
from .product import product

if TYPE_CHECKING:
    from .conv import ConvOperator

__all__ = ["window_products"]

#: Fewest entries of a kernel, and most pixels of an image, for which this is faster.
FEWEST_ENTRIES, MOST_PIXELS = 2**18, 16


def window_products(operator: ConvOperator) -> tuple[Product, Product] | None:
    """Forward and adjoint of a convolution of images with padding of zeros, where this is faster than torch's."""
    few = math.prod(operator.image[1:]) <= MOST_PIXELS and operator.weight.numel() >= FEWEST_ENTRIES
    if not few or operator.groups > 1 or len(operator.kernel) != 2 or operator.padding_mode != "zeros":
        return None
    matrix = operator.weight.flatten(1)  # (image channels, domain channels * taps)
    sizes = tuple(n + a + b for n, (a, b) in zip(operator.domain[1:], operator.pads, strict=True))  # with the padding
    crop = tuple((-a, -b) for a, b in operator.pads)
    steps = {"dilation": operator.dilation, "stride": operator.stride}

    def convolve(x: Tensor) -> Tensor:
        """(k, *domain) -> (k, *image)."""
        windows = F.unfold(pad(x, operator.pads, "zeros"), operator.kernel, **steps)  # (k, channels * taps, pixels)
        y = product(matrix, windows.transpose(0, 1).flatten(1))  # (image channels, k * pixels)
        return y.unflatten(1, (len(x), *operator.image[1:])).transpose(0, 1)

    def convolve_transposed(y: Tensor) -> Tensor:
        """(k, *image) -> (k, *domain)."""
        rows = product(y.movedim(1, -1).flatten(0, -2), matrix)  # (k * pixels, channels * taps)
        windows = rows.unflatten(0, (len(y), -1)).transpose(1, 2)  # (k, channels * taps, pixels)
        return pad(F.fold(windows, sizes, operator.kernel, **steps), crop, "zeros")

    return (convolve_transposed, convolve) if operator.transposed else (convolve, convolve_transposed)
