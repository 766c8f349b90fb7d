"""Margins divided by a capacity, so that rescaling the weights cannot make them large."""

from __future__ import annotations

import math
from typing import Any

from ..graph import Network
from .batch import Batch
from .fisher_rao import TANGENT, fisher_rao_norm, tangent_limits
from .layer_operators import as_operator, left_out, norm_bytes, operator_norm, repetitions, weight_layers
from .margins import margin_percentile
from .memory import Peak
from .norms import warn_of_zeros
from .pass_limits import LOGITS
from .record import Measure, Measured, logarithm

__all__ = [
    "MEASURES",
    "fisher_rao_normalized_margin",
    "normalized",
    "spectrally_normalized_margin",
]


def spectrally_normalized_margin(network: Network, batch: Batch, *, percentile: float = 5.0) -> Measured:
    r"""Percentile of the margin, divided by the spectral complexity of the weights.

    .. math:: \gamma / R, \quad R = \prod_{l=1}^d s_l \,
              \Big( \sum_{l=1}^d \big( \|W_l^\top\|_{2,1} / s_l \big)^{2/3} \Big)^{3/2}

    :math:`s_l = \|W_l\|_2`, and :math:`\|W_l^\top\|_{2,1}` is the sum over the units of the Euclidean norm of their
    incoming weights; convolutions are treated as linear operators at their input size, and compared with zero weights.
    Larger values suggest better generalisation; negative like `margin`. If a layer is zero, R is 0 and the value is
    infinite with the margin's sign. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    percentile : float in [0, 100], default=5
        Linear interpolation, as in :func:`numpy.percentile`.

    Returns
    -------
    Measured
        With one row per layer: the spectral norm, and the (2, 1) norm as "value_21".

    Notes
    -----
    The cost is one forward pass and the operator norms. On branching networks R is descriptive and not a bound.

    References
    ----------
    Bartlett, Foster, Telgarsky (2017), Spectrally-normalized margin bounds for neural networks, eq. 1.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[7.0, 0.0]]), torch.tensor([0])  # margin 21, R = 4 * (7 / 4)
    >>> round(measure_capacity(net, X, y, "spectrally_normalized_margin")["spectrally_normalized_margin"], 6)
    3.0
    """
    margin = margin_percentile(batch, percentile)
    rows = _layer_rows(network)
    return Measured(normalized(margin, _log_complexity(rows)), per_layer=rows, info=left_out(network))


def fisher_rao_normalized_margin(network: Network, batch: Batch, *, percentile: float = 5.0) -> Measured:
    r"""Percentile of the margin, divided by the Fisher-Rao norm.

    .. math:: \gamma / \|\theta\|_{fr}

    The norm is `fisher_rao_norm` with its defaults: empirical, over all parameters. Larger values suggest better
    generalisation; negative like `margin`. If the norm is 0, infinite with the margin's sign.

    Parameters
    ----------
    percentile : float in [0, 100], default=5
        Linear interpolation, as in :func:`numpy.percentile`.

    Returns
    -------
    Measured

    Notes
    -----
    The cost is one forward pass and the tangent sweep, both shared with other measures.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, section 5.

    Examples
    --------
    For one sample and a linear model, u = f, so the norm is the absolute inner product of p - e_y and f.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[0.5], [-0.5]]))
    >>> X, y = torch.tensor([[3.0]]).log(), torch.tensor([0])  # p = (3/4, 1/4), margin log 3, norm log(3) / 4
    >>> round(measure_capacity(net, X, y, "fisher_rao_normalized_margin")["fisher_rao_normalized_margin"], 5)
    4.0
    """
    margin = margin_percentile(batch, percentile)
    return Measured(normalized(margin, logarithm(fisher_rao_norm(network, batch).value)))


def normalized(margin: float, log_norm: float) -> float:
    """The margin divided by a norm given by its logarithm; for norm 0, infinite with the margin's sign."""
    if margin == 0:
        return 0.0
    return math.copysign(Measured.from_log(math.log(abs(margin)) - log_norm).value, margin)


def _layer_rows(network: Network) -> list[dict]:
    layers = weight_layers(network, "A spectrally normalised margin")

    def row_norms() -> list[float]:
        return [float(as_operator(network, node).row_norms(2).sum()) * repetitions(node) for node in layers]

    norms = network.once("21_norms", row_norms)
    rows = [
        {"layer": node.label, "value": operator_norm(network, node).value, "value_21": norm_21}
        for node, norm_21 in zip(layers, norms, strict=True)
    ]
    warn_of_zeros(network, rows)
    return rows


def _log_complexity(rows: list[dict]) -> float:
    """Logarithm of Bartlett, Foster and Telgarsky's R, with zero as the reference weights."""
    if any(row["value"] == 0 for row in rows):
        return -math.inf
    product = sum(math.log(row["value"]) for row in rows)
    return product + 1.5 * logarithm(sum((row["value_21"] / row["value"]) ** (2 / 3) for row in rows))


_NORMALIZED: dict[str, Any] = {
    "family": "margin",
    "lower_is_better": False,
    "cost": "forward",
    "tasks": ("classification",),
    "signed": True,
}

MEASURES = (
    Measure(
        "spectrally_normalized_margin",
        spectrally_normalized_margin,
        source="Bartlett et al. 2017, eq. 1.2",
        needs=frozenset({"layers", "data", "labels"}),
        invariances=frozenset({"permutation", "layer_rescaling"}),
        unit="input",
        memory=Peak(layers=3, outputs=3, more=norm_bytes),
        limits=LOGITS,
        **_NORMALIZED,
    ),
    Measure(
        "fisher_rao_normalized_margin",
        fisher_rao_normalized_margin,
        source="[FR] section 5",
        needs=frozenset({"data", "labels", "loss"}),
        invariances=frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
        unit="1 / nat",
        memory=TANGENT,
        limits=lambda network, batch, **params: {**tangent_limits(network, batch), "logits": 1},
        **_NORMALIZED,
    ),
)
