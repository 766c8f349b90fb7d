"""Lipschitz constants composed along the graph: global bounds on how far the network stretches distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..graph import Network, Node, activation_of, broadcast, interpret
from ..linalg import MatrixOperator, PoolOperator, adaptive_average_pool, average_pool
from ..linalg.certificate import ROUNDING
from ..linalg.padding import padding_norm
from .batch import Batch
from .convex_mixes import convex_mix
from .function_slopes import function_log, log_sum, mix_log
from .layer_operators import (
    as_operator,
    certificate_bytes,
    graph_layers,
    identity,
    layer_weight,
    operator_norm,
    operator_norm_upper,
    refuse_unknown,
)
from .magnitudes import magnitudes
from .memory import Peak
from .norms import layer_group_norm
from .pass_limits import NO_PASSES
from .record import Measure, Measured, logarithm

__all__ = ["CERTIFICATE", "MEASURES", "lipschitz_l2", "lipschitz_linf", "log_lipschitz"]

#: Logarithm of a Lipschitz constant from the input to a node; -inf for a constant.
Log = float
PURPOSE = "A Lipschitz constant"
PAD_MODES = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def lipschitz_l2(network: Network, batch: Batch) -> Measured:
    r"""Upper bound of the Lipschitz constant of the logits in the Euclidean norm.

    .. math:: \|f(x) - f(x')\|_2 \le L \, \|x - x'\|_2 \quad \text{for all } x, x'

    The bound is composed along the graph from proven upper bounds of the layers' operator norms. Branches of an
    addition add up, those of a concatenation combine as the root of the sum of squares; an activation contributes its
    Lipschitz constant, overlapping max pooling the root of the number of windows that share a pixel, average pooling,
    interpolation and padding their own norms, a softmax 1/2, and a normalisation 1 / sqrt(eps), its slope at 0. A
    product of two signals, as in a gate or in attention, is bounded where both signals are bounded for every input, as
    those from a layer norm or a sigmoid are:

    .. math:: |a b - a' b'| \le |a| \, |b - b'| + |b'| \, |a - a'|

    A gate that mixes two signals, :math:`z a + (1 - z) b`, moves by no more than both signals side by side, and by
    :math:`|a - b|` times its gate. A recurrent layer is composed over its steps, with a sigmoid between 0 and 1.
    Smaller values suggest better generalisation; 0 means a constant function. Biases are ignored; batch norm is folded.

    Returns
    -------
    Measured
        One row per weight layer: "value" is the upper bound in use, "lower" the norm computed from below.

    Raises
    ------
    UnsupportedLayerError
        If an operator has no known constant, or one of the signals that a product multiplies has no bound: attention
        without a normalisation before it is not Lipschitz continuous (Kim, Papamakarios and Mnih, 2021).

    Notes
    -----
    The cost is that of the operator norms, shared with `spectral_norm`, and of their upper bounds.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, lemma 1 (which needs pooling
    regions that do not overlap).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(measure_capacity(net, measures="lipschitz_l2")["lipschitz_l2"], 6)  # a sigmoid's slope is at most 1/4
    1.0
    """
    log = log_lipschitz(network, "l2")
    rows = [
        {"layer": n.label, "value": operator_norm_upper(network, n), "lower": operator_norm(network, n).value}
        for n in graph_layers(network, PURPOSE)
    ]
    return Measured.from_log(log, per_layer=rows)


def lipschitz_linf(network: Network, batch: Batch) -> Measured:
    r"""Upper bound of the Lipschitz constant of the logits in the maximum norm.

    .. math:: \|f(x) - f(x')\|_\infty \le L \, \|x - x'\|_\infty \quad \text{for all } x, x'

    As `lipschitz_l2`, with the largest sum of absolute incoming weights as a layer's norm; a concatenation counts with
    the largest of its branches, pooling and padding with 1. Smaller values suggest better generalisation; 0 means a
    constant function. Biases are ignored; batch norm is folded.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    UnsupportedLayerError
        If an operator has no known constant, or one of the signals that a product multiplies has no bound: attention
        without a normalisation before it is not Lipschitz continuous (Kim, Papamakarios and Mnih, 2021).

    Notes
    -----
    The cost is one convolution of ones per layer.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, section V (other metrics).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
    >>> round(measure_capacity(net, measures="lipschitz_linf")["lipschitz_linf"], 6)
    4.0
    """
    log = log_lipschitz(network, "linf")
    layers = graph_layers(network, PURPOSE)
    rows = [{"layer": node.label, "value": _layer_norm(network, node, "linf")} for node in layers]
    return Measured.from_log(log, per_layer=rows)


def log_lipschitz(network: Network, kind: str) -> Log:
    """Compute the logarithm of the composed bound.

    Parameters
    ----------
    kind : "l2", "linf" or "frobenius"
        "frobenius" bounds the same quantity as "l2", with Frobenius norms of the layers.
    """

    def compose() -> Log:
        graph = network.unrolled_graph
        logs: dict[str, Log] = {}
        rules = _rules(network, kind, logs)
        refuse_unknown(graph, rules, PURPOSE)
        return interpret(graph, rules, 0.0, purpose=PURPOSE, keep=lambda node, log: logs.update({node.name: log}))

    return network.once(("log_lipschitz", kind), compose)


def _layer_norm(network: Network, node: Node, kind: str) -> float:
    """The norm of a weight layer, with an allowance for rounding."""
    if kind == "l2":
        return operator_norm_upper(network, node)
    norm = _row_sum if kind == "linf" else _frobenius
    return network.once(("layer_norm", kind, *identity(node)), lambda: norm(network, node) * (1 + ROUNDING))


def _row_sum(network: Network, node: Node) -> float:
    return float(as_operator(network, node).row_norms(1).max())


def _frobenius(network: Network, node: Node) -> float:
    return layer_group_norm(network, node, 2.0, 2.0, "operator")


def _rules(network: Network, kind: str, logs: Mapping[str, Log]) -> dict[str, Callable[..., Log]]:
    """The rules, which may look up the values of earlier nodes in `logs`."""
    graph, maximum = network.unrolled_graph, kind == "linf"
    graph_layers(network, PURPOSE)  # all finite

    def shape_before(node: Node) -> tuple[int, ...]:
        return graph[node.inputs[0]].shape

    def layer(node: Node, log: Log) -> Log:
        return log + logarithm(_layer_norm(network, node, kind))

    def diagonal(node: Node, log: Log) -> Log:
        if kind == "frobenius" and node.is_layer:
            return layer(node, log)
        return _diagonal_log(network, node, log, logs, maximum=maximum)

    def max_pool(node: Node, log: Log) -> Log:
        return log if maximum else log + 0.5 * math.log(_windows_per_pixel(node, shape_before(node)))

    def avg_pool(node: Node, log: Log) -> Log:
        operator = _pool_operator(node, shape_before(node), network.device)
        return log + logarithm(float(operator.row_norms(1).max()) if maximum else operator.norm_upper())

    def reduce(node: Node, log: Log) -> Log:
        count = math.prod(shape_before(node)) / math.prod(node.shape)
        return log + logarithm(abs(node.params["factor"]) * (count if maximum else math.sqrt(count)))

    def pick(node: Node, log: Log) -> Log:
        index = node.params["index"]
        if not len(index):
            return -math.inf
        return log if maximum else log + 0.5 * math.log(int(index.bincount().max()))

    def center(node: Node, log: Log) -> Log:
        size = math.prod(shape_before(node)[dim - 1] for dim in node.params["dims"])
        if size == 1:
            return -math.inf
        return log + math.log(2 - 2 / size) if maximum else log  # a projection

    def pad(node: Node, log: Log) -> Log:
        return log if maximum else log + logarithm(_pad_norm(node, shape_before(node)))

    def cat(node: Node, *parts: Log) -> Log:
        return max(parts) if maximum else 0.5 * log_sum([2 * part for part in parts])

    return {
        **dict.fromkeys(("linear", "conv", "conv_transpose"), layer),
        "diagonal": diagonal,
        "activation": lambda node, log: _activation(network, node, log),
        "max_pool": max_pool,
        "avg_pool": avg_pool,
        "reduce": reduce,
        "pad": pad,
        "pick": pick,
        "center": center,
        "separable": lambda node, log: log + _separable_log(node, maximum=maximum),
        "function": lambda node, *logs: function_log(network, node, logs, maximum=maximum),
        "cat": cat,
        "add": lambda node, *summands: _add(network, node, summands, logs, maximum=maximum),
        **dict.fromkeys(("view", "permute", "slice"), lambda node, log: log),
    }


def _separable_log(node: Node, *, maximum: bool) -> Log:
    """Norms of a Kronecker product are products of norms."""
    matrices = [MatrixOperator(axis) for axis in node.params["axes"] if axis is not None]
    return sum(logarithm(float(m.row_norms(1).max()) if maximum else m.norm_upper()) for m in matrices)


def _activation(network: Network, node: Node, log: Log) -> Log:
    """By its steepest slope, anywhere or on the values that come."""
    if log == -math.inf:
        return log
    activation, args = activation_of(node)
    slope = activation.lipschitz(*args)
    if math.isinf(slope) and node.inputs[0] in magnitudes(network):
        slope = activation.within(float(magnitudes(network)[node.inputs[0]].max()), *args)[1]
    return log + logarithm(slope)


def _add(network: Network, node: Node, summands: Sequence[Log], logs: Mapping[str, Log], *, maximum: bool) -> Log:
    """What the summands may do together, or less, if they are a mix of two signals."""
    signs = node.params["signs"]
    plain = log_sum([log + logarithm(abs(sign)) for log, sign in zip(summands, signs, strict=True)])
    mix = convex_mix(network.unrolled_graph, node)
    return plain if mix is None else min(plain, mix_log(network, mix, logs, maximum=maximum))


def _diagonal_log(network: Network, node: Node, log: Log, logs: Mapping[str, Log], *, maximum: bool) -> Log:
    """A diagonal on repeated entries is one map with what repeats them."""
    before = network.unrolled_graph[node.inputs[0]]
    if before.op == "pick" and before.shape == node.shape and not maximum:
        shape = network.unrolled_graph[before.inputs[0]].shape
        return logs[before.inputs[0]] + logarithm(_repeated_norm(node, before, shape, network.device))
    return log + logarithm(_diagonal_norm(node, before.shape, network.device, maximum=maximum))


def _diagonal_norm(node: Node, shape: Sequence[int], device: torch.device, *, maximum: bool) -> float:
    """The largest factor; copies made by broadcasting count together."""
    ones = torch.ones(1, *node.shape, dtype=torch.float64, device=device)  # (1, *node.shape)
    factors = ones[0] if node.weight is None else (ones * broadcast(node, layer_weight(node), ones))[0]
    if maximum or tuple(shape) == tuple(node.shape):
        return float(factors.abs().max())
    return float((factors**2).sum_to_size(shape).max().sqrt())


def _repeated_norm(node: Node, repeated: Node, shape: Sequence[int], device: torch.device) -> float:
    """The norm of a diagonal on repeated entries: the root of the sum of the squares of an entry's factors."""
    ones = torch.ones(1, *node.shape, dtype=torch.float64, device=device)  # (1, *node.shape)
    factors = ones if node.weight is None else ones * broadcast(node, layer_weight(node), ones)
    squares = factors.new_zeros(math.prod(shape)).index_add(0, repeated.params["index"], factors.flatten().square())
    return float(squares.max().sqrt()) if len(squares) else 0.0


def _images(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
    """(channels, *sizes) of a pooling node's input; leading axes count as channels."""
    nd = node.params["nd"]
    return (math.prod(shape[: len(shape) - nd]), *shape[len(shape) - nd :])


def _windows_per_pixel(node: Node, shape: Sequence[int]) -> int:
    """Largest number of pooling windows with a common pixel: the squared Lipschitz constant of max pooling."""
    p, count = node.params, 1
    if "adaptive" in p:
        axes = _pool_operator(node, shape, "cpu").axes
        return math.prod(int((axis > 0).sum(0).max()) for axis in axes)
    sizes, outputs = _images(node, shape)[1:], _images(node, node.shape)[1:]
    for axis, (n, m) in enumerate(zip(sizes, outputs, strict=True)):
        starts = np.arange(m) * p["stride"][axis] - p["padding"][axis]  # (windows,)
        pixels = starts[:, None] + np.arange(p["kernel"][axis]) * p["dilation"][axis]  # (windows, kernel)
        inside = pixels[(pixels >= 0) & (pixels < n)]
        count *= int(np.bincount(inside).max(initial=1))  # dilated windows may have only padding
    return count


def _pool_operator(node: Node, shape: Sequence[int], device: Any) -> PoolOperator:
    p, images = node.params, _images(node, shape)
    if "adaptive" in p:
        return adaptive_average_pool(images, p["adaptive"], device=device)
    return average_pool(
        images,
        p["kernel"],
        p["stride"],
        p["padding"],
        p["ceil_mode"],
        p["count_include_pad"],
        p["divisor_override"],
        device=device,
    )


def _pad_norm(node: Node, shape: Sequence[int]) -> float:
    flat = node.params["pads"]
    pairs = [(flat[2 * i], flat[2 * i + 1]) for i in reversed(range(len(flat) // 2))]  # torch lists the last axis first
    return padding_norm(shape[len(shape) - len(pairs) :], pairs, PAD_MODES[node.params["mode"]])


#: An upper end of a convolution's norm takes as long as so many passes of one sample, whatever the data.
CERTIFICATE = (20_000, "per_sample")

_LIPSCHITZ: dict[str, Any] = {
    "family": "jacobian",
    "lower_is_better": True,
    "source": "[JR] lemma 1",
    "needs": frozenset({"lipschitz"}),
    "unit": "logit / input",
    "memory": Peak(layers=3, more=certificate_bytes),
    "limits": NO_PASSES,
    "invariances": frozenset({"permutation", "layer_rescaling"}),
}

MEASURES = (
    Measure("lipschitz_l2", lipschitz_l2, cost="spectrum", passes=CERTIFICATE, **_LIPSCHITZ),
    Measure("lipschitz_linf", lipschitz_linf, **_LIPSCHITZ),
)
