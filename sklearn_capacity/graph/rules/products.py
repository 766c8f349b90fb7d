"""Products of two signals, entry by entry or as matrices."""

from __future__ import annotations

from typing import Any

import torch

from .call import Call, Draft, Ref, rule
from .drafts import function
from .shapes import broadcast_to

__all__ = ["matmul", "product"]


def product(call: Call, a: Ref | Draft, b: Ref | Draft, shapes: tuple[tuple[int, ...], ...]) -> Draft | None:
    """a b, entry by entry, each broadcast from its shape (batch included) to that of the operator's result."""
    wide = [broadcast_to(call, x, shape, call.shape) for x, shape in zip((a, b), shapes, strict=True)]
    return None if None in wide else function("product", *wide)  # type: ignore[arg-type]


def matmul(
    call: Call, a: Ref | Draft, b: Ref | Draft, shapes: tuple[tuple[int, ...], ...], **more: Any
) -> Draft | None:
    """The product of stacks of matrices, each broadcast from its shape (batch included)."""
    first, second = shapes
    if len(first) != len(second) or len(first) < 3:
        return None  # with one axis less, samples would meet other axes
    stack = torch.broadcast_shapes(first[1:-2], second[1:-2])
    wide = [broadcast_to(call, x, s, (s[0], *stack, *s[-2:])) for x, s in zip((a, b), shapes, strict=True)]
    return None if None in wide else function("matmul", *wide, **more)  # type: ignore[arg-type]


@rule("bmm.default")
def _bmm(call: Call) -> Draft | None:
    a, b = call["self"], call["mat2"]
    if not isinstance(a, Ref) or not isinstance(b, Ref):
        return None
    return matmul(call, a, b, (call.shapes[a.name], call.shapes[b.name]))
