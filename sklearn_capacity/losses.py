"""The losses: which of them are of classifiers, their values per sample, and the criteria that training minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CLASSIFICATION",
    "CRITERIA",
    "REGRESSION",
    "AbsoluteLoss",
    "CrossEntropyLoss",
    "HingeLoss",
    "SquaredLoss",
    "is_classification",
    "nearest_rivals",
    "sample_losses",
]

CLASSIFICATION = ("cross_entropy", "hinge")
REGRESSION = ("squared", "absolute")


def is_classification(loss: str | None) -> bool:
    """Whether the targets of a loss are class indices."""
    return loss in CLASSIFICATION


def sample_losses(outputs: Tensor, y: Tensor, loss: str | None) -> Tensor:
    """Loss of every sample, (n,); training minimises its mean.

    Cross-entropy in nats; the hinge loss max(0, 1 - margin) of Crammer and Singer, as in `sklearn.metrics.hinge_loss`;
    (f - y)^2 and abs(f - y) as means over the outputs, as in `torch.nn.MSELoss`.

    Parameters
    ----------
    outputs : Tensor of shape (n, C)
    y : Tensor
        Class indices (n,), or targets (n, C).
    loss : one of `CLASSIFICATION` or `REGRESSION`
    """
    if loss == "cross_entropy":
        return F.cross_entropy(outputs, y, reduction="none")
    if loss == "hinge":
        index = y[:, None]  # (n, 1)
        margins = outputs.gather(1, index) - outputs.gather(1, nearest_rivals(outputs, y))  # (n, 1)
        return F.relu(1 - margins).squeeze(1)
    difference = outputs - y.to(outputs.dtype)
    return (difference.square() if loss == "squared" else difference.abs()).flatten(1).mean(1)


def nearest_rivals(logits: Tensor, y: Tensor) -> Tensor:
    """Index of the largest logit among the other classes, (n, 1)."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean of w_i (-log softmax(logits_i)[y_i]); y are class indices."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return (sample_losses(input, target, "cross_entropy") * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant logits with the smallest loss: the logarithms of the classes' frequencies."""
        frequencies = torch.bincount(target, sample_weight, minlength=n_outputs) / len(target)  # (n_outputs,)
        return frequencies.clamp_min(torch.finfo(frequencies.dtype).tiny).log()


class HingeLoss(nn.Module):
    """Mean of w_i max(0, 1 + the largest other logit - logits_i[y_i]); y are class indices.

    This is Crammer and Singer's loss. `torch.nn.MultiMarginLoss` adds the terms of all other classes instead.
    """

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        losses = sample_losses(input, target, "hinge")  # (n,)
        return (losses if sample_weight is None else losses * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant logits with the smallest loss: one for a class of more than half of the weight, else zeros.

        With the largest logit d <= 1 above the next, for a class of frequency p, the loss is at least
        p (1 - d) + (1 - p) (1 + d) = 1 + d (1 - 2 p).
        """
        weight = torch.ones(len(target), device=target.device) if sample_weight is None else sample_weight
        totals = torch.bincount(target, weight, minlength=n_outputs)  # (n_outputs,)
        return (totals > weight.sum() / 2).to(totals.dtype)


class SquaredLoss(nn.MSELoss):
    """Mean of w_i times the squared error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return (sample_losses(input, target, "squared") * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant prediction with the smallest loss: the mean."""
        return (target if sample_weight is None else target * sample_weight[:, None]).mean(dim=0)  # (n_outputs,)


class AbsoluteLoss(nn.L1Loss):
    """Mean of w_i times the absolute error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return (sample_losses(input, target, "absolute") * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant prediction with the smallest loss: the median."""
        weight = torch.ones_like(target[:, 0]) if sample_weight is None else sample_weight
        values, order = target.sort(dim=0)  # (n, n_outputs)
        below = weight[order].cumsum(dim=0)  # total weight up to each value
        half = (below < weight.sum() / 2).sum(dim=0, keepdim=True)  # index of the first value that reaches one half
        return values.gather(0, half.clamp_max(len(values) - 1))[0]  # (n_outputs,)


CRITERIA: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "hinge": HingeLoss,
    "squared": SquaredLoss,
    "absolute": AbsoluteLoss,
}
