"""Bias-free chains of linear maps and positively homogeneous activations, for which the theorems of [FR] hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import NotDefinedError
from ..graph import EVALUATE, Network, Node, activation_of
from .layer_operators import graph_layers, refuse_unknown

__all__ = ["Chain", "rectifier_chain"]

#: Operators that only move entries.
MOVES = ("view", "permute")
POOLS = ("max_pool", "avg_pool", "reduce")


@dataclass(frozen=True)
class Chain:
    """A network f(x) = D_d W_d D_{d-1} ... D_1 W_1 x.

    Attributes
    ----------
    nodes : tuple of Node
        Everything between input and output, in order.
    layers : tuple of Node
        The weight layers among them.
    """

    nodes: tuple[Node, ...]
    layers: tuple[Node, ...]

    def slopes(self, X: Tensor) -> Iterator[Tensor | None]:
        """The diagonals of D_1(x) .. D_d(x) for a batch, each (n, units), float64; None stands for the identity.

        D_t is the identity between two layers without an activation, and after the last layer unless the network ends
        in an activation. Consecutive activations form one diagonal.
        """
        slope: Tensor | None = None
        for node in self.nodes:
            if node.is_layer:
                if node is not self.layers[0]:
                    yield None if slope is None else slope.flatten(1)
                slope = None
            elif node.op == "activation":
                activation, args = activation_of(node)
                factor = activation.derivative(X, *args).double()
                slope = factor if slope is None else slope * factor
            elif slope is not None:  # so that entries stay in place for a further activation
                slope = EVALUATE[node.op](node, slope)
            X = EVALUATE[node.op](node, X)
            if node.is_layer:  # a positive factor changes no slope and prevents overflow
                X = X / _scale(X)
        yield None if slope is None else slope.flatten(1)


def _scale(X: Tensor) -> Tensor:
    """The largest absolute entry of every sample, shaped for division; 1 where it is 0."""
    top = X.abs().flatten(1).amax(1).reshape(-1, *(1 for _ in X.shape[1:]))  # (n, 1, ...)
    return torch.where(top > 0, top, torch.ones_like(top))


def rectifier_chain(network: Network, purpose: str) -> Chain:
    """The network as a bias-free chain of linear maps and positively homogeneous activations.

    Parameters
    ----------
    network : Network
    purpose : str
        Subject of the error message: "A data-dependent norm".

    Raises
    ------
    UnsupportedLayerError
        If it is not such a chain; the message names the layer and the reason.
    """
    refuse_unknown(network.graph, EVALUATE.keys() - {"opaque"}, purpose)
    layers = graph_layers(network, purpose)
    if not layers:
        raise NotDefinedError(f"{purpose} is not defined for a network without weight layers.")
    readers = network.graph.consumers()
    nodes = network.graph.nodes[1:]
    first = nodes.index(layers[0])
    for position, node in enumerate(nodes):
        why = _obstacle(node, network.graph[node.inputs[0]].shape)
        if why is None and len(readers[node.inputs[0]]) > 1:
            why = "its input is also used elsewhere, so the network is not a chain."
        if why is None and node.op == "activation" and position < first:
            why = "it acts before the first weight layer."
        if why is not None:
            raise node.refuse(purpose, why, "It needs a chain of bias-free linear maps and ReLUs.")
    return Chain(nodes, layers)


def _obstacle(node: Node, shape_before: tuple[int, ...]) -> str | None:
    """The reason why a node cannot be part of a chain, or None."""
    if node.op == "pick":
        index = node.params["index"]
        one_to_one = len(index.unique()) == len(index) and len(index) == math.prod(shape_before)
        return None if one_to_one else "it repeats or drops entries."
    if node.op in MOVES:
        return None
    if node.op == "activation":
        return None if activation_of(node)[0].homogeneous else "it is not positively homogeneous."
    if node.op in POOLS:
        return "pooling is neither a layer nor an activation."
    if node.bias is not None and bool(node.bias.any()):
        return "it has a bias."
    return None if node.is_layer else "it is neither a weight layer nor an activation."
