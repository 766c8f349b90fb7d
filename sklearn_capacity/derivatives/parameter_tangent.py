"""The derivative of the logits along the parameters themselves, in one sweep."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from ..graph.activations import activation_of
from ..graph.evaluate import EVALUATE, LINEAR_RULES, apply_linear, broadcast, in_rows
from ..graph.functions import function_of
from ..graph.max_pooling import pick, pool_indices
from ..graph.nodes import WEIGHT_OPS, NetworkGraph, Node, Place, interpret
from .double_backward import pushed_forward, twice_differentiable

__all__ = [
    "function_tangent",
    "opaque_tangent",
    "parameter_tangent",
    "relu_tangent",
    "shaped_bias",
    "slope_tangent",
]

#: A value x and its derivative dx along theta. A float c stands for dx = c x: rectifier networks start in this way
#: (lemma 2.1 of [FR]), and propagating c costs nothing.
Pair = tuple[Tensor, Tensor | float]


def parameter_tangent(graph: NetworkGraph, X: Tensor, *, biases: bool = True) -> tuple[Tensor, Tensor]:
    """Logits f and u = J_theta f . theta, each (n, C), with theta the folded trainable parameters.

    Along theta itself, dW = W and db = b, so a layer W h + b with incoming tangent dh has the tangent W dh + W h + b =
    W (h + dh) + b: two applications per layer, and only one if dh = c h, since the result is then (1 + c) (W h + b) - c
    b. No gradient is ever stored.

    Parameters
    ----------
    graph : NetworkGraph
    X : Tensor of shape (n, ...)
    biases : bool, default=True
        Whether theta includes biases, shifts, scales and slopes of activations, or only weight matrices and kernels.

    Returns
    -------
    f, u : Tensor of shape (n, C)
    """

    def affine(node: Node, pair: Pair) -> Pair:
        x, dx = pair
        y = apply_linear(node, x, node.weight, node.bias)  # (n, *node.shape), like all tangents of this node
        varies_weight = node.trainable[0] and (biases or node.op != "diagonal")
        varies_bias = node.trainable[1] and biases and node.bias is not None
        if isinstance(dx, float):
            # dy = (c + [W varies]) W h + [b varies] b = factor y + ([b varies] - factor) b.
            factor = dx + varies_weight
            rest = varies_bias - factor
            if node.bias is None or rest == 0:
                return y, factor
            return y, torch.add(shaped_bias(node, node.bias, y) * rest, y, alpha=factor)
        return y, apply_linear(node, x + dx if varies_weight else dx, node.weight, node.bias if varies_bias else None)

    def activation(node: Node, pair: Pair) -> Pair:
        y, dy = _activation(node, pair)
        if not (biases and node.trainable[0] and node.weight is not None):
            return y, dy
        return y, _tensor(y, dy) + slope_tangent(node, pair[0], node.weight)

    rules = {**_TANGENT, **dict.fromkeys(WEIGHT_OPS, affine), "activation": activation}
    f, u = interpret(graph, rules, (X, 0.0), purpose="A parameter tangent")
    return f, _tensor(f, u)


def shaped_bias(node: Node, bias: Tensor, y: Tensor) -> Tensor:
    """A node's bias, shaped to broadcast against a batch of its outputs."""
    if node.op == "diagonal":
        return broadcast(node, bias, y)
    return bias if node.op == "linear" else bias.reshape(-1, *(1,) * (y.dim() - 2))


def _tensor(x: Tensor, dx: Tensor | float) -> Tensor:
    return x * dx if isinstance(dx, float) else dx


def _linear(rule: Callable[..., Tensor]) -> Callable[..., Pair]:
    def both(node: Node, *pairs: Pair) -> Pair:
        value = rule(node, *(x for x, _ in pairs))
        first = pairs[0][1]
        if isinstance(first, float) and all(isinstance(dx, float) and dx == first for _, dx in pairs):
            return value, first
        return value, rule(node, *(_tensor(x, dx) for x, dx in pairs))

    return both


def relu_tangent(x: Tensor, dx: Tensor) -> Tensor:
    """Derivative of a ReLU at x along dx: one fused pass instead of three."""
    return torch.ops.aten.threshold_backward(dx, x, 0)


def slope_tangent(node: Node, x: Tensor, along: Tensor) -> Tensor:
    """Derivative of an activation with a trained slope, such as max(z, 0) + a min(z, 0), along a direction of a."""
    row, args = activation_of(replace(node, weight=along))
    assert row.slope_mask is not None
    return row.slope_mask(x) * x * args[-1]


def _activation(node: Node, pair: Pair) -> Pair:
    x, dx = pair
    activation, args = activation_of(node)
    y = activation.value(x, *args)
    if isinstance(dx, float) and (dx == 0 or activation.homogeneous):
        return y, dx
    dx = _tensor(x, dx)
    return y, relu_tangent(x, dx) if node.params["kind"] == "relu" else activation.slope(x, y, *args) * dx


def _max_pool(node: Node, pair: Pair) -> Pair:
    x, dx = pair
    if isinstance(dx, float):  # c >= 0: a maximum is positively homogeneous
        return EVALUATE["max_pool"](node, x), dx
    y, where = pool_indices(node, x)
    return y, pick(where, dx)


def function_tangent(
    node: Node, xs: Sequence[Tensor], dxs: Sequence[Tensor | float], kept: Callable[[], tuple[Tensor, ...]]
) -> Tensor | float:
    """Derivative of a function of several numbers; a number c stands for c times the value.

    `kept` returns what the derivative needs (see `graph.functions`), if it is needed.
    """
    if all(isinstance(dx, float) and dx == 0 for dx in dxs):
        return 0.0
    row, args = function_of(node)
    return row.tangent(kept(), tuple(map(_tensor, xs, dxs)), *args)


def opaque_tangent(node: Node, xs: Sequence[Any], dxs: Sequence[Any]) -> Any:
    """Derivative of an operator without a rule, by two reverse sweeps over it alone.

    A float c stands for c times the value; an operator with several results has a list with one entry per result.
    """
    if node.params["function"] is operator.getitem:
        return dxs[0] if isinstance(dxs[0], float) else in_rows(node, dxs[0][node.params["leaves"][1]])
    moving = [i for i, dx in enumerate(dxs) if not isinstance(dx, float) or dx != 0]
    if not moving:
        return 0.0
    with twice_differentiable():
        points = {i: xs[i].detach().requires_grad_(True) for i in moving}
        value = EVALUATE["opaque"](node, *(points.get(i, x) for i, x in enumerate(xs)))
        along = [_tensor(xs[i], dxs[i]) for i in moving]
        if isinstance(value, tuple | list):
            return [_directional(part, list(points.values()), along) for part in value]
        return _directional(value, list(points.values()), along)


def _directional(value: Any, points: list[Tensor], along: list[Tensor]) -> Tensor | float:
    if not isinstance(value, Tensor) or not value.requires_grad:  # a size, indices, a constant
        return 0.0
    derivative = pushed_forward(value, points, along)
    return 0.0 if derivative is None else derivative


def _opaque(node: Node, *pairs: Pair) -> Pair:
    xs, dxs = [x for x, _ in pairs], [dx for _, dx in pairs]
    if not node.params["trained"]:
        return EVALUATE["opaque"](node, *xs), opaque_tangent(node, xs, dxs)
    if node.params["function"] is not torch.ops.aten.embedding.default or not isinstance(
        node.params["leaves"][1], Place
    ):
        raise node.refuse("A parameter tangent", "it has parameters, but there is no rule for it.")
    return _embedding(node, *xs)


def _embedding(node: Node, indices: Tensor) -> Pair:
    """Rows of a trained table, whose tangents are these rows; that of the padding does not move."""
    args, options = tree_unflatten(node.params["leaves"], node.params["spec"])
    padding = args[2] if len(args) > 2 else options.get("padding_idx", -1)
    rows = EVALUATE["opaque"](node, indices)
    if padding < 0:
        return rows, 1.0
    moving = args[0].tensor.detach().clone()
    moving[padding] = 0
    return rows, EVALUATE["opaque"](node.with_tensors({0: moving}), indices)


def _function(node: Node, *pairs: Pair) -> Pair:
    xs, dxs = [x for x, _ in pairs], [dx for _, dx in pairs]
    row, args = function_of(node)
    value = row.value(tuple(xs), *args)
    return value, function_tangent(node, xs, dxs, lambda: row.kept(tuple(xs), value, *args))


_TANGENT: dict[str, Callable[..., Pair]] = {
    **{op: _linear(rule) for op, rule in LINEAR_RULES.items()},
    "max_pool": _max_pool,
    "function": _function,
    "opaque": _opaque,
}
