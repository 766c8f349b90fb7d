"""Where the samples are in a traced tensor, and what else the trace records of it.

Torch's attention moves the samples to the second axis and then joins them with the heads: (T, n, d), then
(T, n h, d / h), then (n h, T, d / h). Every node of a graph has one row per sample, (n, ...). A layout converts between
the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ROWS", "Layout", "Signal", "Sizes", "at_samples", "order_of_axes", "reshaped"]


@dataclass(frozen=True)
class Layout:
    """The place of n samples: the axis `axis` has outer * n * inner entries, in this order.

    Attributes
    ----------
    axis, outer, inner : int
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    def to_rows(self, x: Tensor) -> Tensor:
        """The tensor (..., outer n inner, ...) as (n, ..., outer, inner, ...), without an `outer` or `inner` of 1."""
        if self == ROWS:
            return x
        n = x.shape[self.axis] // (self.outer * self.inner)
        # (..., outer n inner, ...) -> (..., outer, n, inner, ...) -> (n, ..., outer, inner, ...)
        split = x.unflatten(self.axis, (self.outer, n, self.inner)).movedim(self.axis + 1, 0)
        return split.reshape(n, *self.row_shape(x.shape))

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `to_rows`."""
        if self == ROWS:
            return rows
        first, last = 1 + self.axis, 1 + self.axis + len(self._factors)
        # (n, ..., outer, inner, ...), then the samples between `outer` and `inner`, and the three joined
        split = rows.reshape(*rows.shape[:first], self.outer, self.inner, *rows.shape[last:])
        return split.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)

    def row_shape(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Shape of one row of a tensor with these sizes; that of the samples' axis is not read."""
        return (*sizes[: self.axis], *self._factors, *sizes[self.axis + 1 :])

    def positions(self, axis: int) -> tuple[int, ...]:
        """The axes of the rows that a traced axis becomes; for that of the samples, those of `outer` and `inner`."""
        if axis < self.axis:
            return (axis + 1,)
        if axis == self.axis:
            return tuple(range(axis + 1, axis + 1 + len(self._factors)))
        return (axis + len(self._factors),)

    def aligned(self, more: int) -> Layout:
        """The layout with so many further axes in front, as broadcasting adds them."""
        return Layout(self.axis + more, self.outer, self.inner)

    @property
    def _factors(self) -> tuple[int, ...]:
        return tuple(factor for factor in (self.outer, self.inner) if factor > 1)


ROWS = Layout()


@dataclass(frozen=True)
class Sizes:
    """The sizes of a traced tensor, read from its symbolic shape.

    Attributes
    ----------
    multiples : tuple of int
        c for an axis of c n entries, 0 for an axis whose size is a number, -1 for any other.
    for_one, for_two : tuple of int
        The sizes for one and for two samples.
    """

    multiples: tuple[int, ...]
    for_one: tuple[int, ...]
    for_two: tuple[int, ...]

    @classmethod
    def of(cls, result: Tensor, batch: str) -> Sizes:
        """The sizes of a result; `batch` is the number of samples, a symbol or a number."""
        multiples, one, two = [], [], []
        for axis, size in enumerate(result.shape):
            if isinstance(size, int):
                at, multiple = [size, size], 0
            else:
                at = [at_samples(size, n) for n in (1, 2, 3)]
                multiple = at[0] if at[0] > 0 and at == [at[0], 2 * at[0], 3 * at[0]] else -1
            multiples.append(multiple)
            if axis == 0 and str(size) == batch:  # a number where the forward pass has fixed it
                multiples[0], at[0] = 1, 1
            one.append(at[0])
            two.append(at[1])
        return cls(tuple(multiples), tuple(one), tuple(two))

    @classmethod
    def repeated(cls, shape: Sequence[int], layout: Layout) -> Sizes:
        """The sizes of a tensor with a layout, from its shape for two samples."""
        multiples = tuple(size // 2 if axis == layout.axis else 0 for axis, size in enumerate(shape))
        one = tuple(multiple or size for multiple, size in zip(multiples, shape, strict=True))
        return cls(multiples, one, tuple(shape))

    @property
    def samples_axis(self) -> int | None:
        """The axis of the samples, if there is exactly one."""
        axes = [axis for axis, multiple in enumerate(self.multiples) if multiple]
        return axes[0] if len(axes) == 1 and self.multiples[axes[0]] > 0 else None


@dataclass(frozen=True)
class Signal:
    """Properties of a value that depends on the input.

    Attributes
    ----------
    shape : tuple of int
        Sizes of its rows, with -1 in front for the number of samples. If it has no known layout, its traced sizes, with
        -2 for those that depend on the number of samples; () if the value is not a tensor.
    is_tensor : bool
    is_real : bool
        Whether it contains real numbers, as opposed to indices, booleans or complex numbers.
    is_batch_size : bool
        Whether it is the number of samples.
    layout : Layout or None
        Where its samples are as traced; None if that is not known.
    sizes : Sizes or None
        Its sizes as traced; None if it is not a tensor.
    dtype : torch.dtype or None
        That of the network for real numbers.
    for_two : int or None
        A whole number's value for two samples.
    """

    shape: tuple[int, ...] = ()
    is_tensor: bool = False
    is_real: bool = False
    is_batch_size: bool = False
    layout: Layout | None = None
    sizes: Sizes | None = None
    dtype: torch.dtype | None = None
    for_two: int | None = None

    @property
    def for_one(self) -> tuple[int, ...]:
        """Its traced sizes for a single sample."""
        return () if self.sizes is None else self.sizes.for_one

    @property
    def is_mask(self) -> bool:
        """Whether it holds truth values or whole numbers, one row per sample."""
        return self.is_tensor and not self.is_real and self.layout is not None

    @property
    def has_rows(self) -> bool:
        """Whether it is real and has one row per sample, as rules require; batch sizes also qualify."""
        return not self.is_tensor or (self.is_real and self.layout is not None)


def at_samples(size: int | torch.SymInt, n: int) -> int:
    """A size for n samples."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Symbol:  # the number of samples itself; a substitution takes a hundred times as long
        return n
    return int(expression.subs(dict.fromkeys(expression.free_symbols, n)))


def reshaped(layout: Layout, before: Sizes, after: Sizes) -> Layout | None:
    """The layout after a reshape, which keeps the order of all entries; None if it cuts through the samples."""
    axis = after.samples_axis
    if axis is None:
        return None
    first = math.prod(before.for_one[: layout.axis]) * layout.outer  # entries with a step of one sample or more
    front, multiple = math.prod(after.for_one[:axis]), after.multiples[axis]
    outer = first // front if front and first % front == 0 else 0
    return Layout(axis, outer, multiple // outer) if outer and multiple % outer == 0 else None


def order_of_axes(target: Any, named: Mapping[str, Any], x: str, rank: int) -> tuple[int, ...]:
    """The order of axes that an operator on x with other arguments by name makes."""
    sizes = torch.empty(tuple(range(2, rank + 2)), device="meta")  # (2, 3, ...): each size identifies its axis
    arguments = {key: sizes if key == x else value for key, value in named.items()}
    return tuple(size - 2 for size in target(**arguments).shape)
