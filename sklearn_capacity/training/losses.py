"""Training losses as skorch criteria: torch's losses with sample weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CRITERIA", "AbsoluteLoss", "CrossEntropyLoss", "SquaredLoss"]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean of w_i (-log softmax(logits_i)[y_i]); y are class indices."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return (F.cross_entropy(input, target, reduction="none") * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant logits with the smallest loss: the logarithms of the classes' frequencies."""
        frequencies = torch.bincount(target, sample_weight, minlength=n_outputs) / len(target)  # (n_outputs,)
        return frequencies.clamp_min(torch.finfo(frequencies.dtype).tiny).log()


class SquaredLoss(nn.MSELoss):
    """Mean of w_i times the squared error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return ((input - target).square().flatten(1).mean(dim=1) * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant prediction with the smallest loss: the mean."""
        return (target if sample_weight is None else target * sample_weight[:, None]).mean(dim=0)  # (n_outputs,)


class AbsoluteLoss(nn.L1Loss):
    """Mean of w_i times the absolute error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return ((input - target).abs().flatten(1).mean(dim=1) * sample_weight).mean()

    def best_constant(self, target: Tensor, n_outputs: int, sample_weight: Tensor | None = None) -> Tensor:
        """The constant prediction with the smallest loss: the median."""
        weight = torch.ones_like(target[:, 0]) if sample_weight is None else sample_weight
        values, order = target.sort(dim=0)  # (n, n_outputs)
        below = weight[order].cumsum(dim=0)  # total weight up to each value
        half = (below < weight.sum() / 2).sum(dim=0, keepdim=True)  # index of the first value that reaches one half
        return values.gather(0, half.clamp_max(len(values) - 1))[0]  # (n_outputs,)


CRITERIA: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "squared": SquaredLoss,
    "absolute": AbsoluteLoss,
}
