"""Lipschitz constants of functions of several numbers: softmax, normalisations, products of bounded signals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..graph import Network, Node
from .convex_mixes import Mix
from .magnitudes import magnitudes
from .record import logarithm

__all__ = ["function_log", "log_sum", "mix_log"]


def log_sum(logs: Sequence[float]) -> float:
    """Logarithm of the sum of numbers that are given by their logarithms."""
    top = max(logs)
    return top if math.isinf(top) else top + math.log(sum(math.exp(log - top) for log in logs))


def function_log(network: Network, node: Node, logs: Sequence[float], *, maximum: bool) -> float:
    """Logarithm of a bound of the Lipschitz constant up to a function, from those of its inputs.

    Parameters
    ----------
    network : Network
    node : Node
        One of the operator "function".
    logs : sequence of float
    maximum : bool
        Whether in the maximum norm, else in the Euclidean one.

    Raises
    ------
    UnsupportedLayerError
        For a product with a signal that has no bound.
    """
    kind = node.params["kind"]
    if kind in ("product", "matmul"):
        return _product_log(network, node, logs, maximum=maximum)
    (log,), args = logs, node.params.get("args", ())
    shape = network.unrolled_graph[node.inputs[0]].shape
    if kind == "softmax":  # |diag(s) - s s^T| <= 1/2; its rows sum up to 2 s (1 - s)
        return log + math.log(0.5)
    if kind in ("logsumexp", "sort"):  # a gradient that is a softmax, a permutation
        return log
    if kind == "running extremum":  # one entry may stand in all places
        return log if maximum else log + 0.5 * math.log(shape[args[0]])
    dims = (args[0],) if kind == "log_softmax" else args[0]
    size = math.prod(shape[d] for d in dims)
    if kind == "log_softmax":  # I - 1 s^T is longest where s is a unit vector
        return -math.inf if size == 1 else log + (math.log(2) if maximum else 0.5 * math.log(size))
    if kind == "length":  # gradients have length 1 in the dual norm
        order = args[1] if len(args) > 1 else 2.0
        return log + max(0.0, 1 / order - (0.0 if maximum else 0.5)) * math.log(size)
    return log + logarithm(_normalization_slope(size, args[1], maximum=maximum))


def _normalization_slope(size: int, eps: float, *, maximum: bool) -> float:
    r"""The largest slope of x / sqrt(mean(x^2) + eps), for x of `size` numbers.

    The Jacobian is (I - w y y^T) / sqrt(eps (1 + u)) with u = mean(x^2) / eps, w = u / (1 + u) and y = x / |x|: largest
    at x = 0, where it is I / sqrt(eps). In a row of I - w y y^T the absolute values sum up to 1 - w y_i^2 + w |y_i| a,
    with a the sum of the other |y_j|: at most 1 + w c, c = (sqrt(size) - 1) / 2. (1 + w c) sqrt(1 - w) is largest at
    w = (2 c - 1) / (3 c), if that is positive.
    """
    if eps <= 0:
        return math.inf
    c = (math.sqrt(size) - 1) / 2
    if not maximum or c <= 0.5:
        return eps**-0.5
    w = (2 * c - 1) / (3 * c)
    return (1 + w * c) * math.sqrt((1 - w) / eps)


def mix_log(network: Network, mix: Mix, logs: Mapping[str, float], *, maximum: bool) -> float:
    """Logarithm of a bound of the Lipschitz constant up to z a + (1 - z) b.

    It moves by z da + (1 - z) db + (a - b) dz. An entry of the first two is no longer than the larger one of da and db,
    so their vector is no longer than both side by side.
    """
    bounds = magnitudes(network)
    if mix.first not in bounds or mix.second not in bounds:
        return math.inf
    gap = float((bounds[mix.first] + bounds[mix.second]).max())
    a, b, gate = (logs[name] for name in (mix.first, mix.second, mix.gate))
    moved = max(a, b) if maximum else 0.5 * log_sum([2 * a, 2 * b])
    return log_sum([moved, gate + logarithm(gap)])


def _product_log(network: Network, node: Node, logs: Sequence[float], *, maximum: bool) -> float:
    """a b moves by |a| |db| + |b| |da|."""
    bounds = magnitudes(network)
    moving = [i for i, log in enumerate(logs) if log > -math.inf]
    for i in moving:
        other = node.inputs[1 - i]
        if other not in bounds:
            raise node.refuse(
                "A Lipschitz constant",
                "it multiplies two signals of which one has no bound, so its slope has none.",
                "Bound both, by a layer norm or a sigmoid before it.",
            )
    return log_sum([-math.inf, *(logs[i] + _factor_log(network, node, 1 - i, bounds, maximum=maximum) for i in moving)])


def _factor_log(network: Network, node: Node, which: int, bounds: dict[str, Tensor], *, maximum: bool) -> float:
    """Logarithm of how much one factor stretches the other."""
    name = node.inputs[which]
    bound = bounds[name]
    if node.params["kind"] == "product":
        return logarithm(float(bound.max()))
    # The sums over what the product sums over; rows of a softmax sum up to 1.
    along, across = (-1, -2) if which == 0 else (-2, -1)
    producer = network.unrolled_graph[name]
    stochastic = producer.op == "function" and producer.params["kind"] == "softmax" and producer.params["args"][0] == -1
    # (..., rows of A) for A in A B, (..., columns of B) for B
    sums = torch.ones_like(bound.sum(along)) if stochastic and which == 0 else bound.sum(along)
    if maximum:
        return logarithm(float(sums.max()))
    # ||A||_2^2 <= ||A||_inf ||A||_1, the largest sum of a row times that of a column, and <= ||A||_F^2; (...) each.
    by_sums = sums.amax(-1) * bound.sum(across).amax(-1)
    by_frobenius = bound.square().sum((-1, -2))
    return 0.5 * logarithm(float(torch.minimum(by_sums, by_frobenius).max()))
