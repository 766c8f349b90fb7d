"""Penalties on a linearised network: values with hand-written gradients, one stack of directions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity.derivatives.input_sweeps import pull, push, stacks
from sklearn_capacity.derivatives.sweep_rules import Tape, weight_gradient
from sklearn_capacity.graph import Node, activation_of
from sklearn_capacity.penalties.joint_weights import Joints, graph_is_kept
from sklearn_capacity.penalties.shared_pass import Linearized

__all__ = ["Directions", "Gradients", "chain_products", "softmax_jacobian", "wants"]


Directions = Callable[[slice, Tape], Tensor]


class _WithGradient(torch.autograd.Function):
    """A value whose gradients are known already. After their tensors come tokens, whose gradient is the factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients, ctx.factor, ctx.n_tokens = gradients, factor, len(tensors) - len(gradients)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The penalty's gradient is known in closed form and cannot be differentiated again, got "
                "`create_graph=True`. Give the penalty a function in place of the module, `lambda X: module(X)`: "
                "then it is made of differentiable operators, at a higher cost."
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "The penalty's gradient was asked for a second time, after its memory was handed on. "
                "Call backward with `retain_graph=True` the first time."
            )
        grad = grad * ctx.factor
        tokens = [grad] * ctx.n_tokens
        if graph_is_kept():
            return (None, None, None, *(grad * g for g in ctx.gradients), *tokens)
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(g.mul_(grad) for g in gradients), *tokens)  # new memory costs more than the product


def softmax_jacobian(p: Tensor, a: Tensor) -> Tensor:
    """``(diag p - p p^T) a`` for probabilities p of shape (n, C) and a of shape (..., n, C)."""
    return p * a - p * (p * a).sum(-1, keepdim=True)


def wants(tensor: Tensor | None) -> bool:
    """Whether somebody asks for the gradient with respect to the tensor."""
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


class Gradients:
    """Sums gradients per tensor, in place, and hands the value over to autograd with them.

    Those of `joints`, layers of the loss's forward pass by node, are left to that pass's backward pass.
    """

    def __init__(self, joints: Joints) -> None:
        self.joints = joints
        self.tokens: dict[str, Tensor] = {}
        self.tensors: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        self.tensors[id(tensor)] = tensor
        total = self.sums.get(id(tensor))
        self.sums[id(tensor)] = gradient if total is None else total.add_(gradient)

    def add_weight(self, node: Node, t: Tensor, g: Tensor) -> None:
        assert node.weight is not None
        joint, token = self.joints.get(node.name, (None, None))
        if joint is not None and token is not None and joint.weight is node.weight:
            joint.add(g, t)
            self.tokens[node.name] = token
            return
        self.tensors[id(node.weight)] = node.weight
        self.sums[id(node.weight)] = weight_gradient(node, t, g, self.sums.get(id(node.weight)))

    def attach(self, value: Tensor, factor: float = 1.0) -> Tensor:
        """The value with the sums, times a factor, as its gradients."""
        if not self.tensors and not self.tokens:
            return value
        gradients = [self.sums[key] for key in self.tensors]
        return _WithGradient.apply(value, factor, gradients, *self.tensors.values(), *self.tokens.values())


def chain_products(batch: Linearized, directions: Directions, scale: Tensor, output: str) -> Tensor:
    """``sum_i scale_i sum_j |v_ij^T J(x_i)|^2``, differentiable once.

    Parameters
    ----------
    batch : Linearized
    directions : callable(samples, tape) -> Tensor of shape (k, n', C)
        Makes constant vectors in the space of the output, for some of the samples.
    scale : Tensor of shape (n,)
    output : "logits" or "softmax"
    """
    sums = Gradients(batch.joints)
    values = []
    n, k = stacks(batch.graph, len(scale), scale)
    for samples, tape in batch.parts(n, output):
        walk = _Walk(tape, sums, scale[samples], output)
        for u in directions(samples, tape).split(k):
            values.append(walk(u))
    return sums.attach(torch.stack(values).sum())


class _Walk:
    """Adds one stack of directions to the value and the gradients."""

    def __init__(self, tape: Tape, sums: Gradients, scale: Tensor, output: str):
        self.tape, self.sums, self.scale = tape, sums, scale
        nodes = tape.graph.nodes
        self.trained = {n.name for n in nodes if wants(n.weight) or wants(tape.smooth.get(n.name))}
        self.p = tape.logits.detach().softmax(1) if output == "softmax" else None
        self.to_the_end = self.p is not None and wants(tape.logits)
        self.last = None if self.to_the_end else next((n.name for n in reversed(nodes) if n.name in self.trained), None)
        self.curvatures = {name: _curvature(tape.graph[name], z) for name, z in tape.smooth.items()}
        self.cotangents: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, u: Tensor) -> Tensor:
        """Value for directions u of shape (k, n, C)."""
        v = u if self.p is None else softmax_jacobian(self.p, u)
        rows = pull(self.tape, v.flatten(0, 1), self._keep).unflatten(0, u.shape[:2])
        value = (rows.square().sum(tuple(range(2, rows.dim()))) * self.scale).sum()
        if self.trained or self.to_the_end:
            t = rows.mul(2 * self.scale.reshape(-1, *(1,) * (rows.dim() - 2))).flatten(0, 1)
            out = push(self.tape, t, self._collect, stop=self.last)
            if self.to_the_end and out is not None and self.p is not None:
                self.sums.add(self.tape.logits, _through_softmax(self.p, u, out.unflatten(0, u.shape[:2])))
        return value

    def _keep(self, node: Node, g: Tensor, part: Tensor) -> None:
        if node.name in self.trained:
            self.cotangents[node.name] = g

    def _collect(self, node: Node, t: Tensor) -> None:
        if node.name not in self.trained:
            return
        g = self.cotangents.pop(node.name)
        if node.weight is not None:
            self.sums.add_weight(node, t, g)
        else:
            bent = (g * t).unflatten(0, (-1, len(self.scale))).sum(0) * self.curvatures[node.name]
            self.sums.add(self.tape.smooth[node.name], bent)


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
