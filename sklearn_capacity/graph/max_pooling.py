"""Max pooling: its values, the places of the maxima, and the entries at these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .nodes import Node

__all__ = ["max_pool", "pick", "pool_indices"]

_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
#: Longest side of a window whose maxima are taken axis by axis: with 7 pixels there is no gain left.
LONGEST = 6


def max_pool(node: Node, x: Tensor) -> Tensor:
    """Maxima over the windows."""
    p = node.params
    if "adaptive" in p:
        return _ADAPTIVE[p["nd"]](x, p["adaptive"])
    if _is_faster_by_axes(node, x):
        return _by_axes(node, x)
    return _MAX_POOL[p["nd"]](x, p["kernel"], p["stride"], p["padding"], p["dilation"], p["ceil_mode"])


def pool_indices(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over the windows, and their indices."""
    p = node.params
    if "adaptive" in p:
        return _ADAPTIVE[p["nd"]](x, p["adaptive"], return_indices=True)
    window = (p["kernel"], p["stride"], p["padding"], p["dilation"])
    return _MAX_POOL[p["nd"]](x, *window, ceil_mode=p["ceil_mode"], return_indices=True)


def pick(where: Tensor, dx: Tensor) -> Tensor:
    """Entries of dx (n, c, ...) at the indices of its flattened trailing axes."""
    if dx.dim() == 4 and dx.is_contiguous(memory_format=torch.channels_last):
        n, c = dx.shape[:2]
        rows = dx.permute(0, 2, 3, 1).reshape(n, -1, c)  # (n, pixels, c), a view; flattening per channel would copy
        entries = rows.gather(1, where.permute(0, 2, 3, 1).reshape(n, -1, c))  # (n, places, c)
        return entries.reshape(n, *where.shape[2:], c).permute(0, 3, 1, 2)
    return dx.flatten(2).gather(2, where.flatten(2)).reshape(where.shape)  # (n, c, *places)


def _is_faster_by_axes(node: Node, x: Tensor) -> bool:
    """Whether maxima of two tensors at a time take less time than torch's kernel, which also looks for the indices.

    Not where a gradient is recorded, since equal entries would share it.
    """
    p = node.params
    whole = not any(p["padding"]) and set(p["dilation"]) == {1} and not p["ceil_mode"]
    small = p["nd"] > 1 and max(p["kernel"]) <= LONGEST
    recorded = torch.is_grad_enabled() and x.requires_grad
    return whole and small and x.is_cpu and x.is_contiguous() and not recorded


def _by_axes(node: Node, x: Tensor) -> Tensor:
    """The maxima along one axis of the windows after the other, a view of shifted pixels at a time."""
    p = node.params
    for axis, (kernel, stride) in enumerate(zip(p["kernel"], p["stride"], strict=True), start=x.dim() - p["nd"]):
        last = (x.shape[axis] - kernel) // stride * stride  # first pixel of the last window
        before = (slice(None),) * axis
        shifted = [x[(*before, slice(first, first + last + 1, stride))] for first in range(kernel)]
        x = functools.reduce(torch.maximum, shifted)
    return x
