"""Padding of images as a linear map: the source of each padded pixel, the product and the adjoint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_capacity._validation import check_integer, shown

__all__ = ["PADDING_MODES", "pad", "pad_adjoint", "padding_norm", "per_axis", "source_index"]

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
NUMPY_MODES: dict[str, Any] = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}

Pairs = Sequence[tuple[int, int]]


def per_axis(name: str, value: Any, n_axes: int, low: int) -> tuple[int, ...]:
    """One integer of at least `low` per axis, from an integer or a sequence of one or `n_axes` of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) not in (1, n_axes):
        raise ValueError(f"`{name}` must be an integer or a sequence of {n_axes} integers, got {shown(value)}.")
    return tuple(check_integer(name, entry, low) for entry in values) * (n_axes // len(values))


def source_index(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Index of the input pixel that each padded pixel copies, -1 for zeros; negative padding crops.

    Parameters
    ----------
    size : int
        Number of pixels along one axis before padding.
    before, after : int
        Number of pixels added at either end, or removed if negative.
    mode : "zeros", "circular", "reflect" or "replicate"

    Returns
    -------
    ndarray of shape (size + before + after,)

    Examples
    --------
    >>> from sklearn_capacity.linalg.padding import source_index
    >>> source_index(3, 1, 2, "replicate").tolist()
    [0, 0, 1, 2, 2, 2]
    """
    grown = (max(before, 0), max(after, 0))
    index = np.arange(size)  # (size,)
    if mode == "zeros":
        index = np.pad(index, grown, constant_values=-1)
    elif any(grown):
        index = np.pad(index, grown, mode=NUMPY_MODES[mode])
    return index[max(-before, 0) : len(index) - max(-after, 0)]


def pad(x: Tensor, pairs: Pairs, mode: str) -> Tensor:
    """Pad the trailing axes of `x` by (before, after) pairs, one per axis."""
    if mode == "zeros":
        return F.pad(x, [*itertools.chain(*reversed(pairs))])
    for axis, index in _indices(x.shape[-len(pairs) :], pairs, mode, x.device):
        x = x.index_select(axis, index)  # (..., size + before + after, ...)
    return x


def pad_adjoint(y: Tensor, sizes: Sequence[int], pairs: Pairs, mode: str) -> Tensor:
    """The transpose of `pad` where it copies pixels: every padded pixel is added to the one that it copies."""
    for axis, index in _indices(sizes, pairs, mode, y.device):
        shape = list(y.shape)
        shape[axis] = sizes[axis]  # both count from the end
        y = torch.zeros(shape, dtype=y.dtype, device=y.device).index_add(axis, index, y)  # (..., size, ...)
    return y


def padding_norm(sizes: Sequence[int], pairs: Pairs, mode: str) -> float:
    """Spectral norm of padding: the root of the largest number of copies of a pixel.

    P^T P is diagonal and counts the copies of each pixel; the counts of the axes multiply.
    """
    counts = 1
    for size, (before, after) in zip(sizes, pairs, strict=True):
        index = source_index(size, before, after, mode)
        counts *= np.bincount(index[index >= 0], minlength=1).max()  # copies of each pixel along this axis
    return math.sqrt(counts)


def _indices(sizes: Sequence[int], pairs: Pairs, mode: str, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for axis, (size, pair) in enumerate(zip(sizes, pairs, strict=True)):
        if pair != (0, 0):
            yield axis - len(pairs), torch.as_tensor(source_index(size, *pair, mode), dtype=torch.int64, device=device)
