"""Penalties on a linearised network: values with hand-written gradients, one stack of directions at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity.derivatives.input_sweeps import pull, pull_to_layers, push, stacks
from sklearn_capacity.derivatives.sweep_rules import Tape, weight_gradient
from sklearn_capacity.graph import Node, activation_of
from sklearn_capacity.graph.functions import function_of
from sklearn_capacity.graph.nodes import WEIGHT_OPS
from sklearn_capacity.linalg.product import product
from sklearn_capacity.penalties.shared_pass import LinearizedBatch

__all__ = ["Directions", "Gradients", "chain_products", "softmax_jacobian", "wants"]


#: For some of the samples: constant vectors u in the output space, (k, n', C), or these and ``u^T J``, (k, n', ...).
Directions = Callable[[slice, Tape], Tensor | tuple[Tensor, Tensor]]


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


def softmax_jacobian(p: Tensor, a: Tensor) -> Tensor:
    """``(diag p - p p^T) a`` for probabilities p of shape (n, C) and a of shape (..., n, C)."""
    return p * a - p * (p * a).sum(-1, keepdim=True)


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


def chain_products(
    batch: LinearizedBatch,
    directions: Directions,
    scale: Tensor,
    output: str,
    *,
    precision: torch.dtype | None = None,
) -> Tensor:
    """``sum_i scale_i sum_j |v_ij^T J(x_i)|^2``, differentiable once.

    Parameters
    ----------
    batch : LinearizedBatch
    directions : callable(samples, tape) -> Tensor of shape (k, n', C), or a pair
        Returns constant vectors in the output space, for some of the samples; where their products with the Jacobian
        are known, these, too, and the sweep need not reach the input.
    scale : Tensor of shape (n,)
    output : "logits" or "softmax"
    precision : torch.dtype, default=None
        That of the sweeps; None is the batch's. Sums over samples, directions and entries keep the batch's.
    """
    sums = Gradients()
    values = []
    n, k = stacks(batch.graph, len(scale), scale)
    for samples, tape in batch.parts(n, output):
        walk = _Walk(tape, sums, scale[samples], output, precision)
        chosen = directions(samples, tape)
        u, rows = chosen if isinstance(chosen, tuple) else (chosen, None)
        known = itertools.repeat(None) if rows is None else rows.split(k)
        values += [walk(*pair) for pair in zip(u.split(k), known, strict=False)]
    return sums.attach(torch.stack(values).sum())


class _Walk:
    """Adds one stack of directions to the value and the gradients.

    For one sample and direction let ``r = J^T v`` and ``R = |r|^2``. With ``t = dR/dr = 2 r`` held fixed, the
    derivative of R is that of ``<t, J^T v> = <J t, v>``. Pushed forward through the network, t becomes ``t_{l-1}`` at
    each layer, and

    * a weight, which enters J once for each layer, has ``dR/dW_l = g_l t_{l-1}^T`` with the cotangent g_l of the pull;
    * a smooth activation, whose slope s'(z) is a factor of J, has ``dR/dz = s''(z) * g * t``;
    * a function f of several entries, such as a product of signals, has ``dR/dx = d/dx <g, Df(x) t>``;
    * a softmax, whose v is ``(diag p - p p^T) u``, has the derivative of that with J t in place of t.

    Logits and pre-activations z are functions of the weights, which autograd differentiates. See [JR] eq. 49.

    Attributes
    ----------
    trained : set of str
        Nodes whose weight or pre-activation requires a gradient.
    p : Tensor of shape (n, C) or None
        Probabilities, for the softmax output.
    to_the_end, last
        Whether J t itself is needed; if not, the last node whose input's tangent is.
    curvatures : dict of node name to Tensor of shape (n, ...)
        s''(z)
    cotangents : dict of node name to Tensor of shape (k n, ...)
        g_l, between the two sweeps.
    swept : Tape
        The tape in the precision of the sweeps.
    """

    def __init__(self, tape: Tape, sums: Gradients, scale: Tensor, output: str, precision: torch.dtype | None = None):
        self.tape, self.sums, self.scale = tape, sums, scale
        self.precision = precision or scale.dtype
        self.swept = tape if self.precision == scale.dtype else tape.rounded(self.precision)
        nodes = tape.graph.nodes
        curved = tape.curved
        self.trained = {n.name for n in nodes if wants(n.weight) or any(map(wants, curved.get(n.name, ())))}
        self.p = tape.logits.detach().softmax(1) if output == "softmax" else None
        self.to_the_end = self.p is not None and wants(tape.logits)
        self.last = None if self.to_the_end else next((n.name for n in reversed(nodes) if n.name in self.trained), None)
        self.curvatures = {name: _curvature(tape.graph[name], z) for name, z in tape.smooth.items()}
        self.cotangents: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """Value for directions u of shape (k, n, C), whose products with the Jacobian (k, n, *input) may be known."""
        v = u if self.p is None else softmax_jacobian(self.p, u)  # (k, n, C)
        v = v.flatten(0, 1).to(self.precision)
        if rows is None:
            rows = pull(self.swept, v, self._keep).unflatten(0, u.shape[:2]).to(u.dtype)  # (k, n, *input)
        elif self.trained:
            pull_to_layers(self.swept, v, self._keep)
        value = (rows.square().sum(tuple(range(2, rows.dim()))) * self.scale).sum()  # (k, n) times (n,), summed
        if self.trained or self.to_the_end:
            t = rows.mul(2 * self.scale.reshape(-1, *(1,) * (rows.dim() - 2))).flatten(0, 1)  # (k n, *input)
            out = push(self.swept, t.to(self.precision), self._collect, stop=self.last)  # (k n, C)
            if self.to_the_end and out is not None and self.p is not None:
                out = out.unflatten(0, u.shape[:2]).to(u.dtype)  # (k, n, C)
                self.sums.add(self.tape.logits, _through_softmax(self.p, u, out))
        return value

    def _keep(self, node: Node, g: Tensor, part: Tensor | None) -> None:
        if node.name in self.trained:
            self.cotangents[node.name] = g

    def _collect(self, node: Node, t: Tensor, *others: Tensor) -> None:
        if node.name not in self.trained:
            return
        g = self.cotangents.pop(node.name)  # (k n, *node.shape)
        weight = self.tape.graph[node.name].weight
        if node.op in WEIGHT_OPS and weight is not None:
            self.sums.add_weight(weight, node, t, g)
            return
        node = self.tape.graph[node.name]
        t, g, others = t.to(self.scale.dtype), g.to(self.scale.dtype), tuple(o.to(self.scale.dtype) for o in others)
        if node.name in self.tape.points:
            self._pull_curvature(node, (t, *others), g)
        elif node.name in self.tape.slope_masks:
            assert weight is not None
            self.sums.add(weight, self._slope_gradient(node, t, g))
        else:
            both = (g * t).unflatten(0, (-1, len(self.scale))).sum(0)  # (n, ...)
            gradient = both * self.curvatures[node.name]
            self.sums.add(self.tape.smooth[node.name], gradient)

    def _pull_curvature(self, node: Node, ts: tuple[Tensor, ...], g: Tensor) -> None:
        """Add the gradient of ``<g, Df(x) t>`` with respect to the points x of a function f."""
        row, args = function_of(node)
        n = len(self.scale)
        points = self.tape.points[node.name]
        with torch.enable_grad():
            at = [x.detach().requires_grad_(True) for x in points]  # (n, ...) each
            inner = (g.unflatten(0, (-1, n)) * row.tangent(at, [t.unflatten(0, (-1, n)) for t in ts], *args)).sum()
            if not inner.requires_grad:  # piecewise linear, like sorting
                return
            derivatives = torch.autograd.grad(inner, at, allow_unused=True)
        for x, gradient in zip(points, derivatives, strict=True):
            if x.requires_grad and gradient is not None:
                self.sums.add(x, gradient)

    def _slope_gradient(self, node: Node, t: Tensor, g: Tensor) -> Tensor:
        """Gradient of ``<g, slope(z) t>`` with respect to the trained slope of an activation."""
        _, args = activation_of(node)
        assert node.weight is not None
        summed = (g * t).unflatten(0, (-1, len(self.scale))).sum(0)  # (n, ...)
        masked = summed * self.tape.slope_masks[node.name]  # (n, ...), 0 where the derivative is not the trained slope
        return masked.sum_to_size(args[-1].shape).reshape(node.weight.shape)


def _curvature(node: Node, z: Tensor) -> Tensor:
    """Second derivative of an element-wise activation."""
    row, args = activation_of(node)
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (second,) = torch.autograd.grad(row.derivative(z, *args).sum(), z)  # s''(z), like z
    return second


def _through_softmax(p: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """Gradient of ``<t, (diag p - p p^T) u>`` with respect to the logits behind p, summed over directions.

    The gradient with respect to p is ``u * t - <p, u> t - <p, t> u``, and that of p is ``diag p - p p^T``.
    """
    pu, pt = (p * u).sum(-1, keepdim=True), (p * t).sum(-1, keepdim=True)  # (k, n, 1)
    return softmax_jacobian(p, u * t - pu * t - pt * u).sum(0)  # (k, n, C) summed to (n, C)
