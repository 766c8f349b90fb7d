"""The parameters that measures move: the folded ones of the graph, or the module's own where these are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..graph import Network, NetworkGraph, UnsupportedLayerError, evaluate, raw_parameters

__all__ = ["ParameterVector", "parameter_vector"]

#: Index of a node and part of it: 0 for the weight, 1 for the bias.
Place = tuple[int, int]


@dataclass(frozen=True)
class ParameterVector:
    """The trainable parameters, each tied tensor once, and the network as a function of them.

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

        def forward(X: Tensor) -> Tensor:
            logits = functional_call(network.module, state, (X,))
            return (logits[0] if isinstance(logits, tuple | list) else logits).reshape(len(X), -1)

        return forward

    def initial() -> list[Tensor]:
        before = network.initial_tensors()
        return [before[name].detach() for name in theta]

    return ParameterVector(list(theta.values()), bind, initial)


def _folded(network: Network) -> ParameterVector:
    graph = network.graph
    groups = _tied_places(graph)
    turned = {place: _is_turned(graph, places[0], place) for places in groups for place in places}

    def bind(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        parts: list[dict[str, Any]] = [{} for _ in graph.nodes]
        for places, tensor in zip(groups, tensors, strict=True):
            for place in places:
                index, part = place
                parts[index]["bias" if part else "weight"] = tensor.mT if turned[place] else tensor
        nodes = tuple(replace(node, **new) for node, new in zip(graph.nodes, parts, strict=True))
        moved = NetworkGraph(nodes, graph.output)

        def forward(X: Tensor) -> Tensor:
            return evaluate(moved, X).reshape(len(X), -1)

        return forward

    def initial() -> list[Tensor]:
        with torch.no_grad():
            before = network.program.bind(network.initial_tensors())
        return [_tensor(before, places[0]).detach() for places in groups]

    return ParameterVector([_tensor(graph, places[0]).detach() for places in groups], bind, initial)


def _tensor(graph: NetworkGraph, place: Place) -> Tensor:
    node = graph.nodes[place[0]]
    tensor = node.bias if place[1] else node.weight
    assert tensor is not None
    return tensor


def _tied_places(graph: NetworkGraph) -> list[list[Place]]:
    """Where every folded trainable parameter stands, in the order of `graph.parameters`."""
    groups: dict[tuple, list[Place]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op == "opaque" and node.params["trained"]:
            raise node.refuse("The vector of folded parameters", "it has parameters, and there is no rule for it.")
        for part, tensor in enumerate((node.weight, node.bias)):
            if tensor is not None and node.trainable[part]:
                key = (part, node.sources[part], tensor.numel(), tensor.storage_offset())
                groups.setdefault(key, []).append((index, part))
    found = list(groups.values())
    _check_apart(graph, found)
    return found


def _check_apart(graph: NetworkGraph, groups: Sequence[list[Place]]) -> None:
    """Raise if one parameter is read both whole and in part: these would move apart."""
    for i, places in enumerate(groups):
        mine = _tensor(graph, places[0])
        for others in groups[:i]:
            theirs = _tensor(graph, others[0])
            overlap = _reach(mine)[0] < _reach(theirs)[1] and _reach(theirs)[0] < _reach(mine)[1]
            if overlap and _root(mine) is _root(theirs):
                node = graph.nodes[places[0][0]]
                raise node.refuse("The vector of folded parameters", "it shares part of a parameter with another.")


def _root(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _reach(tensor: Tensor) -> tuple[int, int]:
    first = int(tensor.storage_offset())
    return first, first + 1 + sum((int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _is_turned(graph: NetworkGraph, first: Place, other: Place) -> bool:
    """Whether a tied tensor is the transpose of the first one."""
    a, b = _tensor(graph, first), _tensor(graph, other)
    if a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b):
        return False
    if a.dim() == 2 and a.mT.shape == b.shape and torch.equal(a.mT, b):
        return True
    node = graph.nodes[other[0]]
    raise node.refuse("The vector of folded parameters", "it is computed from a parameter of another layer.")
