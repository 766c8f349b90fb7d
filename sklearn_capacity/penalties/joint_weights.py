"""Weight gradients of wide linear layers, computed for the loss and the penalty together.

A penalty's gradient with respect to a weight matrix is a product of few rows, as the loss's is. Added inside the
loss's own backward pass, the sum is written once. Made apart, it fills fresh memory of the weight's size, is scaled,
and is added: on an MLP of 784 x 784 layers that took a tenth of a plain step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_capacity.graph import Node

__all__ = ["JointWeight", "Joints", "graph_is_kept", "joint_linear"]

#: Smaller weights are left to autograd, whose bookkeeping is cheaper than a function in Python.
WIDE = 1 << 16


class JointWeight:
    """What a penalty adds to the gradient of a layer's weight, up to a factor that only its backward pass knows.

    It comes with a token, an output of the layer's function that has no content. The token's gradient is the factor,
    so that autograd runs the penalty's backward pass before the layer's.

    Attributes
    ----------
    weight : Tensor of shape (out, in)
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._total: Tensor | None = None

    def add(self, g: Tensor, t: Tensor) -> None:
        """Add ``g^T t`` for g of shape (..., out) and t of shape (..., in). Both are kept: nobody may change them."""
        self._pairs.append((g.reshape(-1, g.shape[-1]), t.reshape(-1, t.shape[-1])))
        if sum(g.numel() + t.numel() for g, t in self._pairs) <= self.weight.numel():
            return
        for g, t in self._pairs:  # they would take more memory than their product
            self._total = g.t() @ t if self._total is None else self._total.addmm_(g.t(), t)
        self._pairs.clear()

    def add_to(self, gradient: Tensor | None, factor: Tensor) -> Tensor:
        """The loss's gradient, if there is one, plus the factor times what was added; in place."""
        gradient = torch.zeros_like(self.weight) if gradient is None else gradient
        if self._total is not None:
            gradient.addcmul_(self._total, factor)
        for g, t in self._pairs:
            gradient.addmm_(g.t(), t * factor)
        if not graph_is_kept():
            self._pairs, self._total = [], None
        return gradient


def joint_linear(joints: Joints, node: Node, x: Tensor) -> Tensor:
    """A linear layer; where its weight is wide and trained, one whose gradient a penalty can join."""
    weight = node.weight
    assert weight is not None
    if weight.numel() < WIDE or not weight.requires_grad:
        return F.linear(x, weight, node.bias)
    joint = JointWeight(weight)
    y, token = _JointLinear.apply(joint, x, weight, node.bias)
    joints[node.name] = joint, token
    return y


class _JointLinear(torch.autograd.Function):
    """``x W^T + b`` and a token."""

    @staticmethod
    def forward(ctx: Any, joint: JointWeight, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.joint = joint
        return F.linear(x, weight, bias), x.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, factor: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, want_x, want_weight, want_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if grad is not None:
            rows = grad.reshape(-1, grad.shape[-1])
            grad_x = grad @ weight if want_x else None
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if want_weight else None
            grad_bias = rows.sum(0) if want_bias else None
        if factor is not None and want_weight:
            grad_weight = ctx.joint.add_to(grad_weight, factor)
        return None, grad_x, grad_weight, grad_bias


def graph_is_kept() -> bool:
    """Whether the backward pass that is running was told to retain its graph; yes where torch does not say."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if kept is None else kept()


#: Linear layers of a forward pass by node, each with its token.
Joints = dict[str, tuple[JointWeight, Tensor]]
