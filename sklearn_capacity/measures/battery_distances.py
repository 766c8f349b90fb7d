"""The battery of Jiang et al. (2020): distances of the layers from their weights before training, or from zero."""

from __future__ import annotations

import math
from typing import Any

import torch

from .._validation import check_option
from ..graph import Network, Node, operator_of
from ..graph.weight_layers import weight_layers as weight_layers_of
from ..linalg.entry_norms import stable_norm
from .batch import Batch
from .battery import (
    JIANG,
    NORMS,
    PER_LAYER,
    layer_norms,
    log_squared_margin,
    margin_limits,
    norm_layers,
    squared_ratios,
    summed,
)
from .layer_operators import kernel_matrix, layer_weight, norm_bytes
from .memory import Peak
from .record import Measure, Measured, NotDefinedError, logarithm

__all__ = ["MEASURES", "check_initial_state", "log_spec_main", "sum_of_squares"]

CENTERS = ("init", "orig")


def log_spec_main(network: Network, batch: Batch, *, center: str = "init", margin_percentile: float = 10.0) -> Measured:
    r"""Logarithm of the main term of the spectrally normalised margin bound.

    .. math::
        \ln \prod_{l=1}^d \|W_l\|_2^2 + \ln \sum_{l=1}^d \frac{\|W_l - W_l^0\|_F^2}{\|W_l\|_2^2} - 2 \ln \gamma

    :math:`W_l^0` are the weights before training, or zero (``center="orig"``). Norms and margin are those of
    `log_of_norms`. Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin
    is not positive. Biases are ignored; batch norm is folded, before training with the statistics it had then.

    Parameters
    ----------
    center : "init" or "orig", default="init"
    margin_percentile : float in [0, 100], default=10
        As for `log_of_norms`.

    Raises
    ------
    NotDefinedError
        If the weights before training are needed and not known.

    Notes
    -----
    Weights only, and a shared forward pass for the margin.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eqs. 29 and 30.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> round(measure_capacity(net, X, y, "log_spec_orig_main")["log_spec_orig_main"], 4)  # ln (16 * 25 / 16 / 9)
    1.0217
    """
    check_option("center", center, CENTERS)
    log_margin = log_squared_margin(batch, margin_percentile)
    spectral = layer_norms(network, "spectral")
    lengths = layer_norms(network, "frobenius") if center == "orig" else _changes(network, "frobenius")
    if log_margin == -math.inf:
        return Measured(math.inf)
    if 0.0 in spectral:
        return Measured(-math.inf)
    total = math.fsum(squared_ratios(network, lengths))
    return Measured(2 * math.fsum(math.log(norm) for norm in spectral) + logarithm(total) - log_margin)


def sum_of_squares(network: Network, batch: Batch, *, norm: str = "frobenius", center: str = "init") -> Measured:
    r"""Sum over the layers of the squared norms of their weights, or of the differences from those before training.

    .. math:: \sum_{l=1}^d \|W_l - W_l^0\|^2

    :math:`W_l^0` are the weights before training, or zero (``center="orig"``). The Frobenius norm is that of matrices
    and kernels, the spectral norm that of convolutions as linear operators. Smaller values suggest better
    generalisation. Biases are ignored; batch norm is folded, with its initial statistics for the weights before
    training, whereas `distance_from_initialization` leaves it out.

    Parameters
    ----------
    norm : "frobenius" or "spectral", default="frobenius"
    center : "init" or "orig", default="init"

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    NotDefinedError
        If the weights before training are needed and not known.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eqs. 40 to 42.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> before = {"weight": torch.eye(2)}
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> values = measure_capacity(net, measures=["fro_dist", "dist_spec_init", "param_norm"], initial_state=before)
    >>> [round(value, 6) for value in values.values()]  # 4 + 9, 9, 9 + 16
    [13.0, 9.0, 25.0]
    """
    check_option("norm", norm, NORMS)
    check_option("center", center, CENTERS)
    lengths = layer_norms(network, norm) if center == "orig" else _changes(network, norm)
    return summed(network, [length**2 for length in lengths])


def _changes(network: Network, norm: str) -> list[float]:
    """Every layer's norm of the difference from the weights before training, both with batch norm folded."""
    check_initial_state(network)
    layers = norm_layers(network)

    def length(node: Node, start: Node) -> float:
        if norm == "spectral":
            change = layer_weight(node) - layer_weight(start)
            return operator_of(node, change, node.params["input_shape"]).norm_lower().value
        return float(stable_norm((kernel_matrix(node) - kernel_matrix(start)).flatten(), 2))

    def compute() -> list[float]:
        with torch.no_grad():
            before = weight_layers_of(network.program.bind(network.initial_tensors()), shown=network.shown).nodes
        return [length(node, start) for node, start in zip(layers, before, strict=True)]

    return network.once(("folded_changes", norm), compute)


def check_initial_state(network: Network) -> None:
    """Raise if the weights before training are not known."""
    if network.initial_state is None:
        reason = "needs the weights before training: pass the untrained module or its state dict as `initial_state`."
        raise NotDefinedError(f"This measure {reason}", reason=reason)


#: Norms of the operators, then of the differences from a folded copy of the weights before training.
_DIFFERENCES = Peak(vectors=1, layers=3, outputs=3, more=norm_bytes)
_RECORD: dict[str, Any] = {"family": "battery", "memory": _DIFFERENCES, "limits": margin_limits}
_DISTANCE = frozenset({"layers", "initial_state"})

MEASURES = (
    *(
        Measure(
            f"log_spec_{center}_main",
            log_spec_main,
            source=f"{JIANG}{equation}",
            needs=frozenset({"layers", "data", "labels"} | ({"initial_state"} if center == "init" else set())),
            cost="forward",
            tasks=("classification",),
            invariances=PER_LAYER if center == "orig" else frozenset(),
            signed=True,
            fixed={"center": center},
            description=f"Logarithm of the main term of the spectral margin bound, with distances from {start}.",
            **_RECORD,
        )
        for center, equation, start in (("init", 29, "the weights before training"), ("orig", 30, "zero"))
    ),
    Measure(
        "fro_dist",
        sum_of_squares,
        source=f"{JIANG}40",
        needs=_DISTANCE,
        fixed={"norm": "frobenius", "center": "init"},
        description="Sum over the layers of the squared Frobenius distance from the weights before training.",
        **_RECORD,
    ),
    Measure(
        "dist_spec_init",
        sum_of_squares,
        source=f"{JIANG}41",
        needs=_DISTANCE,
        fixed={"norm": "spectral", "center": "init"},
        description="Sum over the layers of the squared spectral distance from the weights before training.",
        **_RECORD,
    ),
    Measure(
        "param_norm",
        sum_of_squares,
        source=f"{JIANG}42",
        needs=frozenset({"layers"}),
        invariances=frozenset({"permutation"}),
        fixed={"norm": "frobenius", "center": "orig"},
        description="Sum over the layers of the squared Frobenius norm.",
        **_RECORD,
    ),
)
