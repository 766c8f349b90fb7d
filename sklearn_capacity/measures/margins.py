"""Margins of the logits ([EG] section 2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validation import check_interval
from ..graph import Network
from .batch import Batch
from .record import Measure, Measured, NotDefinedError

__all__ = ["MEASURES", "margin", "margins_of", "min_margin"]


def margins_of(logits: Tensor, classes: Tensor) -> Tensor:
    """f_y - max_{k != y} f_k per sample, (n,); its sign is kept: negative where the sample is misclassified."""
    if logits.shape[1] < 2:
        raise NotDefinedError(f"A margin needs at least two logits, got {logits.shape[1]}.")
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return (own - others.amax(1, keepdim=True)).squeeze(1)


def sample_margins(batch: Batch) -> np.ndarray:
    return batch.once("margins", lambda: margins_of(batch.logits, batch.classes).cpu().numpy())


def margin(network: Network, batch: Batch, *, percentile: float = 5.0) -> Measured:
    r"""Percentile over the data of the margin of the logits.

    .. math:: f_y(x) - \max_{k \ne y} f_k(x)

    Larger goes with better generalisation. Negative where more than `percentile` per cent of the samples are
    misclassified.

    Parameters
    ----------
    percentile : float in [0, 100], default=5
        Linear interpolation, as in :func:`numpy.percentile`.

    Notes
    -----
    One forward pass, shared with every other measure of the call.

    References
    ----------
    Neyshabur et al. (2017), Exploring generalization in deep learning, section 2.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 1.0], [0.0, 5.0]])  # logits of the identity
    >>> measure_capacity(nn.Identity(), X, torch.tensor([0, 1]), {"m": ("margin", {"percentile": 50})})
    {'m': 3.5}
    """
    check_interval("percentile", percentile, 0, 100)
    return Measured(float(np.percentile(sample_margins(batch), percentile)))


def min_margin(network: Network, batch: Batch) -> Measured:
    r"""Smallest margin of the logits over the data.

    .. math:: \min_i \big( f_{y_i}(x_i) - \max_{k \ne y_i} f_k(x_i) \big)

    Larger goes with better generalisation; negative if a sample is misclassified. One shared forward pass.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    >>> measure_capacity(nn.Identity(), X, torch.tensor([0, 1]), "min_margin")
    {'min_margin': 2.0}
    """
    return Measured(float(sample_margins(batch).min()))


_MARGIN: dict[str, Any] = {
    "family": "margin",
    "lower_is_better": False,
    "source": "[EG] 2.1",
    "needs": frozenset({"data", "labels"}),
    "cost": "forward",
    "unit": "logit",
    "tasks": ("classification",),
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
    "signed": True,
}

MEASURES = (Measure("margin", margin, **_MARGIN), Measure("min_margin", min_margin, **_MARGIN))
