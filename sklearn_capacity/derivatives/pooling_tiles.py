"""The transpose of average pooling whose windows lie side by side: every cotangent is spread over its window.

Through autograd it would take the pooling itself, an image of zeros and a copy with the channels last: ten times as
long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..graph.memory_layout import memory_format_of
from ..graph.nodes import Node

__all__ = ["spread_over_tiles", "tile_of"]


def tile_of(node: Node, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """The window of an average pooling whose windows lie side by side within images of these sizes, or None."""
    p, places = node.params, node.shape[1:]
    if "adaptive" in p:  # all windows are equal if the sizes are multiples of their number
        equal = all(size % n == 0 for size, n in zip(sizes, places, strict=True))
        return tuple(size // n for size, n in zip(sizes, places, strict=True)) if equal else None
    kernel = tuple(p["kernel"])
    inside = all(width * n <= size for width, n, size in zip(kernel, places, sizes, strict=True))
    return kernel if inside and kernel == tuple(p["stride"]) and not any(p["padding"]) else None


def spread_over_tiles(g: Tensor, tile: Sequence[int], shape: Sequence[int], divisor: int | None = None) -> Tensor:
    """Cotangents (n, channels, *places) of means over tiles, as those of the image: of `shape` (n, channels, *sizes).

    `divisor` is the number of entries of a tile, unless the pooling divides by another one.
    """
    out = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format_of(g))  # (n, channels, *sizes)
    spread, windows = g / (divisor or math.prod(tile)), out
    for axis, (places, width) in enumerate(zip(g.shape[2:], tile, strict=True)):
        covered, size = places * width, shape[2 + axis]
        out.narrow(2 + axis, covered, size - covered).zero_()  # beyond the last tile
        # each axis becomes two, (places, width); the axes before have become two already
        windows = windows.narrow(2 + 2 * axis, 0, covered).unflatten(2 + 2 * axis, (places, width))
        spread = spread.unsqueeze(3 + 2 * axis)
    windows.copy_(spread)
    return out
