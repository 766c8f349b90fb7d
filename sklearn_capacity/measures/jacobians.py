"""Norms of the input-output Jacobian ([JR] sections III and V)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._validation import check_option
from ..graph import Network
from ..products.jacobian import OUTPUTS, apply_output, jacobian_products
from .batch import Batch
from .record import Measure, Measured

__all__ = ["MEASURES", "jacobian_frobenius", "jacobian_gram", "jacobian_spectral"]

REDUCTIONS = ("max", "mean")


def jacobian_gram(network: Network, batch: Batch, output: str = "logits") -> Tensor:
    """J(x) J(x)^T of every sample, (n, C, C), float64, from one backward pass per class; kept for the call."""
    check_option("output", output, OUTPUTS)

    def gram(X: Tensor) -> Tensor:
        rows = torch.stack([row.flatten(1) for row in jacobian_products(network.forward, X)], dim=1)
        rows = rows.double()
        return rows @ rows.transpose(1, 2)

    logits_gram = batch.once("jacobian_gram", lambda: batch.cat(gram))
    if output == "logits":
        return logits_gram
    # softmax's own Jacobian diag(p) - p p^T acts on the left of J and is symmetric
    p = apply_output(batch.logits, "softmax")
    outer = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return outer @ logits_gram @ outer


def jacobian_frobenius(network: Network, batch: Batch, *, output: str = "logits") -> Measured:
    r"""Mean over the data of the squared Frobenius norm of the input-output Jacobian.

    .. math:: \frac{1}{m} \sum_i \|J(x_i)\|_F^2

    Smaller goes with better generalisation.

    Parameters
    ----------
    output : "logits" or "softmax", default="logits"
        The function whose Jacobian is meant; [JR] differentiates through the softmax.

    Notes
    -----
    One backward pass per class.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, eq. 49.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> measure_capacity(net, torch.ones(1, 2), measures="jacobian_frobenius", loss="squared")
    {'jacobian_frobenius': 25.0}
    """
    gram = jacobian_gram(network, batch, output)
    return Measured(float(gram.diagonal(dim1=1, dim2=2).sum(1).mean()))


def jacobian_spectral(
    network: Network, batch: Batch, *, reduction: str = "max", output: str = "logits"
) -> Measured:
    r"""Largest singular value of the input-output Jacobian over the data.

    .. math:: \max_i \|J(x_i)\|_2

    Smaller goes with better generalisation.

    Parameters
    ----------
    reduction : "max" or "mean", default="max"
        Over the samples.
    output : "logits" or "softmax", default="logits"
        [JR] differentiates through the softmax (its figure 4c falls with depth; on logits the quantity rises).

    Notes
    -----
    One backward pass per class and an eigenvalue problem of size C per sample.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, theorem 3 and eq. 48.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> measure_capacity(net, torch.ones(1, 2), measures="jacobian_spectral", loss="squared")
    {'jacobian_spectral': 4.0}
    """
    check_option("reduction", reduction, REDUCTIONS)
    largest = torch.linalg.eigvalsh(jacobian_gram(network, batch, output))[:, -1].clamp_min(0).sqrt()
    return Measured(float(largest.max() if reduction == "max" else largest.mean()))


_JACOBIAN: dict[str, Any] = {
    "family": "jacobian",
    "lower_is_better": True,
    "needs": frozenset({"data"}),
    "cost": "jacobian",
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
}

MEASURES = (
    Measure("jacobian_frobenius", jacobian_frobenius, source="[JR] eq. 49", unit="(logit / input)^2", **_JACOBIAN),
    Measure("jacobian_spectral", jacobian_spectral, source="[JR] eq. 48", unit="logit / input", **_JACOBIAN),
)
