"""The transpose of a convolution to one channel as one matrix product; torch takes longer in double precision."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..graph.nodes import Node

__all__ = ["gathered_pixels"]


def gathered_pixels(node: Node, g: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The transposed convolution to one channel: one matrix product, then one sum per kernel position.

    The convolution ``y[c, m] = sum_k W[c, k] x[m s + k d - a]``, with stride s, dilation d and a zeros before x, has
    the transpose ``z[q] = sum_k sum_c W[c, k] g[c, m]`` over all k, m with ``m s + k d - a = q``. The sum over the
    channels is a matrix product, for all k at once. For one k, the positions ``m s + k d`` are a strided slice of the
    padded image, to which the k-th part of the product is added.
    """
    assert node.weight is not None
    n, channels, *grid = g.shape  # the number of positions m
    kernel = node.weight.shape[2:]
    rows = g.permute(0, 2, 3, 1).reshape(-1, channels)  # (n m, C)
    products = (node.weight.reshape(channels, -1).t() @ rows.t()).view(*kernel, n, *grid)  # (*k, n, *m)
    axes = [
        _Axis(*numbers)
        for numbers in zip(
            grid, kernel, node.params["stride"], node.params["dilation"], node.params["padding"], strict=True
        )
    ]
    sizes = [axis.padded_size(side) for axis, side in zip(axes, sides, strict=True)]
    padded = torch.zeros(n, *sizes, dtype=g.dtype, device=g.device)  # (n, *sizes)
    for place in itertools.product(*map(range, kernel)):
        window = tuple(axis.places(k) for axis, k in zip(axes, place, strict=True))
        padded[(slice(None), *window)] += products[place]  # (n, *m)
    inner = tuple(slice(axis.padding[0], axis.padding[0] + side) for axis, side in zip(axes, sides, strict=True))
    return padded[(slice(None), None, *inner)].contiguous()  # (n, 1, *side)


class _Axis(NamedTuple):
    """One axis of a convolution."""

    n_places: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]

    def places(self, k: int) -> slice:
        """Positions of the kernel's k-th entry in the padded input, for all positions of the output."""
        first = k * self.dilation
        return slice(first, first + self.stride * self.n_places, self.stride)

    def padded_size(self, side: int) -> int:
        """Size of the padded input, at least as large as the reach of the kernel."""
        reach = (self.n_places - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
        return max(reach, side + sum(self.padding))
