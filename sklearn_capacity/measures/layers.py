"""The weight layers of a network as matrices and operators, for measures that compute their norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._validation import check_option
from ..graph import Network, Node, operator_of
from ..graph.operators import Operator
from ..linalg import OperatorNorm

__all__ = [
    "VIEWS",
    "LazyRows",
    "as_operator",
    "check_view",
    "kernel_matrix",
    "layer_weight",
    "operator_norm_uppers",
    "operator_norms",
    "repetitions",
    "weight_layers",
]

VIEWS = ("kernel", "operator")


def check_view(view: str) -> str:
    """The view, if the name is valid."""
    return check_option("view", view, VIEWS)


def weight_layers(network: Network, purpose: str = "A product of layer norms") -> tuple[Node, ...]:
    """The weight layers l = 1..d, if the network has no unknown operator and the weights are finite.

    Raises
    ------
    UnsupportedLayerError
        If the graph does not know an operator (attention, layer norm), whose weights would be missing, or if a weight
        is not finite.
    """

    def checked() -> tuple[Node, ...]:
        for node in network.graph.nodes:
            if node.op == "opaque":
                cure = "If it is the last step, measure the module before it, which returns logits." * _is_softmax(node)
                raise node.refuse(purpose, "it is not a known weight layer or activation.", cure)
            if node.weight is not None and not bool(node.weight.isfinite().all()):
                raise node.refuse(purpose, "its weights are not finite.", "The network has diverged.")
        return network.graph.layers

    return network.once("weight_layers", checked)


def _is_softmax(node: Node) -> bool:
    return "softmax" in str(node.params.get("target", ""))


def layer_weight(node: Node) -> Tensor:
    """The effective weight in float64, detached."""
    assert node.weight is not None
    return node.weight.detach().double()


def kernel_matrix(node: Node) -> Tensor:
    """The kernel as a matrix, one row per output channel: (c_out, c_in / groups * k); a diagonal becomes a column."""
    weight = layer_weight(node)
    if node.op == "conv_transpose":  # stored as (c_in, c_out / groups, ...)
        groups = node.params["groups"]
        c_in, per_group = weight.shape[:2]
        weight = weight.reshape(groups, c_in // groups, per_group, -1).transpose(1, 2)
        return weight.reshape(groups * per_group, -1)
    if node.op == "diagonal":
        return weight.reshape(-1, 1)
    return weight.flatten(1)


def as_operator(network: Network, node: Node) -> Operator:
    """A weight layer as the linear operator at its input size.

    A linear layer that is applied at several positions is returned once: see `repetitions`.
    """
    return operator_of(node, layer_weight(node), network.graph[node.inputs[0]].shape)


def repetitions(node: Node) -> int:
    """Number of input positions at which a linear layer is applied; 1 for any other layer.

    The operator is then block diagonal, with this many copies of the weight.
    """
    return math.prod(node.shape[:-1]) if node.op == "linear" else 1


def operator_norms(network: Network) -> list[OperatorNorm]:
    """Spectral norm of every weight layer as an operator, from below (up to rounding), in layer order."""
    return network.once(
        "operator_norms",
        lambda: [as_operator(network, node).norm_lower() for node in weight_layers(network)],
    )


def operator_norm_uppers(network: Network) -> list[float]:
    """Proven upper bounds of the spectral norm of every weight layer as an operator, in layer order."""

    def uppers() -> list[float]:
        pairs = zip(network.graph.layers, operator_norms(network), strict=True)
        return [as_operator(network, node).norm_upper(norm.value) for node, norm in pairs]

    return network.once("operator_norm_uppers", uppers)


class LazyRows(Sequence):
    """Costly rows of a report, computed when they are first read."""

    def __init__(self, make: Callable[[], Sequence[Mapping[str, Any]]]):
        self._make = make
        self._rows: Sequence[Mapping[str, Any]] | None = None

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        if self._rows is None:
            self._rows = self._make()
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)
