"""Operators on images whose batch is merged with another axis, such as the frames of a video, (n t, c, *side).

Their rows are (n, t, c, *side). Pooling sees the t c channels of one sample. A convolution becomes one with a further
axis of length t, along which its kernel has length 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..layouts import ROWS, Layout
from .call import Call, Draft, Ref, Rule, Weight
from .drafts import as_view, permuted, scaled

__all__ = ["on_frames"]

#: Operators on each channel alone, with the name of their argument.
_POOLING = {
    **{f"{kind}_pool{nd}d": "self" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for nd in (1, 2, 3)},
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_pool2d_with_indices", "pad"), "self"),
    **{f"upsample_{kind}": "input" for kind in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d")},
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), "input"),
}
_CONVOLUTIONS = frozenset(f"conv{kind}{nd}d" for kind in ("", "_transpose") for nd in (1, 2))
#: Operators with a factor per channel.
_PER_CHANNEL = frozenset(("batch_norm", "_native_batch_norm_legit_no_training", "prelu"))
_GROUPED = frozenset(("group_norm", "native_group_norm"))

View = Callable[[Ref, tuple[int, ...], Layout], Ref]


def on_frames(call: Call, rule: Rule, layouts: Mapping[str, Layout], result: Layout, view: View) -> Draft | Ref | None:
    """The draft of an operator on images whose batch is merged with another axis; None for other operators."""
    name = call.target.__name__.split(".")[0]
    images_read = [value for value in call.args.values() if isinstance(value, Ref) and value.name in layouts]
    if set(layouts.values()) != {result} or result.axis != 0 or len(images_read) != 1:
        return None
    (x,) = images_read
    factors = result.row_shape(call.traced)[: len(result.positions(0))]  # t, or the two numbers whose product it is
    images = _Images(call, rule, x, factors, view)
    if name == "pad" and len(call["pad"]) // 2 >= len(images.sizes):
        return None
    if name in _POOLING:
        return images.pooled(_POOLING[name])
    if name in _CONVOLUTIONS:
        return images.convolved()
    if name in _PER_CHANNEL:
        return images.scaled()
    return images.grouped() if name in _GROUPED else None


class _Images:
    """The rows x, (n, *factors, c, *side), of an operator on (n t, c, *side)."""

    def __init__(self, call: Call, rule: Rule, x: Ref, factors: tuple[int, ...], view: View):
        self.call, self.rule, self.x, self.factors, self.view = call, rule, x, factors, view
        self.frames = math.prod(factors)
        self.sizes = call.shapes[x.name][1 + len(factors) :]  # (c, *side)
        self.results = call.shape[1 + len(factors) :]

    def pooled(self, argument: str) -> Draft | None:
        """Of t c channels."""
        x = self.view(self.x, self._joined(self.sizes), ROWS)  # (n, t c, *side)
        draft = self._applied(self._joined(self.sizes), self._joined(self.results), {argument: x}, x)
        return None if draft is None else as_view(replace(draft, shape=self._joined(self.results)))

    def convolved(self) -> Draft | None:
        """Of images with the axis t in front of the side."""
        draft = self._applied(self.sizes, self.results, {}, self.x)
        if draft is None or draft.weight is None:
            return None
        first = {"stride": 1, "padding": (0, 0), "dilation": 1, "output_padding": 0}
        params = {key: (first[key], *value) if key in first else value for key, value in draft.params.items()}
        params["nd"] = draft.params["nd"] + 1
        kernel = replace(draft.weight, tensor=draft.weight.tensor.unsqueeze(2))  # (out, in / groups, 1, *kernel)
        shape = (self.results[0], self.frames, *self.results[1:])
        wide = replace(draft, inputs=(self._channels_first(),), weight=kernel, params=params, shape=shape)
        return self._back(wide, self.results)

    def scaled(self) -> Draft | None:
        """With the factor of every channel, which is the first axis there."""
        draft = self._applied(self.sizes, self.results, {}, self.x)
        if draft is None:
            return None
        if len(self.sizes) == 1:  # behind a linear map, into which it may be folded
            return replace(draft, inputs=(self.x,), params={**draft.params, "dim": 1 + len(self.factors)})
        shape = (self.results[0], self.frames, *self.results[1:])
        return self._back(replace(draft, inputs=(self._channels_first(),), shape=shape), self.results)

    def grouped(self) -> Draft | None:
        """Of t times as many groups; the scale and the shift of every channel follow."""
        call, joined = self.call, self._joined(self.sizes)
        name = "num_groups" if "num_groups" in call.args else "group"
        x = self.view(self.x, joined, ROWS)  # (n, t c, *side)
        plain = {"input": x, name: call[name] * self.frames, "weight": None, "bias": None}
        draft = self._applied(joined, joined, plain, x)
        weight, bias = call.get("weight"), call.get("bias")
        if draft is None:
            return None
        normed = as_view(replace(draft, shape=joined), (*self.factors, *self.sizes))
        if not isinstance(weight, Weight) and not isinstance(bias, Weight):
            return normed
        return scaled(normed, weight, bias, dim=1 + len(self.factors), layer=weight is not None)

    def _applied(
        self, sizes: tuple[int, ...], results: tuple[int, ...], args: Mapping[str, object], x: Ref
    ) -> Draft | None:
        shapes = {**self.call.shapes, x.name: (-1, *sizes)}
        call = replace(self.call, args={**self.call.args, **args}, shapes=shapes, shape=(-1, *results))
        draft = self.rule(call)
        return draft if isinstance(draft, Draft) else None

    def _joined(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (self.frames * sizes[0], *sizes[1:])

    def _channels_first(self) -> Draft:
        """(n, c, t, *side)."""
        frames = as_view(self.x, (self.frames, *self.sizes))  # (n, t, c, *side)
        return _swapped(frames, (self.sizes[0], self.frames, *self.sizes[1:]))

    def _back(self, draft: Draft, sizes: tuple[int, ...]) -> Draft:
        """From (n, c, t, *side) to rows."""
        return as_view(_swapped(draft, (self.frames, *sizes)))


def _swapped(x: Draft, shape: tuple[int, ...]) -> Draft:
    """The first two axes of the rows exchanged."""
    return permuted(x, (0, 2, 1, *range(3, 1 + len(shape))), shape=shape)
