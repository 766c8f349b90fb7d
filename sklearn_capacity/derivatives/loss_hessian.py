"""Gradient of a loss with respect to the parameters, and products with its Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .double_backward import twice_differentiable

__all__ = ["LossHessian"]


class LossHessian:
    """First and second derivatives of a mean of sample losses at some parameters.

    The second derivative is that of automatic differentiation: at a kink of a rectifier, of max pooling or of an
    absolute value, which data hit with probability 0, it is that of one side, so the curvature is the one that holds
    almost everywhere. Contributions of the kinks themselves (jumps of the gradient) are not included.

    Parameters
    ----------
    loss : callable of (list of Tensor, *samples)
        Sum of the losses of some samples, as a function of tensors that replace the parameters.
    parameters : sequence of Tensor
        All of one dtype on one device; never modified.
    in_chunks : callable
        Calls a function on consecutive chunks of the samples, smaller ones if memory runs out, like `Batch.map`.
    n_samples : int

    Attributes
    ----------
    size : int
        Number P of parameters, and of rows of the Hessian.
    dtype, device
        Dtype and device of the parameters.

    Examples
    --------
    The loss (w x)^2 has the second derivative 2 x^2, whose mean over x = 1 and x = 3 is 10.

    >>> import torch
    >>> X = torch.tensor([1.0, 3.0])
    >>> loss = LossHessian(lambda w, x: (w[0] * x).square().sum(), [torch.ones(1)], lambda f: [f(X)], 2)
    >>> loss.gradient().tolist(), loss.product(torch.ones(1)).tolist()
    ([10.0], [10.0])
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        parameters: Sequence[Tensor],
        in_chunks: Callable[[Callable[..., Any]], Any],
        n_samples: int,
    ):
        self._loss = loss
        self._points = [p.detach().requires_grad_(True) for p in parameters]
        self._in_chunks = in_chunks
        self._n_samples = n_samples
        self._sizes = [p.numel() for p in parameters]
        self.size = sum(self._sizes)
        self.dtype, self.device = self._points[0].dtype, self._points[0].device
        # If all samples fit into memory at once, the graph of their gradient is reused by every product.
        self._kept: Sequence[Tensor | None] | None = None

    def gradient(self) -> Tensor:
        """Gradient of the mean loss, (P,) in float64."""

        def on_chunk(*samples: Tensor) -> list[Sequence[Tensor | None]]:
            with torch.enable_grad():
                value = self._loss(self._points, *samples)
            return [self._derived([value], [None], create_graph=False)]

        return self._mean(on_chunk, 1)[0]

    def product(self, direction: Tensor) -> Tensor:
        """Hessian times a vector of shape (P,), in float64."""
        return self.products(direction[:, None])[:, 0]

    def products(self, directions: Tensor) -> Tensor:
        """Hessian times every column of a matrix of shape (P, k), in float64; all columns share one gradient."""
        columns = [self._split(direction) for direction in directions.T]  # k lists of tensors in the parameters' shapes

        def on_chunk(*samples: Tensor) -> list[Sequence[Tensor | None]]:
            gradients = self._gradients(samples)
            return [self._along(gradients, column) for column in columns]

        return self._mean(on_chunk, len(columns)).T

    def _mean(self, on_chunk: Callable[..., list[Sequence[Tensor | None]]], n_rows: int) -> Tensor:
        """Rows of shape (P,), from the rows of every chunk in the parameters' shapes; None stands for zeros."""
        total = torch.empty(n_rows, self.size, dtype=torch.float64, device=self.device)  # (rows, P)
        empty = True

        def add(*samples: Tensor) -> None:
            nonlocal empty
            # Added last and in place, so that a chunk that ran out of memory has added nothing.
            for row, tensors in zip(total, on_chunk(*samples), strict=True):
                for place, tensor in zip(row.split(self._sizes), tensors, strict=True):
                    if tensor is not None:
                        place.copy_(tensor.flatten()) if empty else place.add_(tensor.flatten())
                    elif empty:
                        place.zero_()
            empty = False

        self._in_chunks(add)
        return total.div_(self._n_samples)

    def _gradients(self, samples: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Gradients of the summed losses of some samples, which can be differentiated again."""
        whole = len(samples[0]) == self._n_samples
        if whole and self._kept is not None:
            return self._kept
        self._kept = None
        with twice_differentiable():
            value = self._loss(self._points, *samples)
            gradients = self._derived([value], [None], create_graph=True)  # in the parameters' shapes, with a graph
        if whole:
            self._kept = gradients
        return gradients

    def _along(self, gradients: Sequence[Tensor | None], column: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """H v = d<g, v>/dw, since the Hessian is symmetric: one reverse pass through the graph of the gradient."""
        pairs = [(g, v) for g, v in zip(gradients, column, strict=True) if g is not None]
        return self._derived([g for g, _ in pairs], [v for _, v in pairs], retain_graph=True)

    def _derived(
        self, values: Sequence[Tensor], along: Sequence[Tensor | None], **options: bool
    ) -> Sequence[Tensor | None]:
        """Gradient of the inner products of values and vectors; None for parameters that no value depends on."""
        moved = [(value, v) for value, v in zip(values, along, strict=True) if value.requires_grad]
        if not moved:
            return [None] * len(self._points)
        values, along = zip(*moved, strict=True)
        return torch.autograd.grad(values, self._points, along, allow_unused=True, **options)

    def _split(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.to(self._points[0]).split(self._sizes)  # (size of a parameter,) each
        return [piece.view(p.shape) for piece, p in zip(pieces, self._points, strict=True)]
