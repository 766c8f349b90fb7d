"""Penalties on a linearised network: values with hand-written gradients, one stack of directions at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_capacity.derivatives.input_sweeps import ROWS_BYTES, pull, pull_to_layers, push, stacks
from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.graph import Node, activation_of
from sklearn_capacity.graph.functions import function_of
from sklearn_capacity.graph.nodes import WEIGHT_OPS
from sklearn_capacity.penalties.end_layers import FirstLayer, LastLayer
from sklearn_capacity.penalties.gradient_sums import Gradients, wants
from sklearn_capacity.penalties.shared_pass import LinearizedBatch

__all__ = ["Directions", "chain_products", "curvature", "softmax_jacobian", "unit_rows", "unit_vectors"]


#: For some of the samples: constant vectors u in the output space, (k, n', C), or these and ``u^T J``, (k, n', ...).
Directions = Callable[[slice, Tape], Tensor | tuple[Tensor, Tensor]]


def softmax_jacobian(p: Tensor, a: Tensor) -> Tensor:
    """``(diag p - p p^T) a`` for probabilities p of shape (n, C) and a of shape (..., n, C)."""
    return p * a - p * (p * a).sum(-1, keepdim=True)


def chain_products(
    batch: LinearizedBatch,
    directions: Directions | None,
    scale: Tensor,
    output: str,
    *,
    first: FirstLayer | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """``sum_i scale_i sum_j |v_ij^T J(x_i)|^2``, differentiable once.

    Parameters
    ----------
    batch : LinearizedBatch
    directions : callable(samples, tape) -> Tensor of shape (k, n', C), or a pair
        Returns constant vectors in the output space, for some of the samples; where their products with the Jacobian
        are known, these, too, and the sweep need not reach the input. None stands for all unit vectors.
    scale : Tensor of shape (n,)
    output : "logits" or "softmax"
    first : FirstLayer, default=None
        Takes the place of the products with the first layer; for the batch's precision only.
    precision : torch.dtype, default=None
        That of the sweeps; None is the batch's. Sums over samples, directions and entries keep the batch's.
    """
    sums = Gradients()
    values: list[Tensor] = []
    n, k = stacks(batch.graph, len(scale), scale)
    for samples, tape in batch.parts(n, output):
        walk = _Walk(tape, sums, scale[samples], output, first, precision)
        if directions is None and output == "logits":
            values += walk.along_unit_vectors(k)
            continue
        chosen = unit_vectors(tape.logits) if directions is None else directions(samples, tape)
        u, rows = chosen if isinstance(chosen, tuple) else (chosen, None)
        known = itertools.repeat(None) if rows is None else rows.split(k)
        values += [walk(*pair) for pair in zip(u.split(k), known, strict=False)]
    if first is not None:
        with torch.no_grad():
            first.finish(sums)
    return sums.attach(torch.stack(values).sum())


def unit_vectors(values: Tensor) -> Tensor:
    """The C unit vectors for each sample: (C, n, C)."""
    n_samples, n_outputs = values.shape
    eye = torch.eye(n_outputs, dtype=values.dtype, device=values.device)  # (C, C)
    return eye[:, None, :].expand(-1, n_samples, -1)


def unit_rows(tape: Tape, first: FirstLayer | None = None) -> Tensor:
    """Rows of the Jacobian along the unit vectors, (n, C, D), with respect to the input or the first layer's output."""
    n, n_outputs = tape.logits.shape
    _, k = stacks(tape.graph, n, tape.logits, ROWS_BYTES)
    last = LastLayer.of(tape, ())
    kept: dict[str, Tensor] = {}
    rows: Tensor | None = None
    for begin in range(0, n_outputs, k):
        outputs = slice(begin, min(begin + k, n_outputs))
        v = unit_vectors(tape.logits)[outputs].flatten(0, 1) if last is None else last.cotangents(outputs)
        start = None if last is None else last.node.inputs[0]
        if first is None:
            g = pull(tape, v, start=start)  # (k n, *input)
        else:
            pull_to_layers(tape, v, lambda node, g, part: kept.update({node.name: g}), start)
            g = kept[first.node.name]  # (k n, h)
        g = g.reshape(len(g) // n, n, -1)  # (k, n, D)
        rows = g.new_empty(n, n_outputs, g.shape[2]) if rows is None else rows
        rows[:, outputs] = g.transpose(0, 1)
    assert rows is not None
    return rows


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
    to_the_end, stop
        Whether J t itself is needed; if not, the last node whose input's tangent is.
    curvatures : dict of node name to Tensor of shape (n, ...)
        s''(z)
    cotangents : dict of node name to Tensor of shape (k n, ...)
        g_l, between the two sweeps.
    swept : Tape
        The tape in the precision of the sweeps.
    first, last : FirstLayer, LastLayer, or None
        What leaves out products; `last` is set in sweeps along unit vectors, those of `outputs`.
    """

    def __init__(
        self,
        tape: Tape,
        sums: Gradients,
        scale: Tensor,
        output: str,
        first: FirstLayer | None = None,
        precision: torch.dtype | None = None,
    ):
        self.tape, self.sums, self.scale, self.first = tape, sums, scale, first
        self.precision = precision or scale.dtype
        self.swept = tape if self.precision == scale.dtype else tape.rounded(self.precision)
        nodes = tape.graph.nodes
        curved = tape.curved
        self.trained = {n.name for n in nodes if wants(n.weight) or any(map(wants, curved.get(n.name, ())))}
        self.p = tape.logits.detach().softmax(1) if output == "softmax" else None
        self.to_the_end = self.p is not None and wants(tape.logits)
        self.stop = None if self.to_the_end else next((n.name for n in reversed(nodes) if n.name in self.trained), None)
        self.curvatures = {name: curvature(tape.graph[name], z) for name, z in tape.smooth.items()}
        self.cotangents: dict[str, Tensor] = {}
        self.last: LastLayer | None = None
        self.outputs = slice(0)

    @torch.no_grad()
    def __call__(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """Value for directions u of shape (k, n, C), whose products with the Jacobian (k, n, *input) may be known."""
        v = u if self.p is None else softmax_jacobian(self.p, u)  # (k, n, C)
        value, out = self._swept(v.flatten(0, 1).to(self.precision), rows=rows)
        if self.to_the_end and out is not None and self.p is not None:
            out = out.unflatten(0, u.shape[:2]).to(u.dtype)  # (k, n, C)
            self.sums.add(self.tape.logits, _through_softmax(self.p, u, out))
        return value

    @torch.no_grad()
    def along_unit_vectors(self, k: int) -> list[Tensor]:
        """Values for the C unit vectors, k at a time."""
        full = self.precision == self.scale.dtype
        joint = self.trained - {None if self.first is None else self.first.node.name} if full else ()
        self.last = LastLayer.of(self.tape, joint)
        if self.last is None:
            return [self(u) for u in unit_vectors(self.tape.logits).split(k)]
        self.stop, n_outputs = self.last.stop or self.stop, self.tape.logits.shape[1]
        values = []
        for start in range(0, n_outputs, k):
            self.outputs = slice(start, min(start + k, n_outputs))
            v = self.last.cotangents(self.outputs).to(self.precision)  # (k n, h)
            values.append(self._swept(v, self.last.node.inputs[0])[0])
        return values

    def _swept(self, v: Tensor, start: str | None = None, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Value for cotangents v (k n, ...) of the output or of the node `start`, and J t if it is needed."""
        if self.first is not None:
            begin = self.first.node.name
            pull_to_layers(self.swept, v, self._keep, start)
            value, t = self.first(self.cotangents.pop(begin), self.scale, self.sums)  # t (k n, h)
        else:
            begin = None
            if rows is None:
                rows = pull(self.swept, v, self._keep, start).unflatten(0, (-1, len(self.scale))).to(self.scale.dtype)
            elif self.trained:
                pull_to_layers(self.swept, v, self._keep, start)
            scale = self.scale.reshape(-1, *(1,) * (rows.dim() - 2))  # (n, 1, ...)
            squares = rows.square().sum(tuple(range(2, rows.dim())))  # (k, n)
            value = (squares * self.scale).sum()
            t = rows.mul(2 * scale).flatten(0, 1).to(self.precision)  # (k n, *input)
        if not (self.trained or self.to_the_end):
            return value, None
        return value, push(self.swept, t, self._collect, stop=self.stop, start=begin)

    def _keep(self, node: Node, g: Tensor, part: Tensor | None) -> None:
        if node.name in self.trained or (self.first is not None and node.name == self.first.node.name):
            self.cotangents[node.name] = g

    def _collect(self, node: Node, t: Tensor, *others: Tensor) -> None:
        if node.name not in self.trained:
            return
        if self.last is not None and self.last.collects(node):
            self.cotangents.pop(node.name, None)
            self.last.collect(node, t, self.outputs, self.sums)
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
            both = self._blocks(g * t)  # (k, n, ...)
            summed = both[0] if len(both) == 1 else both.sum(0)  # (n, ...)
            self.sums.add(self.tape.smooth[node.name], summed.mul_(self.curvatures[node.name]))

    def _pull_curvature(self, node: Node, ts: tuple[Tensor, ...], g: Tensor) -> None:
        """Add the gradient of ``<g, Df(x) t>`` with respect to the points x of a function f."""
        row, args = function_of(node)
        points = self.tape.points[node.name]
        g, ts = self._blocks(g), tuple(map(self._blocks, ts))
        if row.curvature is not None:
            derivatives = row.curvature(self.tape.kept[node.name], ts, g, *args)
        else:
            with torch.enable_grad():
                at = tuple(x.detach().requires_grad_(True) for x in points)  # (n, ...) each
                inner = (g * row.tangent_at(at, ts, *args)).sum()
            if not inner.requires_grad:  # piecewise linear, like sorting
                return
            derivatives = torch.autograd.grad(inner, at, allow_unused=True)
        for x, gradient in zip(points, derivatives, strict=True):
            if x.requires_grad and gradient is not None:
                self.sums.add(x, gradient)

    def _blocks(self, x: Tensor) -> Tensor:
        """(k n, ...) as (k, n, ...)."""
        return x.unflatten(0, (-1, len(self.scale)))

    def _slope_gradient(self, node: Node, t: Tensor, g: Tensor) -> Tensor:
        """Gradient of ``<g, slope(z) t>`` with respect to the trained slope of an activation."""
        _, args = activation_of(node)
        assert node.weight is not None
        summed = self._blocks(g * t).sum(0)  # (n, ...)
        masked = summed * self.tape.slope_masks[node.name]  # (n, ...), 0 where the derivative is not the trained slope
        return masked.sum_to_size(args[-1].shape).reshape(node.weight.shape)


def curvature(node: Node, z: Tensor) -> Tensor:
    """Second derivative of an element-wise activation."""
    row, args = activation_of(node)
    return row.curvature(z, *args)


def _through_softmax(p: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """Gradient of ``<t, (diag p - p p^T) u>`` with respect to the logits behind p, summed over directions.

    The gradient with respect to p is ``u * t - <p, u> t - <p, t> u``, and that of p is ``diag p - p p^T``.
    """
    pu, pt = (p * u).sum(-1, keepdim=True), (p * t).sum(-1, keepdim=True)  # (k, n, 1)
    return softmax_jacobian(p, u * t - pu * t - pt * u).sum(0)  # (k, n, C) summed to (n, C)
