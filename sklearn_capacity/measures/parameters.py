"""The parameter vector that measures move: the folded one of the graph, or the module's own where folding is void."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..derivatives.parameter_groups import parameter_groups
from ..derivatives.parameter_jacobian import raw_parameters
from ..graph import Network, NetworkGraph, UnsupportedLayerError, evaluate
from ..graph.fold import split_head

__all__ = ["ParameterVector", "parameter_vector"]


@dataclass(frozen=True)
class ParameterVector:
    """The trainable parameters, each tied tensor once, and the network as a function of them.

    A one-logit model has the parameters of its one logit z, though [-z/2, z/2] is what is measured: with noise of its
    own on either half it would be another model.

    Attributes
    ----------
    tensors : sequence of Tensor
        Their values; never to be changed.
    bind : callable
        Takes tensors of the same shapes and gives the function X -> logits (n, C) that has them in place.
    initial : callable
        Gives their values before training; raises where these are not known.
    """

    tensors: Sequence[Tensor]
    bind: Callable[[Sequence[Tensor]], Callable[[Tensor], Tensor]]
    initial: Callable[[], list[Tensor]]


def parameter_vector(network: Network) -> ParameterVector:
    """The folded trainable parameters; the raw ones where the graph cannot tell, and folding would change nothing.

    Raises
    ------
    UnsupportedLayerError
        If neither can be had, or nothing is trained.
    """

    def find() -> ParameterVector:
        try:
            vector = _folded(network)
        except UnsupportedLayerError as error:
            vector = _raw(network, error)
        if not vector.tensors:
            raise UnsupportedLayerError("The network has no trainable parameters that could be moved.")
        return vector

    return network.once("parameter_vector", find)


def _raw(network: Network, reason: Exception) -> ParameterVector:
    theta = raw_parameters(network, reason)

    def bind(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        state = dict(zip(theta, tensors, strict=True))
        return lambda X: network.forward(X, state)

    def initial() -> list[Tensor]:
        before = network.initial_tensors()
        return [before[name].detach() for name in theta]

    return ParameterVector(list(theta.values()), bind, initial)


def _folded(network: Network) -> ParameterVector:
    graph = split_head(network.graph)
    groups = parameter_groups(graph)
    for group in groups:
        if not group.plain:
            raise group.uses[0].node.refuse(
                "The vector of folded parameters", "another layer reads the same parameter turned or in part."
            )
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    places = [[(order[use.node.name], use.part) for use in group.uses] for group in groups]

    def bind(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        parts: list[dict[str, Any]] = [{} for _ in graph.nodes]
        for uses, tensor in zip(places, tensors, strict=True):
            for index, part in uses:
                parts[index][part] = tensor
        nodes = tuple(replace(node, **new) for node, new in zip(graph.nodes, parts, strict=True))
        moved = NetworkGraph(nodes, graph.output)

        def forward(X: Tensor) -> Tensor:
            return evaluate(moved, X).reshape(len(X), -1)

        return forward

    def initial() -> list[Tensor]:
        with torch.no_grad():
            before = split_head(network.program.bind(network.initial_tensors()))
        return [getattr(before.nodes[index], part).detach() for (index, part), *_ in places]

    return ParameterVector([group.uses[0].tensor.detach() for group in groups], bind, initial)
