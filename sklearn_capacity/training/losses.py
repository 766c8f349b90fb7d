"""Training losses as skorch criteria: torch's own, with a weight for each sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CRITERIA", "AbsoluteLoss", "CrossEntropyLoss", "SquaredLoss"]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean of w_i (-log softmax(logits_i)[y_i]); y are class indices."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return (F.cross_entropy(input, target, reduction="none") * sample_weight).mean()


class SquaredLoss(nn.MSELoss):
    """Mean of w_i times the squared error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return ((input - target).square().flatten(1).mean(dim=1) * sample_weight).mean()


class AbsoluteLoss(nn.L1Loss):
    """Mean of w_i times the absolute error, averaged over the outputs."""

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is None:
            return super().forward(input, target)
        return ((input - target).abs().flatten(1).mean(dim=1) * sample_weight).mean()


CRITERIA: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "squared": SquaredLoss,
    "absolute": AbsoluteLoss,
}
