"""The weight layers of any network, whatever stands between them: what products and sums over layers are taken of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from .fold import fold
from .fold_scales import fold_scales
from .linear_maps import linear_maps
from .nodes import NetworkGraph, Node

__all__ = ["WeightLayers", "weight_layers"]


@dataclass(frozen=True)
class WeightLayers:
    """The weight layers l = 1..d of a network in execution order; a tied weight stands once for every use.

    Attributes
    ----------
    nodes : tuple of Node
        Each with its effective weight: batch norm and constant scales folded, parametrisations applied; the entries
        "input_shape" and "copies" of `params` say what it sees of one sample, and at how many positions.
    left_out : tuple of str
        The user's layers with a trained matrix that is none of these, as error messages name them.
    """

    nodes: tuple[Node, ...]
    left_out: tuple[str, ...] = ()


def weight_layers(graph: NetworkGraph, *, folded: bool = True, shown: Callable[[str], str] = str) -> WeightLayers:
    """The weight layers of a graph, those in operators without a rule among them.

    Parameters
    ----------
    graph : NetworkGraph
    folded : bool, default=True
        Whether batch norms and constant scales are folded into the layers beside them, as far as they stand beside one.
    shown : callable, default=str
        Gives the name of a parameter as the user knows it.
    """
    described, left_out = _described(graph)
    if folded:
        described = fold_scales(fold(described))
    layers = _labelled([_with_shape(described, node) for node in described.nodes if node.is_layer], shown)
    return WeightLayers(tuple(layers), tuple(dict.fromkeys(node.place for node in left_out)))


def _described(graph: NetworkGraph) -> tuple[NetworkGraph, list[Node]]:
    """The graph with a weight layer in place of an operator that is one, and the nodes whose matrices are none.

    Where an operator has several matrices, they stand before it.
    """
    nodes: list[Node] = []
    left_out: list[Node] = []
    for node in graph.nodes:
        found = linear_maps(node) if node.op == "opaque" else []
        if found is None:
            left_out.append(node)
        elif len(found) == 1:
            nodes += found
            continue
        nodes += [replace(layer, name=f"{node.name}.{i}") for i, layer in enumerate(found or ())]
        nodes.append(node)
    return NetworkGraph(tuple(nodes), graph.output), left_out


def _with_shape(graph: NetworkGraph, node: Node) -> Node:
    if "input_shape" in node.params:
        return node
    return replace(node, params={**node.params, "input_shape": graph[node.inputs[0]].shape})


def _labelled(layers: list[Node], shown: Callable[[str], str]) -> list[Node]:
    """The layers, each under the name of its parameter where its submodule has several, or is the whole network."""
    count = Counter(node.scope for node in layers)

    def labelled(node: Node) -> Node:
        if len(node.sources[0]) != 1 or (node.scope and count[node.scope] == 1):
            return node
        (source,) = node.sources[0]
        return replace(node, scope=shown(source).removesuffix(".weight"), module="")

    return [labelled(node) for node in layers]
