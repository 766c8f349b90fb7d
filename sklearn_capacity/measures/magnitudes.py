"""How large the numbers inside a network can be at most, whatever its input is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..graph import EVALUATE, LINEAR_RULES, Network, Node, activation_of, apply_linear, interpret
from ..graph.evaluate import along_axes
from .convex_mixes import convex_mix

__all__ = ["magnitudes"]

#: Bounds of the absolute values of one sample, (1, *node.shape) in float64; None where there are none.
Bounds = Tensor | None
#: Activations between two bounds, by the larger of these.
_BOUNDED = {"sigmoid": 1.0, "tanh": 1.0, "softsign": 1.0, "sin": 1.0, "cos": 1.0, "erf": 1.0, "hardsigmoid": 1.0}
_BOUNDED["atan"] = math.pi / 2


def magnitudes(network: Network) -> dict[str, Tensor]:
    """Bounds of the absolute values at every node that has them, for all inputs, by the node's name.

    The input itself has none: bounds begin at saturating activations, softmax and normalisations, and go on through
    linear maps by the absolute values of their weights.

    Returns
    -------
    dict of node name to Tensor of shape (*node.shape), float64
    """
    bounds: dict[str, Tensor] = {}

    def keep(node: Node, value: Bounds) -> None:
        if value is not None:
            bounds[node.name] = value[0]

    def compute() -> dict[str, Tensor]:
        def limited(node: Node, limit: float) -> Bounds:
            if math.isinf(limit):
                return None
            # one bound for every entry
            return torch.full((1, *node.shape), limit, dtype=torch.float64, device=network.device)

        rules: dict[str, Callable[..., Bounds]] = {op: _known(rule) for op, rule in _RULES.items()}
        rules["activation"] = lambda node, m: _activation(node, m, limited)
        rules["function"] = lambda node, *ms: _function(node, ms, limited)
        rules["add"] = lambda node, *ms: _mixed(network, node, bounds, _known(_add)(node, *ms))
        rules["opaque"] = lambda node, *values: None
        rules["pick"] = lambda node, m: limited(node, 0.0) if not len(node.params["index"]) else _picked(node, m)
        with torch.no_grad():
            interpret(network.unrolled_graph, rules, None, keep=keep)
        return bounds

    return network.once("magnitudes", compute)


def _known(rule: Callable[..., Tensor]) -> Callable[..., Bounds]:
    """The rule, where all inputs have bounds."""
    return lambda node, *values: None if any(value is None for value in values) else rule(node, *values)


def _picked(node: Node, m: Bounds) -> Bounds:
    return None if m is None else LINEAR_RULES["pick"](node, m)


def _affine(node: Node, m: Tensor) -> Tensor:
    weight = None if node.weight is None else node.weight.detach().double().abs()
    bias = None if node.bias is None else node.bias.detach().double().abs()
    return apply_linear(node, m, weight, bias)


def _add(node: Node, a: Tensor, b: Tensor) -> Tensor:
    first, second = map(abs, node.params["signs"])
    return first * a + second * b


def _mixed(network: Network, node: Node, bounds: dict[str, Tensor], plain: Bounds) -> Bounds:
    """The bound of a sum; a mix of two signals is no larger than the larger one."""
    mix = convex_mix(network.unrolled_graph, node) if plain is not None else None
    if plain is None or mix is None or mix.first not in bounds or mix.second not in bounds:
        return plain
    return torch.minimum(plain, torch.maximum(bounds[mix.first], bounds[mix.second]))


def _center(node: Node, m: Tensor) -> Tensor:
    """The entries of the centring matrix are 1 - 1 / k on its diagonal, and -1 / k beside it."""
    dims = node.params["dims"]
    size = math.prod(m.shape[d] for d in dims)
    return m * (1 - 2 / size) + m.mean(dims, keepdim=True) if size > 1 else torch.zeros_like(m)


def _reduce(node: Node, m: Tensor) -> Tensor:
    return LINEAR_RULES["reduce"](node, m) * math.copysign(1, node.params["factor"])


def _separable(node: Node, m: Tensor) -> Tensor:
    return along_axes([None if axis is None else axis.abs() for axis in node.params["axes"]], m)


def _activation(node: Node, m: Bounds, limited: Callable[[Node, float], Bounds]) -> Bounds:
    row, args = activation_of(node)
    limit = max(map(abs, args)) if node.params["kind"] == "hardtanh" else _BOUNDED.get(node.params["kind"], math.inf)
    if m is None:
        return limited(node, limit)
    slope = row.lipschitz(*args)
    if math.isinf(slope):
        return limited(node, min(limit, row.within(float(m.max()), *args)[0]))
    at_zero = row.value(torch.zeros_like(m), *args).abs()
    return (at_zero + slope * m).clamp(max=limit)


def _function(node: Node, ms: tuple[Bounds, ...], limited: Callable[[Node, float], Bounds]) -> Bounds:
    kind = node.params["kind"]
    if kind == "softmax":
        return limited(node, 1.0)
    if kind == "normalization":
        dims, _ = node.params["args"]
        return limited(node, math.sqrt(math.prod(node.shape[d] for d in dims)))
    if kind in ("log_softmax", "logsumexp") or any(m is None for m in ms):
        return None
    if kind in ("sort", "running extremum"):  # any of the entries along the axis
        (m,), (dim, _) = ms, node.params["args"]
        return None if m is None else m.amax(dim, keepdim=True).expand_as(m)
    return EVALUATE["function"](node, *ms)  # increasing in what is not negative


_RULES: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("linear", "conv", "conv_transpose", "diagonal"), _affine),
    **{op: LINEAR_RULES[op] for op in ("view", "permute", "slice", "pick", "pad", "cat", "avg_pool")},
    "add": _add,
    "center": _center,
    "reduce": _reduce,
    "separable": _separable,
    "max_pool": EVALUATE["max_pool"],
}
