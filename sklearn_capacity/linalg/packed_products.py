"""Products of a convolution in single precision whose weights oneDNN has laid out once.

torch's convolution lays the weights out in every call. If the channels are many and the pixels few, that takes longer
than the arithmetic: with 512 channels on 2 x 2 pixels, two thirds of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .operator_norm import Product
from .pixel_blocks import pixel_blocks

if TYPE_CHECKING:
    from .conv import ConvOperator

__all__ = ["packed_products"]

#: Private entries, which inductor's code for CPUs calls.
_ENTRIES = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)


def packed_products(operator: ConvOperator) -> tuple[Product, Product] | None:
    """Forward and adjoint of a convolution of images in single precision on the CPU; None where oneDNN has neither.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator
    >>> packed_products(ConvOperator(torch.ones(1, 1, 3, 3), (1, 4, 4))) is None  # in double precision
    True
    """
    weight, borders = operator.weight, operator.borders
    if borders is None or not (weight.is_cpu and weight.dtype == torch.float32 and weight.dim() == 4):
        return None
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _ENTRIES)):
        return None
    padding, unread = borders
    stride, dilation, groups = operator.stride, operator.dilation, operator.groups
    images = [(1, *shape) for shape in (operator.domain, operator.image)]
    convolve = _convolution(weight, padding, stride, dilation, groups, images[0])
    sides, grid = operator.domain[1:], operator.image[1:]
    blocks = None if groups > 1 else pixel_blocks(weight, sides, grid, stride, padding, dilation)
    if blocks is None:
        convolve_transposed = _transposed(weight, padding, unread, stride, dilation, groups, images[1])
    else:
        to_blocks = _convolution(blocks.weight, blocks.padding, blocks.stride, [1, 1], 1, images[1])
        convolve_transposed = lambda y: blocks.image(to_blocks(y))  # noqa: E731
    return (convolve_transposed, convolve) if operator.transposed else (convolve, convolve_transposed)


def _convolution(weight, padding, stride, dilation, groups, shape) -> Product:
    """A convolution of images like those of the shape, with packed weights."""
    onednn = torch.ops.mkldnn
    packed = onednn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)
    return lambda x: onednn._convolution_pointwise(x, packed, None, padding, stride, dilation, groups, "none", [], "")


def _transposed(weight, padding, unread, stride, dilation, groups, shape) -> Product:
    """The same for a transposed convolution."""
    onednn = torch.ops.mkldnn
    settings = padding, unread, stride, dilation, groups
    packed = onednn._reorder_convolution_transpose_weight(weight, *settings, shape)
    return lambda y: onednn._convolution_transpose_pointwise(y, packed, None, *settings, "none", [], "")
