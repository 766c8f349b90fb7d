"""Products of layer norms ([EG] section 2.1, [FR] section 3.3)."""

from __future__ import annotations

import math
from typing import Any

from ..graph import Network
from .batch import Batch
from .layers import as_operator, check_view, kernel_matrix, operator_norms
from .record import Measure, Measured

__all__ = ["MEASURES", "frobenius_norm", "spectral_norm"]


def frobenius_norm(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Product over the layers of the Frobenius norms of their weights.

    .. math:: \prod_{l=1}^d \|W_l\|_F

    Smaller goes with better generalisation. 0 if a layer is zero. Biases take no part; batch norm is folded.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        A convolution as its kernel, or as the linear operator at its input size, where every position counts.

    Returns
    -------
    Measured
        With one row per layer.

    Notes
    -----
    Weights only. On branching networks the product over all layers is a description and no bound.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(measure_capacity(net, measures="frobenius_norm")["frobenius_norm"], 6)
    5.0
    """
    check_view(view)
    rows = []
    for node in network.graph.layers:
        if view == "operator" and node.op in ("conv", "conv_transpose"):
            value = as_operator(network, node).frobenius_norm()
        else:
            value = float(kernel_matrix(node).norm()) * math.sqrt(_copies(network, node) if view == "operator" else 1)
        rows.append({"layer": node.label, "value": value})
    return product_of(rows)


def _copies(network: Network, node) -> int:  # type: ignore[no-untyped-def]
    """How often the operator of a dense or diagonal layer repeats its weight along axes it does not mix."""
    shape = math.prod(node.shape)
    return shape // (node.weight.shape[0] if node.op == "linear" else node.weight.numel())


def spectral_norm(network: Network, batch: Batch) -> Measured:
    r"""Product over the layers of the largest singular values of their weights.

    .. math:: \prod_{l=1}^d \|W_l\|_2

    Convolutions are taken as linear operators at the input size they see. Smaller goes with better generalisation.
    Biases take no part; batch norm is folded.

    Returns
    -------
    Measured
        With one row per layer: value, relative residual and steps of the bidiagonalisation.

    Notes
    -----
    Weights only: an exact SVD per matrix, about 20 to 60 convolutions with one sample per convolution. Golub-Kahan
    bidiagonalisation approaches from below, to a relative residual of 1e-7; certified quantities use upper ends. On
    branching networks the product over all layers is a description and no bound.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(measure_capacity(net, measures="spectral_norm")["spectral_norm"], 6)
    4.0
    """
    norms = operator_norms(network)
    return product_of(
        [
            {"layer": node.label, "value": norm.value, "residual": norm.residual, "steps": norm.steps}
            for node, norm in zip(network.graph.layers, norms, strict=True)
        ]
    )


def product_of(rows: list[dict]) -> Measured:
    """The product of the rows' values, through their logarithms, so that no depth overflows."""
    log = sum(math.log(row["value"]) if row["value"] > 0 else -math.inf for row in rows)
    return Measured.from_log(log, per_layer=rows)


_NORM: dict[str, Any] = {"family": "norm", "lower_is_better": True, "needs": frozenset({"graph"})}
_PER_LAYER = frozenset({"permutation", "layer_rescaling"})

MEASURES = (
    Measure("frobenius_norm", frobenius_norm, source="[EG] 2.1, [FR] 3.3", invariances=_PER_LAYER, **_NORM),
    Measure("spectral_norm", spectral_norm, source="[EG] 2.1, [FR] 3.3", invariances=_PER_LAYER, **_NORM),
)
