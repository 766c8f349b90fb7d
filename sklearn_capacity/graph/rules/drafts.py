"""The drafts of nodes that many rules return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .call import Draft, Ref, Weight

__all__ = [
    "activation",
    "as_view",
    "centred",
    "cut",
    "function",
    "permuted",
    "reduced",
    "scaled",
    "selected",
    "shifted",
]

Shape = tuple[int, ...]


def activation(kind: str, x: Ref | Draft, *args: Any, shape: Shape | None = None) -> Draft:
    """A row of `ACTIVATIONS`, with its arguments."""
    return Draft("activation", (x,), params={"kind": kind, "args": args}, shape=shape)


def function(kind: str, *inputs: Ref | Draft, args: tuple = (), shape: Shape | None = None) -> Draft:
    """A row of `FUNCTIONS`, with its arguments."""
    return Draft("function", inputs, params={"kind": kind, "args": args}, shape=shape)


def scaled(
    x: Ref | Draft,
    factor: Weight | None,
    shift: Weight | None = None,
    *,
    dim: int | None = None,
    layer: bool = False,
    shape: Shape | None = None,
) -> Draft:
    """x times a factor, plus a shift; both broadcast over x, or have one number per index of its axis `dim`.

    With `layer`, the factor is a weight layer.
    """
    return Draft("diagonal", (x,), factor, shift, {"kind": "scale", "dim": dim, "layer": layer}, shape)


def shifted(x: Ref | Draft, shift: Weight, factor: Weight | None = None, *, shape: Shape | None = None) -> Draft:
    """x, or a multiple of it, plus a shift that broadcasts over it."""
    return Draft("diagonal", (x,), factor, shift, {"kind": "shift", "dim": None}, shape)


def reduced(
    kind: str,
    x: Ref | Draft,
    dims: tuple[int, ...],
    factor: float = 1.0,
    *,
    keepdim: bool = False,
    shape: Shape | None = None,
) -> Draft:
    """The sum over ascending axes times a factor; its kind is "sum" or "mean"."""
    params = {"kind": kind, "dims": dims, "keepdim": keepdim, "factor": factor}
    return Draft("reduce", (x,), params=params, shape=shape)


def centred(x: Ref | Draft, dims: tuple[int, ...], *, shape: Shape | None = None) -> Draft:
    """x minus its mean over some axes."""
    return Draft("center", (x,), params={"kind": "center", "dims": dims}, shape=shape)


def permuted(x: Ref | Draft, dims: Sequence[int], *, shape: Shape | None = None) -> Draft:
    """The axes in another order, that of the samples in front."""
    return Draft("permute", (x,), params={"dims": tuple(dims)}, shape=shape)


def cut(x: Ref | Draft, dim: int, start: int, stop: int, step: int = 1) -> Draft:
    """A part of an axis."""
    return Draft("slice", (x,), params={"kind": "slice", "dim": dim, "index": slice(start, stop, step)})


def selected(x: Ref | Draft, dim: int, index: int, *, shape: Shape | None = None) -> Draft:
    """One entry of an axis, without the axis."""
    return Draft("slice", (x,), params={"kind": "select", "dim": dim, "index": index}, shape=shape)


def as_view(x: Ref | Draft, shape: Shape | None = None) -> Draft:
    """The entries of a signal in another shape for one sample; without one, in that of the operator's result."""
    return Draft("view", (x,), params={"kind": "view"}, shape=shape)
