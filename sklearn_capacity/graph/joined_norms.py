"""Layer and group normalisations as one function each, for which torch has kernels.

Measures need the two steps, of which the first is linear; a sweep through both passes memory five times more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .nodes import NetworkGraph, Node

__all__ = ["joined_norms"]


def joined_norms(graph: NetworkGraph) -> NetworkGraph:
    """The graph with one node for each normalisation and the centring that only it reads."""
    centred = [node for node in graph.nodes if node.op == "center"]
    if not centred:
        return graph
    readers = graph.consumers()
    pairs = {node.name: readers[node.name][0] for node in centred if _joins(node, readers[node.name])}
    sources = {reader.name: graph[name].inputs for name, reader in pairs.items()}
    nodes = (_standardization(node, sources.get(node.name)) for node in graph.nodes if node.name not in pairs)
    return NetworkGraph(tuple(nodes), graph.output)


def _joins(node: Node, readers: Sequence[Node]) -> bool:
    """Whether the one reader divides by the deviation over the axes that the node centres, the last ones."""
    if len(readers) != 1 or readers[0].params.get("kind") != "normalization":
        return False
    rank = len(node.shape) + 1
    axes = sorted(axis - rank for axis in node.params["dims"])
    return axes == list(range(-len(axes), 0)) == sorted(readers[0].params["args"][0])


def _standardization(node: Node, inputs: tuple[str, ...] | None) -> Node:
    """The node, or if it has other inputs, the joined one."""
    if inputs is None:
        return node
    return replace(node, inputs=inputs, params={**node.params, "kind": "standardization"})
