"""Gradients of single samples, in the form that makes their inner products cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.evaluate import pad_input
from ..graph.nodes import Node
from .parameter_groups import ParameterGroup, Use
from .parameter_linearization import Linearization
from .parameter_tangent import slope_tangent

__all__ = ["Outer", "Rows", "SampleGradients", "iter_sample_gradients", "partners", "sample_gradients"]

# With more positions, the Gram matrix of positions costs more than it saves.
MAX_POSITIONS = 8


@dataclass(frozen=True)
class Outer:
    """Gradients sum_s left_s right_s^T: for layers whose weight is used at few positions.

    Their inner products are sums over pairs of positions of (left . left') (right . right'), so the gradients
    themselves are never formed.

    Attributes
    ----------
    left : Tensor of shape (K, n, S, a)
        One for each cotangent and sample.
    right : Tensor of shape (n, S, b)
        Shared by the cotangents.
    """

    left: Tensor
    right: Tensor

    def rows(self) -> Tensor:
        return torch.einsum("knsa,nsb->knab", self.left, self.right).flatten(2)  # (K, n, a b)

    def squared_norms(self) -> Tensor:
        s, a, b = self.right.shape[1], self.left.shape[3], self.right.shape[2]
        if s == 1:
            return self.left.square().sum((2, 3)) * self.right.square().sum((1, 2))  # |l r^T| = |l| |r|, (K, n)
        if s * (a + b) > a * b:
            return self.rows().square().sum(2)
        # |sum_s l_s r_s^T|^2 = sum_{s,t} <l_s, l_t> <r_s, r_t>: matrices (K, n, S, S) instead of (K, n, a, b).
        return ((self.left @ self.left.mT) * (self.right @ self.right.mT)).sum((2, 3))


@dataclass(frozen=True)
class Rows:
    """Explicit gradients: `values` of shape (K, n, p)."""

    values: Tensor

    def rows(self) -> Tensor:
        return self.values

    def squared_norms(self) -> Tensor:
        return self.values.square().sum(2)


SampleGradients = list[Outer | Rows]


def sample_gradients(
    point: Linearization, groups: tuple[ParameterGroup, ...], cotangents: Tensor, *, few: int = MAX_POSITIONS
) -> SampleGradients:
    """Gradients of <c, f(x_i)> for every sample i and each of its cotangents c, group by group of theta.

    Parameters
    ----------
    point : Linearization
        A linearization at n samples.
    groups : tuple of ParameterGroup
    cotangents : Tensor of shape (K, n, C)
    few : int, default=8
        Largest number of positions for which a layer's gradients stay in product form.

    Returns
    -------
    list of Outer or Rows
        One entry per group, or per weight together with the bias that accompanies it in every use.
    """
    return list(iter_sample_gradients(point, groups, cotangents, few=few))


def iter_sample_gradients(
    point: Linearization, groups: tuple[ParameterGroup, ...], cotangents: Tensor, *, few: int = MAX_POSITIONS
) -> Iterator[Outer | Rows]:
    """The entries of `sample_gradients` one by one, so that only one layer's gradients need to be in memory."""
    pulled = [point.deltas(cotangent) for cotangent in cotangents]
    deltas = {name: [p[name] for p in pulled] for name in pulled[0]}
    partner = partners(groups)
    joined = set(partner.values())
    for i, group in enumerate(groups):
        if i not in joined:
            yield _group_gradients(point.inputs, deltas, group, i in partner, few)


def partners(groups: tuple[ParameterGroup, ...]) -> dict[int, int]:
    """Weight groups with the bias group that all their uses share: the layer's input is then extended by a 1."""
    readers = {tuple((u.node.name, u.part) for u in g.uses): i for i, g in enumerate(groups) if g.plain}
    pairs = {}
    for names, i in readers.items():
        ops = {use.node.op for use in groups[i].uses}
        one_group = all(use.node.params.get("groups", 1) == 1 for use in groups[i].uses)
        bias = readers.get(tuple((name, "bias") for name, _ in names))
        if names[0][1] == "weight" and bias is not None and one_group and len(ops) == 1 and ops <= {"linear", "conv"}:
            pairs[i] = bias
    return pairs


def _group_gradients(
    inputs: Mapping[str, Tensor], deltas: Mapping[str, list[Tensor]], group: ParameterGroup, with_bias: bool, few: int
) -> Outer | Rows:
    """The sum over the uses of a group; with the group of its bias, if `with_bias`, as further columns."""
    products = [_product(use, inputs[use.node.name], deltas[use.node.name]) for use in group.uses]
    outers = [product for product in products if isinstance(product, Outer)]
    if group.plain and len(outers) == len(products):
        joined = _joined(outers, with_bias)
        return joined if _stays_product(joined, few) else Rows(joined.rows())
    pairs = zip(group.uses, products, strict=True)
    return Rows(reduce(torch.add, (_in_order(use, product.rows(), group.size) for use, product in pairs)))


def _joined(outers: list[Outer], with_bias: bool) -> Outer:
    """One sum over the positions of all uses. A bias is the weight of an input that is 1."""
    left = torch.cat([outer.left for outer in outers], dim=2)  # (K, n, S, a), S positions in all
    right = torch.cat([outer.right for outer in outers], dim=1)  # (n, S, b)
    return Outer(left, F.pad(right, (0, 1), value=1.0) if with_bias else right)


def _stays_product(outer: Outer, few: int) -> bool:
    """Whether inner products of two gradients cost less by pairs of positions than by their a b entries.

    A pair of positions costs a for each pair of cotangents, and b once for all K of them.
    """
    n_cotangents, _, s, a = outer.left.shape
    b = outer.right.shape[2]
    return s <= few and s * s * (a + b / n_cotangents) <= a * b


def _in_order(use: Use, rows: Tensor, size: int) -> Tensor:
    """Gradients (K, n, p) of one use, its elements in the group's order: (K, n, size)."""
    if use.index is None:
        return rows
    spread = rows.new_zeros((*rows.shape[:2], size))  # (K, n, size)
    return spread.index_add_(2, use.index.to(rows.device), rows)


def _product(use: Use, x: Tensor, deltas: list[Tensor]) -> Outer | Rows:
    """One use's gradients; in product form if the layer is a matrix applied at positions."""
    node = use.node
    if use.part == "bias":
        return Rows(torch.stack([_bias_rows(node, use.tensor, delta) for delta in deltas]))
    if node.op == "diagonal":
        return Rows(torch.stack([_reduced(node, use.tensor, delta * x) for delta in deltas]))
    if node.op == "activation":
        # dy/da of max(z, 0) + a min(z, 0), (n, *node.shape)
        masked = slope_tangent(node, x, torch.ones_like(use.tensor))
        return Rows(torch.stack([_reduced(node, use.tensor, delta * masked) for delta in deltas]))
    if node.op == "linear":
        left = torch.stack([delta.reshape(len(delta), -1, delta.shape[-1]) for delta in deltas])  # (K, n, S, out)
        return Outer(left, x.reshape(len(x), -1, x.shape[-1]))  # (n, S, in)
    groups = node.params["groups"]
    if node.op == "conv" and groups == 1:
        left = torch.stack([delta.flatten(2).transpose(1, 2) for delta in deltas])  # (K, n, S, out), S pixels
        return Outer(left, _patches(node, pad_input(node, x), 1).squeeze(1))  # (n, S, channels times kernel size)
    return Rows(torch.stack([_grouped_rows(node, x, delta) for delta in deltas]))


def _grouped_rows(node: Node, x: Tensor, delta: Tensor) -> Tensor:
    """Rows of a grouped or transposed convolution: one matrix product per sample and group."""
    groups = node.params["groups"]
    if node.op == "conv":
        fixed, windows = delta, _patches(node, pad_input(node, x), groups)
    else:  # the transpose has windows of its output
        fixed, windows = x, _patches(node, _cropped(node, delta), groups)
        windows = windows[:, :, : math.prod(x.shape[2:])]  # (n, groups, positions, ...)
    fixed = fixed.reshape(len(x), groups, -1, math.prod(fixed.shape[2:]))  # (n, groups, channels per group, positions)
    return (fixed @ windows).flatten(1)  # sum over the positions, (n, numel of the weight)


def _cropped(node: Node, delta: Tensor) -> Tensor:
    """The output of a transposed convolution with its padding restored, cropped to the extent of its windows."""
    # (n, channels, *sizes); below, each size shrinks to what the windows reach
    padded = F.pad(delta, [p for pair in reversed(node.params["padding"]) for p in pair])
    p, sizes = node.params, padded.shape[2:]
    weight = node.weight
    assert weight is not None
    for axis, size in enumerate(sizes):
        reach = p["dilation"][axis] * (weight.shape[2 + axis] - 1) + 1
        steps = (size - reach - p["output_padding"][axis]) // p["stride"][axis] + 1
        padded = padded.narrow(2 + axis, 0, (steps - 1) * p["stride"][axis] + reach)
    return padded


def _patches(node: Node, x: Tensor, groups: int) -> Tensor:
    """Windows of a padded input: (n, groups, positions, channels per group times kernel size)."""
    p = node.params
    weight = node.weight
    assert weight is not None
    nd = p["nd"]
    for axis in range(nd):
        span = p["dilation"][axis] * (weight.shape[2 + axis] - 1) + 1
        # side -> positions; the window is appended
        x = x.unfold(2 + axis, span, p["stride"][axis])[..., :: p["dilation"][axis]]
    n, channels = x.shape[:2]
    x = x.reshape(n, groups, channels // groups, *x.shape[2:])  # (n, groups, channels, *positions, *kernel)
    positions, kernel = range(3, 3 + nd), range(3 + nd, 3 + 2 * nd)
    x = x.permute(0, 1, *positions, 2, *kernel)  # (n, groups, *positions, channels, *kernel)
    return x.reshape(n, groups, math.prod(x.shape[2 : 2 + nd]), -1)


def _bias_rows(node: Node, bias: Tensor, delta: Tensor) -> Tensor:
    if node.op == "diagonal":
        return _reduced(node, bias, delta)
    if node.op == "linear":
        return delta.reshape(len(delta), -1, delta.shape[-1]).sum(1)  # (n, out)
    return delta.flatten(2).sum(2)  # (n, channels)


def _reduced(node: Node, tensor: Tensor, values: Tensor) -> Tensor:
    """Sums of values (n, ...) over the axes along which a diagonal node's tensor is broadcast, (n, p)."""
    dim = node.params["dim"]
    shape = (-1, *(1,) * (values.dim() - 1 - dim)) if dim is not None else tuple(tensor.shape)
    shape = tensor.reshape(shape).shape
    full = (1,) * (values.dim() - len(shape)) + tuple(shape)
    axes = [i for i in range(1, values.dim()) if full[i] == 1 and values.shape[i] != 1]
    return (values.sum(axes) if axes else values).reshape(len(values), -1)
