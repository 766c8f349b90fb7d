"""The weight layers of a network as matrices and operators, for measures that compute their norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._validation import all_finite, check_option, warn
from ..graph import Network, NetworkGraph, Node, UnsupportedLayerError, operator_of
from ..graph.weight_layers import Operator
from ..linalg import OperatorNorm
from ..linalg.single_precision import basis_bytes
from ..linalg.torus_bound import CHUNK, DENSE_PRODUCTS, DENSE_SIDE

__all__ = [
    "VIEWS",
    "LazyRows",
    "Operator",
    "as_operator",
    "certificate_bytes",
    "check_finite",
    "check_view",
    "graph_layers",
    "identity",
    "kernel_matrix",
    "layer_rows",
    "layer_weight",
    "left_out",
    "norm_bytes",
    "operator_norm",
    "operator_norm_upper",
    "refuse_unknown",
    "repetitions",
    "weight_layers",
]

VIEWS = ("kernel", "operator")


def check_view(view: str) -> str:
    """The view, if the name is valid."""
    return check_option("view", view, VIEWS)


def weight_layers(network: Network, purpose: str = "A product of layer norms") -> tuple[Node, ...]:
    """The weight layers l = 1..d of a description, whatever operators are between them.

    They include the matrices of operators without a rule (attention, recurrent layers, `einsum`), and the scales of
    layer norms as diagonals. `left_out` names the layers whose matrices are missing.

    Raises
    ------
    UnsupportedLayerError
        If a weight is not finite, or no weight layer is known.
    """

    def checked() -> tuple[Node, ...]:
        layers = network.weight_layers
        check_finite(layers.nodes, purpose)
        if layers.left_out and not layers.nodes:
            raise UnsupportedLayerError(
                f"{purpose} is not defined for this network: {layers.left_out[0]} is not known."
            )
        return layers.nodes

    return network.once("weight_layers", checked)


def graph_layers(network: Network, purpose: str) -> tuple[Node, ...]:
    """The weight layers as nodes of the graph, for measures that compose along it.

    The matrix of a recurrent layer is one layer, at its first step.

    Raises
    ------
    UnsupportedLayerError
        If a weight is not finite.
    """
    graph = network.unrolled_graph
    network.once("finite_graph", lambda: check_finite(graph.nodes, purpose))
    return tuple(node for node in graph.layers if identity(node)[0] == node.name)


def check_finite(nodes: Iterable[Node], purpose: str) -> None:
    """Raise if a weight is not finite."""
    for node in nodes:
        if node.weight is not None and not all_finite(node.weight):
            raise node.refuse(purpose, "its weights are not finite.", "The network has diverged.")


def refuse_unknown(graph: NetworkGraph, rules: Container[str], purpose: str) -> None:
    """Raise for the first operator without a rule, before anything is computed for those before it.

    Of sizes, such as the number of samples, nothing has to be known.
    """
    for node in graph.nodes:
        if node.op != "input" and node.op not in rules and not node.is_size:
            softmax = "softmax" in str(node.params.get("target", ""))
            why = "it gives whole numbers or truth values, which jump." if node.params.get("is_whole") else ""
            cure = "If it is the last step, measure the module before it, which returns logits." * softmax
            raise node.refuse(purpose, why, cure)


def left_out(network: Network) -> dict[str, str]:
    """The layers whose trained matrix is missing from a description, for the report; a warning names them once."""
    names = ", ".join(network.weight_layers.left_out)
    if names:
        message = (
            f"Products, sums and means over the layers leave out weights of {names}, whose operators have no rule."
        )
        network.once(message, lambda: warn(message))
    return {"left_out": names} if names else {}


def layer_rows(layers: Iterable[Node], values: Iterable[float]) -> list[dict[str, Any]]:
    """The rows of a report, one value for each layer."""
    return [{"layer": node.label, "value": value} for node, value in zip(layers, values, strict=True)]


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
        weight = weight.reshape(groups, c_in // groups, per_group, -1).transpose(1, 2)  # (groups, out, in, kernel)
        return weight.reshape(groups * per_group, -1)
    if node.op == "diagonal":
        return weight.reshape(-1, 1)
    return weight.flatten(1)


def as_operator(network: Network, node: Node) -> Operator:
    """A weight layer as the linear operator at its input size.

    A layer that is applied at several positions is returned once: see `repetitions`.
    """
    shape = node.params["input_shape"] if "input_shape" in node.params else network.graph[node.inputs[0]].shape
    return operator_of(node, layer_weight(node), shape)


def repetitions(node: Node) -> int:
    """Number of input positions at which a layer is applied.

    The operator is then block diagonal, with this many copies of the weight.
    """
    return int(node.params.get("copies", 1)) * (math.prod(node.shape[:-1]) if node.op == "linear" else 1)


def operator_norm(network: Network, node: Node) -> OperatorNorm:
    """Spectral norm of a weight layer as an operator, from below (up to rounding)."""
    key = ("operator_norm", *identity(node))
    return network.once(key, lambda: as_operator(network, node).norm_lower())


def operator_norm_upper(network: Network, node: Node) -> float:
    """Proven upper end of the spectral norm of a weight layer as an operator."""
    key = ("operator_norm_upper", *identity(node))
    return network.once(key, lambda: as_operator(network, node).norm_upper(operator_norm(network, node).value))


def identity(node: Node) -> tuple[str, int]:
    """The same for the steps of a recurrent layer; by its tensor, since a description may have folded a scale in."""
    return node.params.get("first_use", node.name), id(node.weight)


def norm_bytes(network: Network, batch: Any = None, **params: Any) -> float:
    """Bytes for norms from below, of the layer that needs most."""
    return max(map(_norm_bytes, network.weight_layers.nodes), default=0.0)


def certificate_bytes(network: Network, batch: Any = None, **params: Any) -> float:
    """Bytes for proven upper ends of these norms, of the layer that needs most."""
    return max((_norm_bytes(node) + _proof_bytes(node) for node in network.weight_layers.nodes), default=0.0)


def _norm_bytes(node: Node) -> float:
    assert node.weight is not None
    numbers = 2.0 * node.weight.numel()
    if node.op == "linear":
        numbers += basis_bytes(min(node.weight.shape)) / 8
    else:  # vectors of an iteration, and the windows of a convolution
        numbers += 6 * (math.prod(node.params["input_shape"]) + math.prod(node.shape))
    if node.op in ("conv", "conv_transpose"):
        numbers += 4 * node.weight.numel() + node.weight[0].numel() * math.prod(node.shape[1:])
        numbers += basis_bytes(min(math.prod(node.params["input_shape"]), math.prod(node.shape))) / 8
    return 8 * numbers


def _proof_bytes(node: Node) -> float:
    """Gram matrices and their factorisations: of the matrix itself, or of chunks of a torus."""
    assert node.weight is not None
    if node.op in ("conv", "conv_transpose"):
        groups = node.params["groups"]
        short, long = sorted(math.prod(shape) / groups for shape in (node.params["input_shape"], node.shape))
        if short <= DENSE_SIDE and groups * short**2 * long <= DENSE_PRODUCTS:
            return 8.0 * groups * (2 * short * long + 6 * short**2)
        return 16.0 * 8 * CHUNK
    return 8.0 * 6 * min(node.weight.shape) ** 2 if node.op == "linear" else 0.0


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
