"""Means of the loss and of the error over all the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..losses import is_classification, sample_losses
from .batch import Batch

__all__ = ["mean_error", "mean_loss", "targets"]


def targets(batch: Batch) -> Tensor:
    """Class indices (n,) under a loss of classifiers, else targets (n, C)."""
    return batch.classes if is_classification(batch.loss) else batch.y


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
