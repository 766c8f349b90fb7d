"""Products with the matrix of a convolution with its entries raised to a power, for sums over paths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .conv import ConvOperator

__all__ = ["power_product"]


def power_product(operator: ConvOperator, p: float, x: Tensor) -> Tensor:
    r"""The product with the operator's matrix, each entry raised to a power.

    .. math:: y_i = \sum_j |A_{ij}|^p \, x_j

    With zero padding, each entry is one weight of the kernel. With reflecting, replicating or circular padding, several
    taps of a window can read the same pixel. The entry is then the sum of their weights, so windows at the border are
    computed separately.

    Parameters
    ----------
    operator : ConvOperator
    p : float > 0
    x : Tensor of shape (n, *operator.input_shape)

    Returns
    -------
    Tensor of shape (n, *operator.output_shape)

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator
    >>> from sklearn_capacity.linalg.power_product import power_product
    >>> kernel = torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64)
    >>> wrapped = ConvOperator(kernel, (1, 2), padding=1, padding_mode="circular")  # both neighbours are one pixel
    >>> power_product(wrapped, 2.0, torch.ones(1, 1, 2, dtype=torch.float64))
    tensor([[[8., 8.]]], dtype=torch.float64)
    """
    # (n, channels, *sizes); right where no taps merge
    y = replace(operator, weight=operator.weight.abs().pow(p)).forward(x)
    if operator.padding_mode == "zeros":
        return y
    patterns, indices = zip(*(taps.row_patterns() for taps in operator.taps), strict=True)
    for choice in itertools.product(*(range(len(group)) for group in patterns)):
        sets = [group[i] for group, i in zip(patterns, choice, strict=True)]  # per axis (kernel, sets)
        if any(selection.sum(axis=0).max() > 1 for selection in sets):
            # per axis (places,)
            places = [np.flatnonzero(index == i) for index, i in zip(indices, choice, strict=True)]
            at: tuple = tuple(torch.as_tensor(place, device=y.device) for place in np.ix_(*places))
            y[(slice(None), slice(None), *at)] = _merged_product(operator, p, x, sets, places)  # type: ignore[index]
    return y


def _merged_product(operator: ConvOperator, p: float, x: Tensor, sets: Sequence, places: Sequence) -> Tensor:
    """The outputs at `places`, whose windows all share the pattern `sets`: (n, channels, *places)."""
    weight = operator.blocks  # (groups, out, in, *kernel), channels per group
    for axis, (taps, selection, place) in enumerate(zip(operator.taps, sets, places, strict=True)):
        # The pixels of a window in ascending order, like the columns of its pattern.
        pixels = np.stack([np.unique(taps.pixels[i][taps.pixels[i] >= 0]) for i in place])
        index = torch.as_tensor(pixels, device=x.device)  # (places, sets)
        # Each axis of x becomes two: (n, channels, places_1, sets_1, places_2, sets_2, ...).
        x = x.index_select(2 + 2 * axis, index.flatten()).unflatten(2 + 2 * axis, index.shape)
        weight = torch.tensordot(  # the leading kernel axis -> sets, appended: taps of one pixel are added up
            weight, torch.as_tensor(selection, dtype=weight.dtype, device=weight.device), dims=([3], [0])
        )
    nd = len(sets)
    # (n, channels, sets, *places)
    windows = x.permute(0, 1, *range(3, 3 + 2 * nd, 2), *range(2, 2 + 2 * nd, 2)).flatten(2, 1 + nd)
    windows = windows.unflatten(1, (operator.groups, -1)).flatten(4)  # (n, groups, in, sets, places)
    sums = torch.einsum("gocs,ngcsl->ngol", weight.flatten(3).abs().pow(p), windows)  # (n, groups, out, places)
    return sums.reshape(len(x), -1, *(len(place) for place in places))
