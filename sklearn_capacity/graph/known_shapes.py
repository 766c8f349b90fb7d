"""Shapes of the results of recorded operators, for which torch would first import hundreds of modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .known_calls import KEEP_SHAPE

__all__ = ["result_of"]

aten = torch.ops.aten
Shape = Sequence[int]


def result_of(target: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The result of an operator on tensors without entries; only its shape and its dtype are meaningful."""
    first: Tensor = args[0]
    if target in KEEP_SHAPE:
        return first
    shape = _SHAPES[target](*args) if target in _SHAPES and not options else None
    if shape is None:  # an unusual case, or an error
        result: Tensor = target(*args, **options)
        return result
    return first if shape == first.shape else first.new_empty(shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    return (*x.shape[:-1], len(weight)) if x.shape[-1:] == weight.shape[1:] and x.dtype == weight.dtype else None


def _of_two(a: Tensor, b: Any) -> Shape | None:
    if not isinstance(b, Tensor):
        return a.shape if a.is_floating_point() else None
    alike = a.dtype == b.dtype and len(a.shape) >= len(b.shape)
    return torch.broadcast_shapes(a.shape, b.shape) if alike else None


def _windows(x: Tensor, channels: int, sizes: Shape, strides: Shape, paddings: Shape, dilations: Shape) -> Shape:
    axes = zip(x.shape[-len(sizes) :], sizes, strides, paddings, dilations, strict=True)
    return (len(x), channels, *((n + 2 * p - d * (size - 1) - 1) // s + 1 for n, size, s, p, d in axes))


def _convolution(x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    fits = x.dim() == weight.dim() and x.shape[1] == groups * weight.shape[1] and x.dtype == weight.dtype
    shape = _windows(x, len(weight), weight.shape[2:], stride, padding, dilation) if fits else (0,)
    return shape if min(shape) > 0 else None


def _pooling(nd: int, kinds: str) -> Callable[..., Any]:
    """The shape rule of pooling without `ceil_mode`."""

    def shape_rule(x: Tensor, sizes: Shape, strides: Shape, paddings: Shape, *others: Any) -> Shape | None:
        dilations, ceil_mode = others[:2] if kinds == "max" else ([1] * nd, others[0])
        if ceil_mode or x.dim() != nd + 2 or any(2 * p > size for p, size in zip(paddings, sizes, strict=True)):
            return None
        shape = _windows(x, x.shape[1], sizes, strides, paddings, dilations)
        return shape if min(shape) > 0 else None

    return shape_rule


def _adaptive_pooling(nd: int) -> Callable[..., Any]:
    return lambda x, sizes: (*x.shape[:2], *sizes) if x.dim() == nd + 2 and min(sizes) > 0 else None


#: The shape of the result by operator, from its arguments; None where the rule does not apply.
_SHAPES: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _linear,
    **{getattr(aten, f"conv{nd}d").default: _convolution for nd in (1, 2, 3)},
    **{getattr(aten, f"max_pool{nd}d").default: _pooling(nd, "max") for nd in (1, 2, 3)},
    **{getattr(aten, f"avg_pool{nd}d").default: _pooling(nd, "avg") for nd in (2, 3)},
    **{getattr(aten, f"adaptive_avg_pool{nd}d").default: _adaptive_pooling(nd) for nd in (2, 3)},
    **{getattr(aten, name).Tensor: _of_two for name in ("add", "sub", "mul", "div")},
}
