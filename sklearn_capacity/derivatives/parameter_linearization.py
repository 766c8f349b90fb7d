"""The network as a linear map of its parameters: a stored forward pass, backward and forward products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..graph.activations import activation_of
from ..graph.evaluate import EVALUATE, LINEAR_RULES, apply_linear
from ..graph.functions import function_of
from ..graph.max_pooling import pick, pool_indices
from ..graph.nodes import WEIGHT_OPS, NetworkGraph, Node, interpret
from .parameter_tangent import function_tangent, opaque_tangent, relu_tangent, shaped_bias, slope_tangent

__all__ = ["Linearization"]

#: a node's name and part, as in `Use`
Place = tuple[str, str | int]


class Linearization:
    """One forward pass of a chunk of samples that can be differentiated any number of times.

    Parameters
    ----------
    graph : NetworkGraph
    X : Tensor of shape (n, ...)

    Attributes
    ----------
    logits : Tensor of shape (n, C)
    inputs : dict of node name to Tensor
        Input of every trained node, one row per sample.
    """

    def __init__(self, graph: NetworkGraph, X: Tensor):
        self.graph = graph
        self.inputs: dict[str, Tensor] = {}
        self._read: dict[str, tuple[Any, ...]] = {}
        self._outputs: dict[str, Tensor] = {}
        self._leaves: dict[Place, Tensor] = {}
        self._local: dict[str, Any] = {}
        rules = {op: self._recorded(rule) for op, rule in EVALUATE.items()}
        with torch.enable_grad():
            self._logits = interpret(graph, rules, X.detach(), purpose="The Jacobian of the parameters")
        self.logits = self._logits.detach()

    def _recorded(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        def run(node: Node, *xs: Any) -> Any:
            if node.op in _NONLINEAR:
                self._read[node.name] = tuple(x.detach() if isinstance(x, Tensor) else x for x in xs)
            if not any(node.trainable):
                return rule(node, *xs)
            tied: dict[str, Any] = {}
            for part, tensor, trained in zip(("weight", "bias"), (node.weight, node.bias), node.trainable, strict=True):
                if tensor is not None:
                    tied[part] = tensor.detach()
                    if trained:
                        self._leaves[node.name, part] = tied[part].requires_grad_(True)
            output = rule(replace(node, **tied), *xs)
            self.inputs[node.name] = xs[0].detach()
            self._outputs[node.name] = output
            return output

        return run

    def deltas(self, cotangent: Tensor) -> dict[str, Tensor]:
        """Gradient of <cotangent, f> with respect to the output of every trained node, one row per sample."""
        return self._pull(self._outputs, cotangent)

    def gradient(self, cotangent: Tensor) -> dict[Place, Tensor]:
        """Gradient of sum_i <cotangent_i, f(x_i)> with respect to every use of every trained tensor."""
        return self._pull(self._leaves, cotangent)

    def _pull(self, points: Mapping[Any, Tensor], cotangent: Tensor) -> dict[Any, Tensor]:
        if not points:
            return {}
        gradients = torch.autograd.grad(
            self._logits,
            list(points.values()),
            cotangent.to(self._logits.dtype).reshape(self._logits.shape),
            retain_graph=True,
            allow_unused=True,
        )
        return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(points.items(), gradients, strict=True)}

    @torch.no_grad()
    def push(self, direction: Mapping[Place, Tensor]) -> Tensor:
        """Derivative of the logits along a direction, given as a tensor for every use that varies; (n, C).

        A layer y = W x + b has the tangent dy = W dx + dW x + db. A tangent of None stands for zeros and costs nothing:
        the input does not vary, so nothing does before the first layer that varies.
        """

        def affine(node: Node, dx: Tensor | None) -> Tensor | None:
            moved = None if dx is None else apply_linear(node, dx, node.weight, None)  # W dx, (n, *node.shape)
            weight, bias = direction.get((node.name, "weight")), direction.get((node.name, "bias"))
            if weight is not None:
                direct = apply_linear(node, self.inputs[node.name], weight, bias)  # dW x + db
                return direct if moved is None else moved + direct
            if bias is None:
                return moved
            if moved is None:
                moved = bias.new_zeros((len(self.logits), *node.shape))  # (n, *node.shape)
            return moved + shaped_bias(node, bias, moved)

        def activation(node: Node, dx: Tensor | None) -> Tensor | None:
            (x,) = self._read[node.name]
            moved = None if dx is None else self._activation(node, x, dx)
            slope = direction.get((node.name, "weight"))
            if slope is None:
                return moved
            along = slope_tangent(node, x, slope)  # (n, *node.shape)
            return along if moved is None else moved + along

        rules = {**self._rules(), **dict.fromkeys(WEIGHT_OPS, affine), "activation": activation}
        pushed = interpret(self.graph, rules, None, purpose="A parameter tangent")  # (n, ...), or None
        return torch.zeros_like(self.logits) if pushed is None else pushed

    def _activation(self, node: Node, x: Tensor, dx: Tensor) -> Tensor:
        if node.params["kind"] == "relu":
            return relu_tangent(x, dx)
        row, args = activation_of(node)
        return dx * self._kept(node, lambda: row.derivative(x, *args))

    def _rules(self) -> dict[str, Callable[..., Tensor | None]]:
        def max_pool(node: Node, dx: Tensor | None) -> Tensor | None:
            (x,) = self._read[node.name]
            return None if dx is None else pick(self._kept(node, lambda: pool_indices(node, x)[1]), dx)

        def opaque(node: Node, *dxs: Tensor | None) -> Tensor | None:
            moved = opaque_tangent(node, self._read[node.name], [0.0 if dx is None else dx for dx in dxs])
            return None if isinstance(moved, float) else moved

        def function(node: Node, *dxs: Tensor | None) -> Tensor | None:
            xs, (row, args) = self._read[node.name], function_of(node)

            def kept() -> tuple[Tensor, ...]:
                return self._kept(node, lambda: row.kept(xs, row.value(xs, *args), *args))

            moved = function_tangent(node, xs, [0.0 if dx is None else dx for dx in dxs], kept)
            return None if isinstance(moved, float) else moved

        structural = {op: self._structural(rule) for op, rule in LINEAR_RULES.items()}
        return {**structural, "max_pool": max_pool, "function": function, "opaque": opaque}

    def _kept(self, node: Node, compute: Callable[[], Any]) -> Any:
        if node.name not in self._local:
            self._local[node.name] = compute()
        return self._local[node.name]

    def _structural(self, rule: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
        def run(node: Node, *dxs: Tensor | None) -> Tensor | None:
            known = next((dx for dx in dxs if dx is not None), None)
            if known is None:
                return None
            shapes = [(len(known), *self.graph[name].shape) for name in node.inputs]
            return rule(node, *(known.new_zeros(s) if dx is None else dx for dx, s in zip(dxs, shapes, strict=True)))

        return run


_NONLINEAR = ("activation", "max_pool", "function", "opaque")
