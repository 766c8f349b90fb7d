"""The derivative of the logits along the parameters themselves, in one sweep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .activations import activation_of
from .evaluate import EVALUATE, LINEAR_RULES, apply_linear
from .nodes import NetworkGraph, Node, interpret

__all__ = ["parameter_tangent"]

#: A value and its derivative along theta; None where the derivative is zero because no parameter came before.
Pair = tuple[Tensor, Tensor | None]


def parameter_tangent(graph: NetworkGraph, X: Tensor, *, biases: bool = True) -> tuple[Tensor, Tensor]:
    """Logits f and u = J_theta f . theta, each (n, C), theta being the folded trainable parameters.

    A layer's own part of the tangent is its output once more, so a layer W h + b with incoming tangent dh gives
    W (h + dh) + b: two applications per layer, one in the first. No gradient is ever stored.

    Parameters
    ----------
    graph : NetworkGraph
    X : Tensor of shape (n, ...)
    biases : bool, default=True
        Whether biases (and shifts) belong to theta.
    """

    def affine(node: Node, pair: Pair) -> Pair:
        x, dx = pair
        y = apply_linear(node, x, node.weight, node.bias)
        own_weight, own_bias = node.trainable[0], node.trainable[1] and biases
        bias = node.bias if own_bias else None
        if own_weight:
            if dx is None and (own_bias or node.bias is None):
                return y, y
            moved = x if dx is None else x + dx
            return y, apply_linear(node, moved, node.weight, bias)
        if dx is None and bias is None:
            return y, None
        incoming = torch.zeros_like(x) if dx is None else dx
        return y, apply_linear(node, incoming, node.weight, bias)

    f, u = interpret(graph, {**_TANGENT, **dict.fromkeys(_AFFINE, affine)}, (X, None), purpose="A parameter tangent")
    return f, torch.zeros_like(f) if u is None else u


def _linear(rule: Callable[..., Tensor]) -> Callable[..., Pair]:
    def both(node: Node, *pairs: Pair) -> Pair:
        value = rule(node, *(x for x, _ in pairs))
        if all(dx is None for _, dx in pairs):
            return value, None
        return value, rule(node, *(torch.zeros_like(x) if dx is None else dx for x, dx in pairs))

    return both


def _activation(node: Node, pair: Pair) -> Pair:
    x, dx = pair
    activation, args = activation_of(node)
    y = activation.value(x, *args)
    return y, None if dx is None else activation.derivative(x, *args) * dx


def _max_pool(node: Node, pair: Pair) -> Pair:
    x, dx = pair
    if dx is None:
        return EVALUATE["max_pool"](node, x), None
    p = node.params
    pool = _POOL_WITH_INDICES[p["nd"]]
    y, where = pool(
        x, p["kernel"], p["stride"], p["padding"], p["dilation"], ceil_mode=p["ceil_mode"], return_indices=True
    )
    return y, dx.flatten(2).gather(2, where.flatten(2)).reshape(y.shape)


_AFFINE = ("linear", "conv", "conv_transpose", "diagonal")
_POOL_WITH_INDICES = {
    1: torch.nn.functional.max_pool1d,
    2: torch.nn.functional.max_pool2d,
    3: torch.nn.functional.max_pool3d,
}
_TANGENT: dict[str, Callable[..., Pair]] = {
    **{op: _linear(rule) for op, rule in LINEAR_RULES.items()},
    "activation": _activation,
    "max_pool": _max_pool,
}
