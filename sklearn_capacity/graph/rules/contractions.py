"""Rules for sums of products of two operands, index by index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

from .call import Call, Draft, Ref, Weight, as_view, rule
from .maxima import constant
from .products import function, matmul
from .shapes import broadcast_to

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


@dataclass(frozen=True)
class _Groups:
    """The indices of a contraction, without that of the samples, by their role in a product of matrices."""

    stacks: list[str]
    rows: list[str]
    summed: list[str]
    columns: list[str]
    sizes: dict[str, int]

    def count(self, letters: Sequence[str]) -> int:
        """The product of the sizes."""
        return math.prod(self.sizes[c] for c in letters)


@rule("einsum.default")
def _einsum(call: Call) -> Draft | None:
    """A linear map, or several, where one operand is a parameter, a product of matrices where both are signals.

    Indices of both operands and the result number matrices, those of both alone are summed over, and the others are
    rows or columns. Before a product of two signals, sums are taken over indices of one of them alone.
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
    x: Ref | Draft = a
    y: Ref | Draft | Weight = b
    if isinstance(b, Ref):
        x, left = _summed_alone(a, left, right + result, sizes)
        y, right = _summed_alone(b, right, left + result, sizes)
    summed = [c for c in left if c in right and c not in result]
    stacks = [c for c in left if c in right and c in result]
    rows, columns = ([c for c in term if c not in stacks + summed] for term in (left, right))
    if isinstance(y, Weight):
        if left[0] in right or set(rows + columns) - set(result):
            return None  # other parameters for every sample, or a sum that belongs to the matrix
        if stacks:
            return _blockwise(x, y, left, right, result, _Groups(stacks, rows[1:], summed, columns, sizes))
        return _applied(x, y, left, right, result, _Groups(stacks, rows[1:], summed, columns, sizes))
    if stacks[:1] != [left[0]] or right[0] != left[0]:
        return None
    return _multiplied((x, y), (left, right), result, _Groups(stacks[1:], rows, summed, columns, sizes))


def _summed_alone(x: Ref, term: str, others: str, sizes: dict[str, int]) -> tuple[Ref | Draft, str]:
    """The signal after sums over indices that occur nowhere else, and its term."""
    dims = tuple(d for d, c in enumerate(term) if c not in others)
    if not dims:
        return x, term
    term = "".join(c for c in term if c in others)
    params = {"kind": "sum", "dims": dims, "keepdim": False, "factor": 1.0}
    return Draft("reduce", (x,), params=params, shape=tuple(sizes[c] for c in term[1:])), term


def _arranged(x: Ref | Draft, term: str, groups: Sequence[Sequence[str]], sizes: dict[str, int]) -> Draft:
    """The signal with its axes in groups, each group joined to one axis."""
    order = (0, *(term.index(c) for group in groups for c in group))
    shape = tuple(sizes[term[d]] for d in order[1:])
    moved = Draft("permute", (x,), params={"dims": order}, shape=shape)
    return as_view(moved, tuple(math.prod(sizes[c] for c in group) for group in groups))


def _restored(x: Draft, letters: Sequence[str], result: str, sizes: dict[str, int]) -> Draft:
    """The result from a value whose axes, once split, stand for the letters after that of the samples."""
    split = as_view(x, tuple(sizes[c] for c in letters))
    order = (0, *(1 + list(letters).index(c) for c in result[1:]))
    return Draft("permute", (split,), params={"dims": order})


def _applied(x: Ref | Draft, weight: Weight, left: str, right: str, result: str, groups: _Groups) -> Draft:
    """The linear map of a parameter, at every index of `rows`."""
    rows, summed, columns = groups.rows, groups.summed, groups.columns
    matrix = weight.tensor.permute([right.index(c) for c in columns + summed])  # (*columns, *summed)
    matrix = matrix.reshape(groups.count(columns), -1)  # (outputs, inputs)
    signal = _arranged(x, left, (rows, summed), groups.sizes)
    shape = (groups.count(rows), len(matrix))
    mapped = Draft("linear", (signal,), Weight(matrix, weight.trainable, weight.sources), shape=shape)
    return _restored(mapped, rows + columns, result, groups.sizes)


def _blockwise(x: Ref | Draft, weight: Weight, left: str, right: str, result: str, groups: _Groups) -> Draft:
    """A linear map for every index of `stacks`, at every index of `rows`: a grouped convolution with kernels of 1."""
    stacks, rows, summed, columns = groups.stacks, groups.rows, groups.summed, groups.columns
    n, n_out, n_in, length = map(groups.count, (stacks, columns, summed, rows))
    matrices = weight.tensor.permute([right.index(c) for c in stacks + columns + summed])
    kernel = matrices.reshape(n * n_out, n_in, 1)  # (stacks columns, summed, 1)
    signal = _arranged(x, left, (stacks + summed, rows), groups.sizes)
    window: dict[str, Any] = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "output_padding": (0,)}
    params = window | {"nd": 1, "padding_mode": "zeros", "groups": n}
    weight = Weight(kernel, weight.trainable, weight.sources)
    mapped = Draft("conv", (signal,), weight, None, params, (n * n_out, length))
    return _restored(mapped, stacks + columns + rows, result, groups.sizes)


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
            operand, term = Weight(tensor, operand.trainable, operand.sources), "".join(term[axis] for axis in kept)
        operands.append(operand)
        letters.append(term)
    return _einsum(replace(call, args={"equation": f"{','.join(letters)}->{stack}YX", "tensors": operands}))


def _multiplied(operands: Sequence[Ref | Draft], both: Sequence[str], result: str, groups: _Groups) -> Draft:
    """Stacks of matrices (rows, summed) times (summed, columns)."""
    stacks, rows, summed, columns = groups.stacks, groups.rows, groups.summed, groups.columns
    first = _arranged(operands[0], both[0], (stacks, rows, summed), groups.sizes)
    second = _arranged(operands[1], both[1], (stacks, summed, columns), groups.sizes)
    shape = tuple(map(groups.count, (stacks, rows, columns)))
    product = function("matmul", first, second, shape=shape)
    return _restored(product, stacks + rows + columns, result, groups.sizes)


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
        wide = broadcast_to(call, c, call.shapes[c.name], call.shape)
        return None if wide is None else Draft("add", (product, wide), params={"signs": (alpha, beta)})
    added, factor = constant(c, call), constant(alpha, call)
    if added is None:
        return None
    shift = Weight(added.tensor * beta, added.trainable, added.sources)
    return Draft("diagonal", (product,), factor, shift, {"kind": "shift", "dim": None})
