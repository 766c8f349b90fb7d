"""Penalties on a linearised network: values with hand-written gradients, one stack of directions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity.graph import Node, activation_of
from sklearn_capacity.graph.adjoint import Tape, weight_gradient
from sklearn_capacity.graph.chain import STACK_BYTES, blocks, pull, push

__all__ = ["chain_products", "softmax_jacobian"]


class _WithGradient(torch.autograd.Function):
    """A value whose gradients are known already. It cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else grad * g for g in ctx.gradients))


def softmax_jacobian(p: Tensor, a: Tensor) -> Tensor:
    """``(diag p - p p^T) a`` for probabilities p of shape (n, C) and a of shape (..., n, C)."""
    return p * a - p * (p * a).sum(-1, keepdim=True)


class _Gradients:
    """Sums gradients per tensor, in place, and hands the value over to autograd with them."""

    def __init__(self, tape: Tape):
        self.tape = tape
        self.tensors: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}

    def wants(self, tensor: Tensor | None) -> bool:
        return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        self.tensors[id(tensor)] = tensor
        total = self.sums.get(id(tensor))
        self.sums[id(tensor)] = gradient if total is None else total.add_(gradient)

    def add_weight(self, node: Node, t: Tensor, g: Tensor) -> None:
        assert node.weight is not None
        self.tensors[id(node.weight)] = node.weight
        self.sums[id(node.weight)] = weight_gradient(node, t, g, self.sums.get(id(node.weight)))

    def attach(self, value: Tensor) -> Tensor:
        if not self.tensors:
            return value
        keys = list(self.tensors)
        gradients = [self.sums[key] for key in keys]
        return _WithGradient.apply(value, gradients, *(self.tensors[key] for key in keys))


def chain_products(tape: Tape, directions: Tensor, scale: Tensor, output: str) -> Tensor:
    """``sum_i scale_i sum_j |v_ij^T J(x_i)|^2``, differentiable once.

    Parameters
    ----------
    tape : Tape
        Its logits, and the smooth pre-activations, carry a graph if the penalty's gradient goes through them.
    directions : Tensor of shape (k, n, C)
        Constant vectors in the space of the output.
    scale : Tensor of shape (n,)
    output : "logits" or "softmax"
    """
    sums = _Gradients(tape)
    trained = [node for node in tape.graph.nodes if sums.wants(node.weight) or sums.wants(tape.smooth.get(node.name))]
    softmax = output == "softmax"
    last = None if softmax and sums.wants(tape.logits) else trained[-1].name if trained else ""
    names = {node.name for node in trained}
    values = []
    with torch.no_grad():
        p = tape.logits.softmax(1)
        size = blocks(tape.graph, len(scale), len(directions), scale.dtype, STACK_BYTES)
        curvatures = {name: _curvature(tape.graph[name], tape.smooth[name]) for name in names & tape.smooth.keys()}
    for u in directions.split(size):
        cotangents: dict[str, Tensor] = {}

        def keep(node: Node, g: Tensor, part: Tensor, cotangents: dict[str, Tensor] = cotangents) -> None:
            if node.name in names:
                cotangents[node.name] = g

        def collect(node: Node, t: Tensor, cotangents: dict[str, Tensor] = cotangents) -> None:
            if node.name not in names:
                return
            g = cotangents.pop(node.name)
            if node.weight is not None:
                sums.add_weight(node, t, g)
            else:
                bent = (g * t).unflatten(0, (-1, len(scale))).sum(0) * curvatures[node.name]
                sums.add(tape.smooth[node.name], bent)

        with torch.no_grad():
            v = softmax_jacobian(p, u) if softmax else u
            rows = pull(tape, v.flatten(0, 1), keep).unflatten(0, (len(u), -1))
            values.append((rows.flatten(2).square().sum(2) * scale).sum())
            if last == "":
                continue
            t = rows.mul(2 * scale.reshape(-1, *(1,) * (rows.dim() - 2))).flatten(0, 1)
            out = push(tape, t, collect, stop=last)
            if last is None:
                sums.add(tape.logits, _through_softmax(p, u, out.unflatten(0, (len(u), -1))))
    return sums.attach(torch.stack(values).sum())


def _curvature(node: Node, z: Tensor) -> Tensor:
    """Second derivative of an element-wise activation."""
    row, args = activation_of(node)
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (second,) = torch.autograd.grad(row.derivative(z, *args).sum(), z)
    return second


def _through_softmax(p: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """Gradient of ``<t, (diag p - p p^T) u>`` with respect to the logits behind p, summed over directions."""
    pu, pt = (p * u).sum(-1, keepdim=True), (p * t).sum(-1, keepdim=True)
    return softmax_jacobian(p, u * t - pu * t - pt * u).sum(0)
