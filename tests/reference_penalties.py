"""Jacobian penalties the slow way: one sample and one output at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dense_jacobian(module: nn.Module, x: Tensor, output: str) -> Tensor:
    """J(x) of shape (C, D) of one sample, differentiable with respect to the parameters."""

    def function(flat: Tensor) -> Tensor:
        logits = module(flat.reshape(1, *x.shape))[0]
        return logits.exp() / logits.exp().sum() if output == "softmax" else logits

    return torch.autograd.functional.jacobian(function, x.flatten(), create_graph=True)


def mean_squared_jacobian(module: nn.Module, X: Tensor, output: str = "logits") -> Tensor:
    """Mean over the samples of tr(J^T J), the module in the mode it is in."""
    return sum(torch.trace(J.T @ J) for J in (dense_jacobian(module, x, output) for x in X)) / len(X)
