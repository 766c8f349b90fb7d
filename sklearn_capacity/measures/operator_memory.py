"""Memory that the norms of the weight layers' operators need at their peak."""

from __future__ import annotations

import math
from typing import Any

from ..graph import Network, Node
from ..linalg.torus import CHUNK, DENSE_PRODUCTS, DENSE_SIDE

__all__ = ["certificate_bytes", "norm_bytes"]


def norm_bytes(network: Network, batch: Any = None, **params: Any) -> float:
    """Bytes for norms from below, of the layer that needs most."""
    return max(map(_norm_bytes, network.weight_layers.nodes), default=0.0)


def certificate_bytes(network: Network, batch: Any = None, **params: Any) -> float:
    """Bytes for proven upper ends of these norms, of the layer that needs most."""
    return max((_norm_bytes(node) + _proof_bytes(node) for node in network.weight_layers.nodes), default=0.0)


def _norm_bytes(node: Node) -> float:
    assert node.weight is not None
    numbers = 2.0 * node.weight.numel()
    if node.op != "linear":  # vectors of an iteration, and the windows of a convolution
        numbers += 6 * (math.prod(node.params["input_shape"]) + math.prod(node.shape))
    if node.op in ("conv", "conv_transpose"):
        numbers += 4 * node.weight.numel() + node.weight[0].numel() * math.prod(node.shape[1:])
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
