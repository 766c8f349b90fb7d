"""Slow references for linear operators: matrices written entry by entry, in float64, by loops over the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch


def padded_pixel(position: int, size: int, mode: str) -> int | None:
    """The pixel shown at a position that may lie outside, None for a zero: the modes by their definition."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position % size
    return -position if position < 0 else 2 * (size - 1) - position  # reflect


def convolution_matrix(weight, sizes, stride, before, dilation, groups, mode, outputs) -> np.ndarray:
    """The matrix of a convolution: for every output, channel and tap, the weight is added where the tap falls."""
    weight = np.asarray(weight, dtype=np.float64)
    c_out, c_in = weight.shape[0], weight.shape[1] * groups
    matrix = np.zeros((c_out, *outputs, c_in, *sizes))
    for out in np.ndindex(*outputs):
        for tap in np.ndindex(*weight.shape[2:]):
            pixels = [
                padded_pixel(i * s - a + d * t, n, mode)
                for i, s, a, d, t, n in zip(out, stride, before, dilation, tap, sizes, strict=True)
            ]
            if None in pixels:
                continue
            for o, c in itertools.product(range(c_out), range(weight.shape[1])):
                channel = o // (c_out // groups) * weight.shape[1] + c
                matrix[(o, *out, channel, *pixels)] += weight[(o, c, *tap)]
    return matrix.reshape(c_out * int(np.prod(outputs)), -1)


def dense_matrix(function: Callable[[torch.Tensor], torch.Tensor], input_shape: Sequence[int]) -> torch.Tensor:
    """The matrix of a linear map: the images of the unit vectors, one after the other, are its columns."""
    size = math.prod(input_shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1, *input_shape)
    with torch.no_grad():
        return torch.stack([function(unit).reshape(-1) for unit in units], dim=1)


def norm(matrix: np.ndarray) -> float:
    """The largest singular value, from all of them."""
    return float(np.linalg.svd(matrix, compute_uv=False)[0]) if matrix.size else 0.0


def drawn(*shape: int) -> torch.Tensor:
    """Normal numbers that depend on the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def norm_ends(operator) -> tuple[float, float]:
    """The norm of an operator of the package from below, and from above as proven from there."""
    lower = operator.norm_lower().value
    return lower, operator.norm_upper(lower)
