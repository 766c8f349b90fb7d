"""The rule for `fold`: an image as the sum of overlapping blocks."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .call import Call, Draft, Ref, aten, rule
from .drafts import reduced
from .shapes import picked

__all__: list[str] = []


@rule("col2im.default")
def _fold(call: Call) -> Draft | None:
    """For every pixel the entries that are added to it, side by side, and their sum."""
    x = call["self"]
    if not isinstance(x, Ref) or len(call.shape) != 4:  # without an axis of samples
        return None
    places = _summands(call)  # (most summands, *result): places among the entries, from 1, or 0
    shape = tuple(places.shape)

    def side_by_side(entries: Tensor) -> Tensor:  # (samples, *x) -> (samples, most summands, *result)
        flat = entries.flatten(1)
        nothing = torch.zeros_like(flat[:, :1])
        return torch.cat([nothing, flat], 1)[:, places.flatten()].unflatten(1, shape)

    draft = picked(x, call.shapes[x.name][1:], side_by_side, call.device)
    if draft is None:
        return None
    return reduced("sum", replace(draft, shape=shape), (1,))


def _summands(call: Call) -> Tensor:
    """By pixel of the result, the entries of x that `fold` adds: the blocks that `unfold` takes of numbered pixels."""
    size = math.prod(call.shape[1:])
    pixels = torch.arange(1.0, size + 1, dtype=torch.float64, device=call.device).reshape(1, *call.shape[1:])
    names = ("kernel_size", "dilation", "padding", "stride")
    pixel_of = aten.im2col.default(pixels, *(call[name] for name in names)).flatten().long()  # 0 in the padding
    order = pixel_of.argsort(stable=True)
    counts = pixel_of.bincount(minlength=size + 1)
    rank = torch.arange(len(order), device=call.device) - (counts.cumsum(0) - counts)[pixel_of[order]]
    counts[0] = 0
    places = torch.zeros(int(counts.max()), size + 1, dtype=torch.long, device=call.device)
    inside = pixel_of[order] > 0
    places[rank[inside], pixel_of[order][inside]] = order[inside] + 1
    return places[:, 1:].reshape(-1, *call.shape[1:])
