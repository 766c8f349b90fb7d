"""Weight layers as linear operators at their input size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import ConvOperator, DiagonalOperator, MatrixOperator
from .evaluate import broadcast
from .nodes import Node

__all__ = ["Operator", "operator_of"]

Operator = MatrixOperator | DiagonalOperator | ConvOperator


def operator_of(node: Node, weight: Tensor, input_shape: tuple[int, ...]) -> Operator:
    """The operator of a layer with its weight replaced."""
    if node.op == "linear":
        return MatrixOperator(weight)
    if node.op == "diagonal":
        if input_shape != node.shape:
            raise node.refuse("The operator of a layer", "it repeats its input by broadcasting.")
        ones = torch.ones(1, *node.shape, dtype=weight.dtype, device=weight.device)
        return DiagonalOperator((ones * broadcast(node, weight, ones))[0])
    p = node.params
    return ConvOperator(
        weight,
        input_shape,
        stride=p["stride"],
        padding=p["padding"],
        dilation=p["dilation"],
        groups=p["groups"],
        padding_mode=p["padding_mode"],
        transposed=node.op == "conv_transpose",
        output_padding=p["output_padding"],
    )
