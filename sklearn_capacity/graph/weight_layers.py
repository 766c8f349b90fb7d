"""The weight layers of any network, for products and sums over layers, and as linear operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linalg import ConvOperator, DiagonalOperator, MatrixOperator
from .evaluate import broadcast
from .fold import fold, fold_scales
from .linear_maps import linear_maps
from .nodes import NetworkGraph, Node

__all__ = ["Operator", "WeightLayers", "labelled", "operator_of", "weight_layers"]

Operator = MatrixOperator | DiagonalOperator | ConvOperator


@dataclass(frozen=True)
class WeightLayers:
    """The weight layers l = 1..d of a network in execution order; a tied weight appears once per use.

    Attributes
    ----------
    nodes : tuple of Node
        The layers with their effective weights: batch norm and constant scales folded, parametrisations applied. The
        entries "input_shape" and "copies" of `params` are the shape of one sample's input and the number of positions.
    left_out : tuple of str
        The user's layers with another trained matrix, as named in error messages.
    """

    nodes: tuple[Node, ...]
    left_out: tuple[str, ...] = ()


def weight_layers(graph: NetworkGraph, *, folded: bool = True, shown: Callable[[str], str] = str) -> WeightLayers:
    """The weight layers of a graph, including those in operators without a rule.

    Parameters
    ----------
    graph : NetworkGraph
    folded : bool, default=True
        Whether to fold batch norms and constant scales into adjacent layers where possible.
    shown : callable, default=str
        Returns the user's name of a parameter.
    """
    described, left_out = _described(graph)
    if folded:
        described = fold_scales(fold(described))
    layers = labelled([_with_shape(described, node) for node in described.nodes if node.is_layer], shown)
    return WeightLayers(tuple(layers), tuple(dict.fromkeys(node.place for node in left_out)))


def _described(graph: NetworkGraph) -> tuple[NetworkGraph, list[Node]]:
    """The graph with weight layers in place of operators that are layers, and the nodes with other matrices.

    If an operator has several matrices, their layers precede it.
    """
    nodes: list[Node] = []
    left_out: list[Node] = []
    for node in graph.nodes:
        maps = linear_maps(node) if node.op == "opaque" else []
        if maps is None:
            left_out.append(node)
        elif len(maps) == 1:
            nodes += maps
            continue
        nodes += [replace(layer, name=f"{node.name}.{i}") for i, layer in enumerate(maps or ())]
        nodes.append(node)
    return NetworkGraph(tuple(nodes), graph.output), left_out


def _with_shape(graph: NetworkGraph, node: Node) -> Node:
    if "input_shape" in node.params:
        return node
    return replace(node, params={**node.params, "input_shape": graph[node.inputs[0]].shape})


def labelled(layers: list[Node], shown: Callable[[str], str]) -> list[Node]:
    """The layers, labelled by parameter if their submodule has several or is the entire network."""
    count = Counter(node.scope for node in layers)

    def with_label(node: Node) -> Node:
        if len(node.sources[0]) != 1 or (node.scope and count[node.scope] == 1):
            return node
        (source,) = node.sources[0]
        return replace(node, scope=shown(source).removesuffix(".weight"), module="")

    return [with_label(node) for node in layers]


def operator_of(node: Node, weight: Tensor, input_shape: tuple[int, ...]) -> Operator:
    """A weight layer as a linear operator at its input size, with `weight` in place of its weight."""
    if node.op == "linear":
        return MatrixOperator(weight)
    if node.op == "diagonal":
        if input_shape != node.shape:
            raise node.refuse("The operator of a layer", "it repeats its input by broadcasting.")
        ones = torch.ones(1, *node.shape, dtype=weight.dtype, device=weight.device)
        return DiagonalOperator((ones * broadcast(node, weight, ones))[0])
    p = node.params
    return ConvOperator(
        weight,
        input_shape,
        stride=p["stride"],
        padding=p["padding"],
        dilation=p["dilation"],
        groups=p["groups"],
        padding_mode=p["padding_mode"],
        transposed=node.op == "conv_transpose",
        output_padding=p["output_padding"],
    )
