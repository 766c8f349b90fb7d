"""The weight layers of a network as matrices and operators, for the measures that take norms of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._validation import check_option
from ..graph import Network, Node
from ..linalg import ConvOperator, OperatorNorm

__all__ = ["VIEWS", "as_operator", "kernel_matrix", "layer_weight", "operator_norms"]

VIEWS = ("kernel", "operator")


def check_view(view: str) -> str:
    return check_option("view", view, VIEWS)


def layer_weight(node: Node) -> Tensor:
    """The effective weight in float64, detached."""
    assert node.weight is not None
    return node.weight.detach().double()


def kernel_matrix(node: Node) -> Tensor:
    """The kernel as a matrix, one row per output channel: (c_out, c_in / groups * k); a diagonal as its column."""
    weight = layer_weight(node)
    if node.op == "conv_transpose":  # stored as (c_in, c_out / groups, ...)
        groups = node.params["groups"]
        c_in, per_group = weight.shape[:2]
        weight = weight.reshape(groups, c_in // groups, per_group, -1).transpose(1, 2)
        return weight.reshape(groups * per_group, -1)
    if node.op == "diagonal":
        return weight.reshape(-1, 1)
    return weight.flatten(1)


def as_operator(network: Network, node: Node) -> ConvOperator:
    """A convolution layer as the linear operator at the input size it sees."""
    p = node.params
    return ConvOperator(
        layer_weight(node),
        network.graph[node.inputs[0]].shape,
        stride=p["stride"],
        padding=p["padding"],
        dilation=p["dilation"],
        groups=p["groups"],
        padding_mode=p["padding_mode"],
        transposed=node.op == "conv_transpose",
        output_padding=p["output_padding"],
    )


def operator_norms(network: Network) -> list[OperatorNorm]:
    """Spectral norm of every weight layer as an operator, from below (to rounding), in layer order."""
    return network.once("operator_norms", lambda: [_operator_norm(network, node) for node in network.graph.layers])


def _operator_norm(network: Network, node: Node) -> OperatorNorm:
    if node.op == "linear":
        return OperatorNorm(float(torch.linalg.matrix_norm(layer_weight(node), 2)), 0.0, 0)
    if node.op == "diagonal":
        return OperatorNorm(float(layer_weight(node).abs().max()), 0.0, 0)
    return as_operator(network, node).norm_lower()
