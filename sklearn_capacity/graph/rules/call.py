"""The interface of rules, which convert aten operators to canonical nodes.

A rule receives the call (its arguments by name, as `Ref` if they depend on the network's input) and returns a `Draft`,
whose inputs may be drafts of further nodes. It returns None if the operator has no canonical form in this use; the
operator then becomes "opaque": it can be evaluated, and every other interpretation refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..nodes import Node, Weight

__all__ = ["CONVERSIONS", "Call", "Draft", "Ref", "Rule", "Weight", "aten", "axes_of", "is_weight", "per_axis", "rule"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Ref:
    """A value that depends on the network's input."""

    name: str


@dataclass(frozen=True)
class Draft:
    """The node that a rule returns; binding adds name and scope.

    Attributes
    ----------
    op, weight, bias, params
        As in `Node`.
    inputs : tuple of Ref or Draft
        A draft among them becomes a separate node before this one.
    shape : tuple of int or None
        Shape of its output for one sample; None for that of the operator's result.
    """

    op: str
    inputs: tuple[Ref | Draft, ...]
    weight: Weight | None = None
    bias: Weight | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Call:
    """An operator's arguments by their schema's names, and the shapes of its inputs and output (batch included).

    Attributes
    ----------
    whole_numbers : mapping of str to int
        Values for two samples, by name, of the sizes that depend on the number of samples.
    producer : callable(Ref) -> Node
        Returns the node that computes a value.
    is_real : callable(Ref) -> bool
        Returns whether a value holds real numbers, not truth values.
    dtype, device
        Dtype and device of the network.
    traced : tuple of int
        The sizes of its result as traced, for one sample.
    traced_rank : int
        The rank of the first tensor that depends on the input, as traced.
    """

    target: Any
    args: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    scope: str
    device: torch.device
    dtype: torch.dtype
    whole_numbers: Mapping[str, int]
    producer: Callable[[Ref], Node]
    is_real: Callable[[Ref], bool]
    traced: tuple[int, ...] = ()
    traced_rank: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    def rank(self, ref: Ref) -> int:
        return len(self.shapes[ref.name])


Rule = Callable[[Call], "Draft | Ref | None"]
CONVERSIONS: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten overloads, given as "name.overload"."""

    def register(function: Rule) -> Rule:
        for name in names:
            packet, overload = name.split(".")
            CONVERSIONS[getattr(getattr(aten, packet), overload)] = function
        return function

    return register


def is_weight(value: Any) -> bool:
    """Whether an argument is a parameter or buffer, or omitted."""
    return value is None or isinstance(value, Weight)


def per_axis(value: Any, nd: int) -> tuple[int, ...]:
    """One number per spatial axis, from a common number or one per axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * nd if len(values) == 1 else values


def axes_of(value: Any, rank: int) -> tuple[int, ...]:
    """The axes that an argument names, ascending: one, several, or all for None and for an empty list."""
    axes = (value,) if isinstance(value, int) else tuple(value or range(rank))
    return tuple(sorted(axis % rank for axis in axes))
