"""Margins of the logits ([EG] section 2.2) and of the softmax ([JR] section IV)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validation import check_interval
from ..graph import Network
from .batch import Batch
from .memory import Peak
from .pass_limits import LOGITS
from .record import Measure, Measured, NotDefinedError

__all__ = ["MEASURES", "margin", "margin_percentile", "margins_of", "min_margin", "sample_margins", "softmax_score"]


def margins_of(logits: Tensor, classes: Tensor) -> Tensor:
    """f_y - max_{k != y} f_k per sample, (n,); negative where the sample is misclassified."""
    if logits.shape[1] < 2:
        raise NotDefinedError(f"A margin needs at least two logits, got {logits.shape[1]}.")
    labelled = logits.gather(1, classes[:, None])  # (n, 1)
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return (labelled - others.amax(1, keepdim=True)).squeeze(1)


def sample_margins(batch: Batch) -> np.ndarray:
    """The margins of all samples, (n,), computed once per call."""
    return batch.once("margins", lambda: margins_of(batch.logits, batch.classes).cpu().numpy())


def margin_percentile(batch: Batch, percentile: float) -> float:
    """Percentile of the samples' margins, interpolated linearly."""
    check_interval("percentile", percentile, 0, 100)
    return float(np.percentile(sample_margins(batch), percentile))


def margin(network: Network, batch: Batch, *, percentile: float = 5.0) -> Measured:
    r"""Percentile over the data of the margin of the logits.

    .. math:: f_y(x) - \max_{k \ne y} f_k(x)

    Larger values suggest better generalisation. Negative if more than `percentile` per cent of the samples are
    misclassified.

    Parameters
    ----------
    percentile : float in [0, 100], default=5
        Linear interpolation, as in :func:`numpy.percentile`.

    Notes
    -----
    The cost is one forward pass, shared by all measures of the call.

    References
    ----------
    Neyshabur et al. (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 1.0], [0.0, 5.0]])  # logits of the identity
    >>> measure_capacity(nn.Identity(), X, torch.tensor([0, 1]), {"m": ("margin", {"percentile": 50})})
    {'m': 3.5}
    """
    return Measured(margin_percentile(batch, percentile))


def min_margin(network: Network, batch: Batch) -> Measured:
    r"""Smallest margin of the logits over the data.

    .. math:: \min_i \big( f_{y_i}(x_i) - \max_{k \ne y_i} f_k(x_i) \big)

    Larger values suggest better generalisation; negative if a sample is misclassified.

    Notes
    -----
    The cost is one forward pass, shared by all measures of the call.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

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


def softmax_score(network: Network, batch: Batch) -> Measured:
    r"""Smallest score of the data on softmax outputs.

    .. math:: \min_i \min_{j \ne y_i} \sqrt{2} \, (z_{y_i} - z_j), \quad z = \mathrm{softmax}(f(x_i))

    Between -sqrt(2) and sqrt(2); larger values suggest better generalisation; negative if a sample is misclassified.
    Use it only for comparison with the published figure: the certified radii of `input_margin_bound` use another
    constant.

    Returns
    -------
    Measured

    Notes
    -----
    The cost is one forward pass, shared by all measures of the call.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, eq. 33 and figure 4b.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 0.0]]).log1p()  # odds of 4 to 1
    >>> round(measure_capacity(nn.Identity(), X, torch.tensor([0]), "softmax_score")["softmax_score"], 4)
    0.8485
    """
    z = batch.logits.softmax(1)  # (n, C)
    return Measured(math.sqrt(2) * float(margins_of(z, batch.classes).min()))


_MARGIN: dict[str, Any] = {
    "family": "margin",
    "lower_is_better": False,
    "needs": frozenset({"data", "labels"}),
    "cost": "forward",
    "tasks": ("classification",),
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
    "signed": True,
    "memory": Peak(outputs=3),
    "limits": LOGITS,
}

MEASURES = (
    Measure("margin", margin, source="[EG] 2.2", unit="logit", **_MARGIN),
    Measure("min_margin", min_margin, source="[EG] 2.2", unit="logit", **_MARGIN),
    Measure("softmax_score", softmax_score, source="[JR] eq. 33", **_MARGIN),
)
