"""The three losses per sample, and their means over all the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch

__all__ = ["mean_error", "mean_loss", "sample_losses", "targets"]


def targets(batch: Batch) -> Tensor:
    """Class indices (n,) under cross-entropy, else targets (n, C)."""
    return batch.classes if batch.loss == "cross_entropy" else batch.y


def sample_losses(logits: Tensor, y: Tensor, loss: str | None) -> Tensor:
    """Loss of every sample, (n,); training minimises its mean.

    Cross-entropy in nats; (f - y)^2 and abs(f - y) as means over the outputs, as in `torch.nn.MSELoss`.
    """
    if loss == "cross_entropy":
        return F.cross_entropy(logits, y, reduction="none")
    difference = logits - y.to(logits.dtype)
    return (difference.square() if loss == "squared" else difference.abs()).mean(1)


def mean_loss(batch: Batch, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean loss of a function over all the data, float64, on the device."""

    def total(X: Tensor, y: Tensor) -> Tensor:
        return sample_losses(forward(X).double(), y, batch.loss).sum()

    return _mean(batch, total, targets(batch))


def mean_error(batch: Batch, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Fraction of the data that a function misclassifies, float64, on the device."""

    def total(X: Tensor, y: Tensor) -> Tensor:
        return (forward(X).argmax(1) != y).double().sum()

    return _mean(batch, total, batch.classes)


def _mean(batch: Batch, total: Callable[..., Tensor], *aligned: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack(batch.map(total, *aligned)).sum() / batch.n_samples
