"""How large a network is."""

from __future__ import annotations

from ..graph import Network
from .batch import Batch
from .record import Measure, Measured

__all__ = ["MEASURES", "parameter_count"]


def parameter_count(network: Network, batch: Batch) -> Measured:
    """Number of trainable parameters.

    Every parameter of the module as it stands (batch norm not folded, a tied tensor counted once, a frozen one not).

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> measure_capacity(nn.Linear(3, 2), measures="parameter_count")["parameter_count"]
    8.0
    """
    return Measured(float(network.parameter_count))


MEASURES = (
    Measure(
        "parameter_count",
        parameter_count,
        family="size",
        lower_is_better=True,
        source="[EG] eq. 1",
        needs=frozenset({"weights"}),
        unit="parameters",
        invariances=frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
    ),
)
