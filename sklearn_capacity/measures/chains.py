"""Networks that are chains of linear maps and rectifiers, for the bounds that hold for these alone."""

from __future__ import annotations

from ..graph import Network, Node, activation_of

__all__ = ["bias_free_chain"]

_LAYERS = ("linear", "conv", "conv_transpose", "diagonal")
_RESHAPES = ("view", "permute")


def bias_free_chain(network: Network, purpose: str) -> tuple[Node, ...]:
    """The nodes behind the input in order, if each reads the one before, and all are positively homogeneous.

    Linear maps without biases, positively homogeneous activations, and reshapes, no pooling.

    Raises
    ------
    UnsupportedLayerError
        For anything else; the message names the layer.
    """
    graph = network.graph
    readers = graph.consumers()
    nodes = graph.nodes[1:]
    for node in nodes:
        if node.op in _LAYERS:
            if node.bias is not None:
                raise node.refuse(purpose, "it has a bias (batch norm shifts count), and a chain must have none.")
        elif node.op == "activation":
            if not activation_of(node)[0].homogeneous:
                raise node.refuse(purpose, "it is not positively homogeneous.", "Use ReLU or leaky ReLU.")
        elif node.op not in _RESHAPES:
            raise node.refuse(purpose, "it is no part of a chain of linear maps and activations.")
        if len(node.inputs) != 1 or len(readers[node.inputs[0]]) != 1:
            raise node.refuse(purpose, "the network branches there, and a chain must not.")
    return nodes
