"""Rules for sums of products of two operands, index by index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

from .call import Call, Draft, Ref, Weight, rule
from .drafts import as_view, function, permuted, reduced, shifted
from .maxima import constant
from .products import matmul
from .shapes import widened

__all__ = ["matmul_with_parameter", "terms"]


def terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The index letters of the operands and of the result, with ellipses expanded."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    unused = [c for c in ascii_letters if c not in equation]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(operands, ranks, strict=True) if "..." in term]
    spelt = unused[: max(hidden, default=0)]
    full = []
    for term, rank in zip(operands, ranks, strict=True):
        n = rank - len(term.replace("...", ""))
        full.append(term.replace("...", "".join(spelt[len(spelt) - n :]) if n else ""))
    return full, right.replace("...", "".join(spelt))


@rule("einsum.default")
def _einsum(call: Call) -> Draft | None:
    """A linear map, or several, where one operand is a parameter, a product of matrices where both are signals.

    Before a product of two signals, sums are taken over indices of one of them alone.
    """
    operands = call["tensors"]
    if len(operands) != 2 or not any(isinstance(x, Ref) for x in operands):
        return None
    ranks = [call.rank(x) if isinstance(x, Ref) else x.tensor.dim() for x in operands]
    (left, right), result = terms(call["equation"], ranks)
    if isinstance(operands[0], Weight):
        operands, left, right = operands[::-1], right, left
    a, b = operands
    if not result or left[0] != result[0] or any(len(set(term)) < len(term) for term in (left, right, result)):
        return None
    sizes = dict(zip(left, call.shapes[a.name], strict=True))
    sizes |= dict(zip(right, call.shapes[b.name] if isinstance(b, Ref) else b.tensor.shape, strict=True))
    if any(sizes[c] != n for c, n in zip(left, call.shapes[a.name], strict=True)):  # broadcasting of an index
        return None
    if isinstance(b, Weight):
        return _Contraction(left, right, result, sizes).with_parameter(a, b)
    x, left = _summed_alone(a, left, right + result, sizes)
    y, right = _summed_alone(b, right, left + result, sizes)
    return _Contraction(left, right, result, sizes).of_signals(x, y)


def _summed_alone(x: Ref, term: str, others: str, sizes: Mapping[str, int]) -> tuple[Ref | Draft, str]:
    """The signal after sums over indices that occur nowhere else, and its term."""
    dims = tuple(d for d, c in enumerate(term) if c not in others)
    if not dims:
        return x, term
    term = "".join(c for c in term if c in others)
    return reduced("sum", x, dims, shape=tuple(sizes[c] for c in term[1:])), term


@dataclass(frozen=True)
class _Contraction:
    """A sum of products of a signal and a second operand, as products of matrices.

    Attributes
    ----------
    left, right, result : str
        The index letters of both operands and of the result, which begins with that of the samples, as the left one.
    sizes : mapping of str to int
        By letter.
    """

    left: str
    right: str
    result: str
    sizes: Mapping[str, int]

    @property
    def stacks(self) -> str:
        """Indices that number matrices: those of both operands and the result, without that of the samples."""
        return "".join(c for c in self.left[1:] if c in self.right and c in self.result)

    @property
    def summed(self) -> str:
        """Indices of both operands, but not of the result."""
        return "".join(c for c in self.left[1:] if c in self.right and c not in self.result)

    @property
    def rows(self) -> str:
        """Indices of the left operand alone, without that of the samples."""
        return "".join(c for c in self.left[1:] if c not in self.right)

    @property
    def columns(self) -> str:
        """Indices of the right operand alone."""
        return "".join(c for c in self.right if c not in self.left)

    def count(self, letters: str) -> int:
        """The product of the sizes."""
        return math.prod(self.sizes[c] for c in letters)

    def with_parameter(self, x: Ref, weight: Weight) -> Draft | None:
        """The linear maps of a parameter."""
        if self.left[0] in self.right or set(self.rows + self.columns) - set(self.result):
            return None  # other parameters for every sample, or a sum that belongs to the matrix
        return self._blockwise(x, weight) if self.stacks else self._applied(x, weight)

    def _applied(self, x: Ref, weight: Weight) -> Draft:
        """One linear map, at every index of `rows`."""
        matrix = weight.tensor.permute([self.right.index(c) for c in self.columns + self.summed])
        matrix = matrix.reshape(self.count(self.columns), -1)  # (columns, summed)
        signal = self._arranged(x, self.left, (self.rows, self.summed))
        mapped = Draft("linear", (signal,), replace(weight, tensor=matrix), shape=(self.count(self.rows), len(matrix)))
        return self._restored(mapped, self.rows + self.columns)

    def _blockwise(self, x: Ref, weight: Weight) -> Draft:
        """A linear map for every index of `stacks`, at every index of `rows`: a grouped convolution, kernels of 1."""
        n, n_out, n_in, length = map(self.count, (self.stacks, self.columns, self.summed, self.rows))
        matrices = weight.tensor.permute([self.right.index(c) for c in self.stacks + self.columns + self.summed])
        kernel = matrices.reshape(n * n_out, n_in, 1)  # (stacks columns, summed, 1)
        signal = self._arranged(x, self.left, (self.stacks + self.summed, self.rows))
        window: dict[str, Any] = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "output_padding": (0,)}
        params = window | {"nd": 1, "padding_mode": "zeros", "groups": n}
        mapped = Draft("conv", (signal,), replace(weight, tensor=kernel), None, params, (n * n_out, length))
        return self._restored(mapped, self.stacks + self.columns + self.rows)

    def of_signals(self, x: Ref | Draft, y: Ref | Draft) -> Draft | None:
        """Stacks of matrices (rows, summed) times (summed, columns); None if the samples meet."""
        if self.right[:1] != self.left[0]:
            return None
        first = self._arranged(x, self.left, (self.stacks, self.rows, self.summed))
        second = self._arranged(y, self.right, (self.stacks, self.summed, self.columns))
        shape = tuple(map(self.count, (self.stacks, self.rows, self.columns)))
        return self._restored(function("matmul", first, second, shape=shape), self.stacks + self.rows + self.columns)

    def _arranged(self, x: Ref | Draft, term: str, groups: Sequence[str]) -> Draft:
        """The signal with its axes in groups, each group joined to one axis."""
        order = (0, *(term.index(c) for group in groups for c in group))
        moved = permuted(x, order, shape=tuple(self.sizes[term[d]] for d in order[1:]))
        return as_view(moved, tuple(map(self.count, groups)))

    def _restored(self, x: Draft, letters: str) -> Draft:
        """The result from a value whose axes, once split, stand for the letters after that of the samples."""
        split = as_view(x, tuple(self.sizes[c] for c in letters))
        return permuted(split, (0, *(1 + letters.index(c) for c in self.result[1:])))


def matmul_with_parameter(call: Call, a: Ref | Weight, b: Ref | Weight) -> Draft | Ref | None:
    """W x, or x W with several matrices W, where x has samples."""
    ranks = [call.rank(x) if isinstance(x, Ref) else x.tensor.dim() for x in (a, b)]
    if min(ranks) < 2:
        return None
    stack = ascii_letters[: max(ranks) - 2]
    letters, operands = [], []
    for operand, rank, last in zip((a, b), ranks, ("YZ", "ZX"), strict=True):
        term = stack[len(stack) - rank + 2 :] + last
        if isinstance(operand, Weight):  # axes that are broadcast
            kept = [axis for axis in range(rank) if axis >= rank - 2 or operand.tensor.shape[axis] > 1]
            tensor = operand.tensor.reshape([operand.tensor.shape[axis] for axis in kept])
            operand, term = replace(operand, tensor=tensor), "".join(term[axis] for axis in kept)
        operands.append(operand)
        letters.append(term)
    return _einsum(replace(call, args={"equation": f"{','.join(letters)}->{stack}YX", "tensors": operands}))


@rule("baddbmm.default")
def _baddbmm(call: Call) -> Draft | None:
    """beta c + alpha a b."""
    a, b, c = call["batch1"], call["batch2"], call["self"]
    if not isinstance(a, Ref) or not isinstance(b, Ref):
        return None
    product = matmul(call, a, b, (call.shapes[a.name], call.shapes[b.name]), shape=call.shape[1:])
    alpha, beta = float(call["alpha"]), float(call["beta"])
    if product is None:
        return None
    if isinstance(c, Ref):
        wide = widened(call, c)
        return None if wide is None else Draft("add", (product, wide), params={"signs": (alpha, beta)})
    added, factor = constant(c, call), constant(alpha, call)
    if added is None:
        return None
    return shifted(product, replace(added, tensor=added.tensor * beta), factor)
