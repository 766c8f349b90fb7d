"""The linear maps at the ends of a network, where products with its Jacobian follow from smaller ones."""

from __future__ import annotations

from .nodes import NetworkGraph, Node

__all__ = ["first_linear", "is_matrix", "last_linear", "one_hidden_layer"]


def first_linear(graph: NetworkGraph) -> Node | None:
    """The linear map that alone reads the input, seen as vectors; None if there is none."""
    readers = graph.consumers()
    node = graph.input
    while len(readers[node.name]) == 1:
        (node,) = readers[node.name]
        if is_matrix(graph, node):
            return node
        if node.op != "view":
            break
    return None


def last_linear(graph: NetworkGraph) -> Node | None:
    """The linear map at the end; None if there is none."""
    node = graph[graph.output]
    return node if is_matrix(graph, node) else None


def one_hidden_layer(graph: NetworkGraph) -> tuple[Node, Node, Node] | None:
    """The two linear maps of a network and the activation between them; None for any other network."""
    first, last = first_linear(graph), last_linear(graph)
    if first is None or last is None:
        return None
    activation = graph[last.inputs[0]]
    if activation.op != "activation" or activation.weight is not None or activation.inputs[0] != first.name:
        return None
    return first, activation, last


def is_matrix(graph: NetworkGraph, node: Node) -> bool:
    """Whether the node is a linear map between vectors."""
    vectors = len(node.shape) == 1 and len(graph[node.inputs[0]].shape) == 1 if node.inputs else False
    return node.op == "linear" and node.weight is not None and vectors
