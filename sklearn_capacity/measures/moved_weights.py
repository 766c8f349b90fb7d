"""Gradients of the loss at weights that move away from those of the network, on mini-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..derivatives.parameter_vector import ParameterVector
from ..derivatives.perturbation import FlatParameters
from ..graph import Network
from ..losses import sample_losses
from .batch import Batch
from .losses import targets

__all__ = ["MovedWeights"]


class MovedWeights:
    """A network whose weights lie in a vector that can be moved, and gradients of its loss on mini-batches there."""

    def __init__(self, network: Network, batch: Batch, vector: ParameterVector, *, batch_size: int):
        self.network, self.batch, self.y = network, batch, targets(batch)
        self.theta = FlatParameters(vector.tensors)
        self.leaves = [view.detach().requires_grad_(True) for view in self.theta.views]
        self.forward = vector.bind(self.leaves)
        self.batch_size = min(batch_size, batch.n_samples)
        self.chunk_size = batch.chunk_size

    def samples(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Indices of mini-batches: shuffled passes over the data, without end."""
        while True:
            order = torch.randperm(self.batch.n_samples, generator=generator, device="cpu").to(self.network.device)
            yield from order.split(self.batch_size)

    def gradients(self, index: Tensor) -> list[Tensor]:
        """Gradient of the mean loss over some samples, in chunks if they do not fit into memory."""

        def gradients(X: Tensor, y: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                total = sample_losses(self.forward(X), y, self.batch.loss).sum() / len(index)
                return list(torch.autograd.grad(total, self.leaves, allow_unused=True, materialize_grads=True))

        mini = Batch(self.network, self.batch.X[index], batch_size=self.chunk_size, budget=self.batch.budget)
        parts = mini.map(gradients, self.y[index])
        self.chunk_size = mini.chunk_size
        for part in parts[1:]:
            torch._foreach_add_(parts[0], part)
        return parts[0]
