"""Fold constant scales, such as the temperature of logits / T, into adjacent weight layers.

Descriptive measures of the layers then describe the same function as its Lipschitz constant. Only these use the folded
scales; Fisher matrices and sharpness use the trained parameters of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .activations import activation_of
from .fold import rebuild
from .nodes import NetworkGraph, Node

__all__ = ["fold_scales"]

#: Operators with f(c x) = c f(x) for every scalar c.
_LINEAR = ("view", "permute", "reduce", "slice", "pick", "pad", "avg_pool")


def fold_scales(graph: NetworkGraph) -> NetworkGraph:
    """The same function, with each constant scale folded into the previous layer or the next one.

    A scalar passes intermediate nodes if nothing else reads them and scaling commutes with them: views, pooling,
    rectifiers. A factor per channel, as for input normalisation, passes none. A scale without a layer on either side
    remains.
    """
    for scale in graph.nodes:
        if _is_scale(scale):
            graph = _folded(graph, scale)
    return graph


def _is_scale(node: Node) -> bool:
    """Whether a node only multiplies by untrained nonzero factors."""
    if node.op != "diagonal" or node.weight is None or node.bias is not None or node.is_layer:
        return False
    return not any(node.trainable) and bool((node.weight != 0).all())


def _folded(graph: NetworkGraph, scale: Node) -> NetworkGraph:
    factor = _factor(scale)
    if factor is None:
        return graph
    readers = graph.consumers()

    def alone(node: Node) -> bool:
        return len(readers[node.name]) == 1 and node.name != graph.output

    before = graph[scale.inputs[0]]
    while alone(before) and _passes(before, factor):
        before = graph[before.inputs[0]]
    behind = scale
    while alone(behind):
        (behind,) = readers[behind.name]
        if not _passes(behind, factor):
            break
    for layer, outputs in ((before, True), (behind, False)):
        if layer.is_layer and (alone(layer) or not outputs) and factor.fits(layer, len(scale.shape)):
            scaled = _scaled(layer, factor, outputs=outputs)
            return rebuild(graph, {layer.name: scaled}, {scale.name: scale.inputs[0]})
    return graph


@dataclass(frozen=True)
class _Factor:
    """One factor, with `axis` None, or one per position along an axis of a sample."""

    values: Tensor
    axis: int | None

    def fits(self, layer: Node, rank: int) -> bool:
        """Whether the axis is a layer's channel axis, for samples with `rank` axes."""
        if self.axis is None:
            return True
        return (
            layer.op == "conv"
            and (self.axis, rank) == (0, layer.params["nd"] + 1)
            or (layer.op == "linear" and self.axis == rank - 1)
        )


def _factor(scale: Node) -> _Factor | None:
    assert scale.weight is not None
    weight, rank = scale.weight.detach(), len(scale.shape)
    long = [rank - weight.dim() + i for i, n in enumerate(weight.shape) if n > 1]
    if not long:
        return _Factor(weight.reshape(()), None)
    (axis, *more) = long
    if more or axis < 0 or weight.numel() != scale.shape[axis]:
        return None
    return _Factor(weight.flatten(), axis)


def _passes(node: Node, factor: _Factor) -> bool:
    """Whether scaling commutes with a node."""
    if factor.axis is not None:
        return False
    if node.op == "activation":
        return float(factor.values) > 0 and activation_of(node)[0].homogeneous
    return node.op in _LINEAR or (node.op == "max_pool" and float(factor.values) > 0)


def _scaled(layer: Node, factor: _Factor, *, outputs: bool) -> Node:
    """The layer with its outputs or its inputs multiplied."""
    weight, bias = layer.weight, layer.bias
    assert weight is not None
    values = factor.values.to(weight.dtype)
    if factor.axis is not None and not outputs:
        groups = layer.params.get("groups", 1)  # each group of a convolution reads different channels
        # (channels,) -> (out, channels per group): W diag(s) for the channels that each output reads
        values = values.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1).flatten(0, 1)
        return replace(layer, weight=weight * values.reshape(*values.shape, *(1,) * (weight.dim() - 2)))
    per_unit = values if factor.axis is None else values.reshape(-1, *(1,) * (weight.dim() - 1))  # () or (out, 1, ...)
    scaled_bias = bias * values if outputs and bias is not None else bias
    return replace(layer, weight=weight * per_unit, bias=scaled_bias)
