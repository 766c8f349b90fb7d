"""Gradients in closed form: summed per tensor, and attached to a penalty's value for autograd."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity.derivatives.sweep_rules import weight_gradient
from sklearn_capacity.graph import Node
from sklearn_capacity.linalg.product import product

__all__ = ["Gradients", "wants"]


class _WithGradient(torch.autograd.Function):
    """A value whose gradients are already known, up to the factor that its backward pass receives.

    Every gradient is a tensor, or a sum of products g^T t in factored form (see :class:`Gradients`). All are saved with
    autograd's saved tensors: they are freed after the backward pass unless the graph is retained.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float, sums: list[_Sum], *tensors: Tensor) -> Tensor:
        ctx.factor, ctx.n_pairs = factor, [len(s.pairs) for s in sums]
        ctx.save_for_backward(*(t for s in sums for t in (s.total, *itertools.chain(*s.pairs))))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The penalty's gradient is in closed form and cannot be differentiated again, got `create_graph=True`. "
                "Pass the penalty a function instead of the module, `lambda X: module(X)`: then it consists of "
                "differentiable operators, at a higher cost."
            )
        factor = grad * ctx.factor  # ()
        saved = iter(ctx.saved_tensors)
        gradients = []
        for n_pairs in ctx.n_pairs:
            total = next(saved)
            gradient = None if total is None else total * factor
            for _ in range(n_pairs):
                g, t = next(saved), next(saved)  # (k n, out), (k n, in)
                t = t * factor
                outer = product(g.t(), t).to(factor.dtype)  # (out, in)
                gradient = outer if gradient is None else gradient.add_(outer)
            gradients.append(gradient)
        return None, None, None, *gradients


def wants(tensor: Tensor | None) -> bool:
    """Whether the gradient with respect to the tensor is required."""
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


@dataclass
class _Sum:
    """The gradient of one tensor: a total, and products g^T t in factored form (g, t)."""

    total: Tensor | None = None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Gradients:
    """Sums gradients per tensor and attaches them to the value for autograd.

    The gradient of a linear layer is ``sum_j g_j^T t_j`` for cotangents g (k n, out) and tangents t (k n, in), times a
    factor s that only the backward pass knows. ``g^T (s t)`` needs one pass over (k n, in) for s, ``s (g^T t)`` one
    over (out, in), in new memory: on an MLP with layers of 784 x 784 this took a tenth of a plain step. So the factors
    are stored until then if they take less memory than the product.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.sums: dict[int, _Sum] = {}

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add a gradient of the tensor's shape; it may be modified later."""
        entry = self._sum_of(tensor)
        entry.total = gradient if entry.total is None else entry.total.add_(gradient)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum for the tensor so far, to be added to in place."""
        entry = self._sum_of(tensor)
        if entry.total is None:
            entry.total = torch.zeros_like(tensor, requires_grad=False)
        return entry.total

    def add_weight(self, weight: Tensor, node: Node, t: Tensor, g: Tensor) -> None:
        """Add the gradient of <g, W t> for the weight W, which the node has in the precision of t and g.

        t and g are stored and must not be modified.
        """
        entry = self._sum_of(weight)
        if node.op != "linear":
            entry.total = self._added(weight, node, t, g, entry.total)
            return
        entry.pairs.append((g.reshape(-1, g.shape[-1]), t.reshape(-1, t.shape[-1])))
        if sum(g.numel() + t.numel() for g, t in entry.pairs) > weight.numel():
            for g, t in entry.pairs:  # (k n, out), (k n, in)
                entry.total = self._added(weight, node, t, g, entry.total)
            entry.pairs.clear()

    @staticmethod
    def _added(weight: Tensor, node: Node, t: Tensor, g: Tensor, total: Tensor | None) -> Tensor:
        """The total, in the weight's precision, with a gradient added."""
        if t.dtype == weight.dtype:
            return weight_gradient(node, t, g, total)
        gradient = weight_gradient(node, t, g, None).to(weight.dtype)
        return gradient if total is None else total.add_(gradient)

    def _sum_of(self, tensor: Tensor) -> _Sum:
        self.tensors[id(tensor)] = tensor
        return self.sums.setdefault(id(tensor), _Sum())

    def attach(self, value: Tensor, factor: float = 1.0) -> Tensor:
        """The value with the sums, times a factor, as its gradients."""
        if not self.tensors:
            return value
        return _WithGradient.apply(value, factor, [*self.sums.values()], *self.tensors.values())
