"""What the trace records of a value that depends on the network's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layouts import Layout, Sizes

__all__ = ["Signal"]


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
