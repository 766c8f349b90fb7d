"""Fold batch norm, explicit padding, a fixed linear head and constant scales into adjacent linear maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .activations import activation_of
from .nodes import NetworkGraph, Node

__all__ = ["HEAD", "fold", "fold_scales", "split_head"]

#: Name of the submodule with the fixed map from one logit to two.
HEAD = "binary_head"

_LINEAR = ("linear", "conv", "conv_transpose")


def fold(graph: NetworkGraph, *, norms: bool = True) -> NetworkGraph:
    """The same function with operators merged into its linear maps where possible.

    Explicit padding is folded into the next convolution. Without `norms`, only padding that belongs to the layer itself
    (reflection, for example) is folded, and every weight is that of the module's own layer.

    Batch norm is folded into the previous linear map, else into the next one (a convolution only if it does not pad: at
    a padded border, a shift of the input is not constant), else it stays as a separate diagonal layer.
    """
    graph = _fold_padding(_without_detours(graph), across_layers=norms)
    for step in (_fold_norm_backward, _fold_norm_forward, _fold_head) if norms else ():
        graph = step(graph)
    return graph


def _rebuilt(graph: NetworkGraph, replaced: dict[str, Node], aliases: dict[str, str]) -> NetworkGraph:
    """The graph with some nodes replaced, and others removed in favour of their `aliases`."""
    if not replaced and not aliases:
        return graph

    def target(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    nodes = []
    for node in graph.nodes:
        if node.name in aliases:
            continue
        node = replaced.get(node.name, node)
        nodes.append(replace(node, inputs=tuple(target(name) for name in node.inputs)))
    return NetworkGraph(tuple(nodes), target(graph.output))


def _without_detours(graph: NetworkGraph) -> NetworkGraph:
    """Views and permutations that undo each other are left out, since nothing is folded across them."""
    for op in ("view", "permute"):
        sources = {node.name: _undone(graph, node) for node in graph.nodes if node.op == op}
        aliases = {name: source for name, source in sources.items() if source is not None}
        graph = _rebuilt(graph, {}, aliases).live() if aliases else graph
    return graph


def _undone(graph: NetworkGraph, node: Node) -> str | None:
    """The name of the value that views, or permutations, up to this one restore; None if they do not."""
    order, source = tuple(range(len(node.shape) + 1)), node
    while source.op == node.op:
        if source.op == "permute":
            order = tuple(source.params["dims"][d] for d in order)
        source = graph[source.inputs[0]]
        if source.shape == node.shape and order == tuple(range(len(node.shape) + 1)):
            return source.name
    return None


def _fold_padding(graph: NetworkGraph, *, across_layers: bool) -> NetworkGraph:
    """`pad` followed by an unpadded convolution is one convolution with that padding."""
    readers = graph.consumers()
    replaced: dict[str, Node] = {}
    aliases: dict[str, str] = {}
    modes = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
    for node in graph.nodes:
        if node.op != "conv" or any(a or b for a, b in node.params["padding"]):
            continue
        pad = graph[node.inputs[0]]
        if pad.scope != node.scope and not across_layers:
            continue
        if pad.op != "pad" or len(readers[pad.name]) != 1 or pad.params["mode"] not in modes:
            continue
        flat, nd = pad.params["pads"], node.params["nd"]
        if len(flat) > 2 * nd or any(p < 0 for p in flat):
            continue
        flat = tuple(flat) + (0,) * (2 * nd - len(flat))
        pairs = tuple((flat[2 * i], flat[2 * i + 1]) for i in reversed(range(nd)))  # torch lists the last axis first
        params = {**node.params, "padding": pairs, "padding_mode": modes[pad.params["mode"]]}
        replaced[node.name] = replace(node, params=params)
        aliases[pad.name] = pad.inputs[0]
    return _rebuilt(graph, replaced, aliases)


def _is_norm(node: Node) -> bool:
    return node.op == "diagonal" and node.params.get("kind") == "batch_norm"


def _channels_first(node: Node, scale: Tensor) -> Tensor:
    """`scale` per output channel, shaped to multiply the weight."""
    weight = node.weight
    assert weight is not None
    if node.op == "conv_transpose":  # (in, out / groups, ...)
        groups = node.params["groups"]
        # (groups, in per group, out per group)
        per_group = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return per_group.reshape(weight.shape[0], weight.shape[1], *(1,) * (weight.dim() - 2))
    return scale.reshape(-1, *(1,) * (weight.dim() - 1))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _fold_norm_backward(graph: NetworkGraph) -> NetworkGraph:
    readers = graph.consumers()
    replaced: dict[str, Node] = {}
    aliases: dict[str, str] = {}
    for norm in graph.nodes:
        if not _is_norm(norm):
            continue
        before = graph[norm.inputs[0]]
        before = replaced.get(before.name, before)
        alone = before.name != graph.output and len(readers[before.name]) == 1
        if before.op not in _LINEAR or not alone:
            continue
        if before.op == "linear" and norm.params["dim"] != len(before.shape):  # of positions, not of outputs
            continue
        scale, shift = norm.weight, norm.bias
        assert scale is not None and before.weight is not None
        bias = None if before.bias is None else before.bias * scale
        replaced[before.name] = replace(
            before,
            weight=before.weight * _channels_first(before, scale),
            bias=_sum(bias, shift),
            trainable=_joined(before, norm),
            sources=_joined_sources(before, norm),
        )
        aliases[norm.name] = before.name
    return _rebuilt(graph, replaced, aliases)


def _joined(linear: Node, norm: Node) -> tuple[bool, bool]:
    """Whether the folded weight and bias are trained: each is if any parameter in it is."""
    weight = linear.trainable[0] or norm.trainable[0]
    return weight, linear.trainable[1] or norm.trainable[1] or (linear.bias is not None and norm.trainable[0])


def _joined_sources(linear: Node, norm: Node) -> tuple[frozenset[str], frozenset[str]]:
    weight, bias = linear.sources
    scale, shift = norm.sources
    return weight | scale, bias | shift | (frozenset() if linear.bias is None else scale)


def _fold_norm_forward(graph: NetworkGraph) -> NetworkGraph:
    readers = graph.consumers()
    replaced: dict[str, Node] = {}
    aliases: dict[str, str] = {}
    for norm in graph.nodes:
        if not _is_norm(norm) or norm.name == graph.output or len(readers[norm.name]) != 1:
            continue
        (after,) = readers[norm.name]
        after = replaced.get(after.name, after)
        scale, shift = norm.weight, norm.bias
        assert scale is not None and shift is not None
        if not _takes_input_scale(after, norm):
            continue
        assert after.weight is not None
        rest = (1,) * (after.weight.dim() - 2)
        # W (s x + t) = (W s) x + W t for the scale s and the shift t of every channel, (in,) each
        moved = after.weight * shift.reshape(1, -1, *rest)  # (out, in, *kernel); its sums join the bias
        # The shift is multiplied by the weight, so the new bias is trained if the weight is.
        trained = (after.trainable[0] or norm.trainable[0], any(after.trainable) or norm.trainable[1])
        replaced[after.name] = replace(
            after,
            weight=after.weight * scale.reshape(1, -1, *rest),
            bias=_sum(after.bias, moved.flatten(1).sum(1)),
            trainable=trained,
            sources=(after.sources[0] | norm.sources[0], after.sources[1] | after.sources[0] | norm.sources[1]),
        )
        aliases[norm.name] = norm.inputs[0]
    return _rebuilt(graph, replaced, aliases)


def _takes_input_scale(after: Node, norm: Node) -> bool:
    if after.op == "linear":
        return len(norm.shape) == 1
    unpadded = after.op == "conv" and not any(a or b for a, b in after.params["padding"])
    return unpadded and after.params["groups"] == 1


def _fold_head(graph: NetworkGraph) -> NetworkGraph:
    """Fold the fixed map z -> [-z/2, z/2] into the last linear map: a one-logit model is this two-logit network."""
    head = graph[graph.output]
    if head.op != "linear" or head.scope != HEAD:
        return graph
    readers = graph.consumers()
    last = graph[head.inputs[0]]
    views: dict[str, str] = {}
    while last.op == "view" and len(readers[last.name]) == 1:
        views[last.name] = last.inputs[0]
        last = graph[last.inputs[0]]
    if last.op != "linear" or len(readers[last.name]) != 1 or last.weight is None or last.weight.shape[0] != 1:
        return graph
    assert head.weight is not None
    # H (W x + b) = (H W) x + H b, with H (2, 1), W (1, in) and b (1,)
    bias = None if last.bias is None else torch.nn.functional.linear(last.bias, head.weight)
    # Only the one row is trained, so it is stored for derivatives with respect to the parameters.
    params = {**last.params, "stem": last, "head": head}
    joined = replace(last, weight=head.weight @ last.weight, bias=bias, shape=head.shape, params=params)
    return _rebuilt(graph, {last.name: joined}, {**views, head.name: last.name})


def split_head(graph: NetworkGraph) -> NetworkGraph:
    """The graph with the fixed map from one logit to two as a separate node again."""
    last = graph[graph.output]
    if "stem" not in last.params:
        return graph
    stem = replace(last.params["stem"], inputs=last.inputs)
    head = replace(last.params["head"], inputs=(stem.name,))
    return NetworkGraph((*(node for node in graph.nodes if node.name != last.name), stem, head), head.name)


# -- constant scales, such as the temperature of logits / T ------------------------------------------------------------


#: Operators with f(c x) = c f(x) for every scalar c.
_COMMUTING = ("view", "permute", "reduce", "slice", "pick", "pad", "avg_pool")


def fold_scales(graph: NetworkGraph) -> NetworkGraph:
    """The same function, with each constant scale folded into the previous layer or the next one.

    A scalar passes intermediate nodes if nothing else reads them and scaling commutes with them: views, pooling,
    rectifiers. A factor per channel, as for input normalisation, passes none. A scale without a layer on either side
    remains.

    Descriptive measures of the layers then describe the same function as its Lipschitz constant. Only these use the
    folded scales; Fisher matrices and sharpness use the trained parameters of the network.
    """
    for name in [node.name for node in graph.nodes if _is_scale(node)]:
        graph = _folded(graph, graph[name])  # as earlier ones left it
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
            return _rebuilt(graph, {layer.name: scaled}, {scale.name: scale.inputs[0]})
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
    return node.op in _COMMUTING or (node.op == "max_pool" and float(factor.values) > 0)


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
