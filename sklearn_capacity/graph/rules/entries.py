"""Rules for linear operators on entries of one or several signals, by what they make of numbered entries.

The signals of a sample are joined to one vector. If every entry of the result is one of the vector's, or a constant,
the operator is a selection; if it adds or weighs entries, it is a matrix, up to a size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .call import Call, Draft, Ref, Weight, rule
from .drafts import as_view, shifted
from .rows import Repeated
from .shapes import SAMPLES, is_whole, picked

__all__: list[str] = []

#: Numbers of the largest matrix; one column is computed after the other.
MOST_NUMBERS = 2**22


@rule(
    "gather.default",
    "take_along_dim.default",
    "scatter.src",
    "scatter.value",
    "scatter_add.default",
    "scatter_reduce.two",
)
@rule("affine_grid_generator.default")
@rule("index_add.default", "index_copy.default", "index_fill.int_Scalar", "index_fill.int_Tensor", "index_put.default")
@rule("slice_scatter.default", "select_scatter.default", "diagonal_scatter.default", "fill.Scalar", "fill.Tensor")
@rule("kron.default", "grid_sampler.default", "linalg_solve_triangular.default", "masked_scatter.default")
def _of_entries(call: Call) -> Draft | Ref | None:
    """The rule for all of them; None if samples meet, or if it is not linear in the entries."""
    if "src" in call.args and isinstance(call["src"], Ref) and "step" in call.args and is_whole(call):
        return call["src"]
    operator = _Operator(call)
    with torch.no_grad():
        draft = operator.selection() or operator.matrix()
    return None if draft is None else operator.shifted(draft)


def _is_leaf(value: object) -> bool:
    return isinstance(value, Ref | Weight | Repeated)


class _Operator:
    """An operator as a map from the joined entries of its signals, for two samples."""

    def __init__(self, call: Call):
        self.call = call
        leaves = tree_leaves(dict(call.args), is_leaf=_is_leaf)
        signals = (x for x in leaves if isinstance(x, Ref) and x.name not in call.whole_numbers)
        self.signals: Sequence[Ref] = tuple(dict.fromkeys(signals))
        self.shapes = [call.shapes[x.name][1:] for x in self.signals]
        self.constants = [
            x.weight if isinstance(x, Repeated) else x for x in leaves if isinstance(x, Weight | Repeated)
        ]
        self.size = sum(map(math.prod, self.shapes))
        self.at_zero = self.of(torch.zeros(SAMPLES, self.size, dtype=torch.float64, device=call.device))

    def of(self, entries: Tensor) -> Tensor:
        """The result as rows, from joined entries (samples, size)."""
        parts = entries.split([math.prod(shape) for shape in self.shapes], 1)
        shaped = (part.reshape(len(part), *shape) for part, shape in zip(parts, self.shapes, strict=True))
        return self.call.target({x.name: part for x, part in zip(self.signals, shaped, strict=True)})

    @property
    def joined(self) -> Ref | Draft:
        """The signals of a sample as one vector."""
        flat = tuple(as_view(x, (math.prod(shape),)) for x, shape in zip(self.signals, self.shapes, strict=True))
        return flat[0] if len(flat) == 1 else Draft("cat", flat, params={"dim": 1}, shape=(self.size,))

    @property
    def is_trained(self) -> bool:
        """Whether one of the constants is trained."""
        return any(x.trainable for x in self.constants)

    def with_other_constants(self) -> _Operator:
        """The operator with other numbers for the trained constants."""
        generator = torch.Generator().manual_seed(0)

        def drawn(weight: Weight) -> Weight:
            noise = torch.randn(weight.tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            return replace(weight, tensor=weight.tensor + noise.to(weight.tensor)) if weight.trainable else weight

        def other(value: Any) -> Any:
            if isinstance(value, Repeated):
                return replace(value, weight=drawn(value.weight))
            return drawn(value) if isinstance(value, Weight) else value

        args = tree_map(other, dict(self.call.args), is_leaf=_is_leaf)
        target = replace(self.call.target, call=replace(self.call.target.call, args=args))
        return _Operator(replace(self.call, args=args, target=target))

    def is_map(self, matrix: Tensor | None, index: Tensor | None = None) -> bool:
        """Whether the operator is this matrix or selection, on any entries, and a constant."""
        generator = torch.Generator().manual_seed(0)
        entries = torch.randn(SAMPLES, self.size, dtype=torch.float64, device="cpu", generator=generator)
        entries = entries.to(self.call.device)
        change = (self.of(entries) - self.at_zero).reshape(SAMPLES, -1)
        if matrix is not None:
            return torch.allclose(change, entries @ matrix.mT, rtol=1e-9, atol=1e-9)
        assert index is not None
        padded = torch.cat([torch.zeros_like(entries[:, :1]), entries], 1)
        return torch.allclose(change, padded[:, index], rtol=1e-9, atol=1e-9)

    def selection(self) -> Draft | None:
        """The operator as one that takes each entry of the result from the joined ones, or leaves it 0."""
        # A constant that was added and subtracted leaves whole numbers only up to rounding.
        draft = picked(
            self.joined, (self.size,), lambda places: (self.of(places) - self.at_zero).round(), self.call.device
        )
        if draft is None:
            return None
        numbered = torch.arange(1, SAMPLES * self.size + 1, dtype=torch.float64, device=self.call.device)
        index = (self.of(numbered.reshape(SAMPLES, -1)) - self.at_zero)[0].flatten().round().long()
        # Trained constants may be added to entries, but not multiply them, even if all are 1 at first.
        fits = self.is_map(None, index) and (not self.is_trained or self.with_other_constants().is_map(None, index))
        return replace(draft, shape=self.call.shape[1:]) if fits else None

    def matrix(self) -> Draft | None:
        """The operator as a matrix of fixed numbers."""
        outputs = math.prod(self.call.shape[1:])
        if self.size * outputs > MOST_NUMBERS or self.is_trained:
            return None
        units = torch.eye(self.size, dtype=torch.float64, device=self.call.device)
        columns = [(self.of(unit.expand(SAMPLES, -1)) - self.at_zero)[0].flatten() for unit in units]
        matrix = torch.stack(columns, 1)  # (outputs, size)
        if not self.is_map(matrix):
            return None
        kind = self.call.target.name
        return as_view(Draft("separable", (self.joined,), params={"kind": kind, "axes": (matrix,)}, shape=(outputs,)))

    def shifted(self, draft: Draft) -> Draft:
        """The linear map and the constant that is added to it."""
        if not bool(self.at_zero.any()) and not self.is_trained:
            return draft
        row = self.at_zero[0].to(self.call.dtype)  # like a row of the result
        sources = frozenset().union(*(x.sources for x in self.constants))
        return shifted(replace(draft, shape=self.call.shape[1:]), Weight(row, self.is_trained, sources))
