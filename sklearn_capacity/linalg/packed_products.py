"""Products of a convolution in single precision whose weights oneDNN has laid out once.

torch's convolution lays the weights out in every call. If the channels are many and the pixels few, that takes longer
than the arithmetic: with 512 channels on 2 x 2 pixels, two thirds of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .operator_norm import Product

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
    onednn = torch.ops.mkldnn
    if borders is None or not (weight.is_cpu and weight.dtype == torch.float32 and weight.dim() == 4):
        return None
    if not (torch.backends.mkldnn.is_available() and all(hasattr(onednn, name) for name in _ENTRIES)):
        return None
    padding, unread = borders
    stride, dilation, groups = operator.stride, operator.dilation, operator.groups
    images = [(1, *shape) for shape in (operator.domain, operator.image)]
    packed = onednn._reorder_convolution_weight(weight, padding, stride, dilation, groups, images[0])
    transposed = onednn._reorder_convolution_transpose_weight(
        weight, padding, unread, stride, dilation, groups, images[1]
    )

    def convolve(x: Tensor) -> Tensor:
        """(k, *domain) -> (k, *image)."""
        return onednn._convolution_pointwise(x, packed, None, padding, stride, dilation, groups, "none", [], "")

    def convolve_transposed(y: Tensor) -> Tensor:
        """(k, *image) -> (k, *domain)."""
        return onednn._convolution_transpose_pointwise(
            y, transposed, None, padding, unread, stride, dilation, groups, "none", [], ""
        )

    return (convolve_transposed, convolve) if operator.transposed else (convolve, convolve_transposed)
