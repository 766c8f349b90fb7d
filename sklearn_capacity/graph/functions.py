"""Smooth functions of several numbers of a sample at once: products of signals, softmax, normalisations.

They are neither element-wise nor linear. Each row has its value, its derivative along a direction, and the transpose of
that; second derivatives follow by differentiating the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .nodes import Node

__all__ = ["FUNCTIONS", "Function", "apply_function", "function_of"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Function:
    """One row of the table; every axis that `args` name counts from the end.

    Attributes
    ----------
    value : callable(xs, *args) -> Tensor
        xs are the inputs, (n, ...) each.
    tangent : callable(xs, ts, *args) -> Tensor
        Derivative at xs along ts, which may have further axes in front, (k, n, ...). Differentiable in xs.
    adjoint : callable(xs, g, *args) -> tuple of Tensor
        Its transpose, one tensor for each input.
    why : str
        Why no path runs through it, in words that finish a message.
    """

    value: Callable[..., Tensor]
    tangent: Callable[..., Tensor]
    adjoint: Callable[..., Tensors]
    why: str


def function_of(node: Node) -> tuple[Function, tuple[Any, ...]]:
    """The table's row for a node, with the node's own arguments."""
    return FUNCTIONS[node.params["kind"]], tuple(node.params.get("args", ()))


def apply_function(node: Node, *xs: Tensor) -> Tensor:
    """Value of the node's function."""
    row, args = function_of(node)
    return row.value(xs, *args)


# -- softmax: s = exp(x) / sum exp(x), with the Jacobian diag(s) - s s^T -----------------------------------------------


def _softmax(xs: Tensors, dim: int, mask: Tensor | None = None) -> Tensor:
    (x,) = xs
    return (x if mask is None else x.masked_fill(~mask, -torch.inf)).softmax(dim)


def _softmax_tangent(xs: Tensors, ts: Tensors, dim: int, mask: Tensor | None = None) -> Tensor:
    s = _softmax(xs, dim, mask)
    st = s * ts[0]
    return st - s * st.sum(dim, keepdim=True)  # diag(s) t - s (s . t)


def _log_softmax_tangent(xs: Tensors, ts: Tensors, dim: int) -> Tensor:
    return ts[0] - (xs[0].softmax(dim) * ts[0]).sum(dim, keepdim=True)


def _log_softmax_adjoint(xs: Tensors, g: Tensor, dim: int) -> Tensors:
    return (g - xs[0].softmax(dim) * g.sum(dim, keepdim=True),)


# -- log sum exp, with the softmax as its gradient ---------------------------------------------------------------------


def _shares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.logsumexp(dims, keepdim=True)).exp()  # softmax over several axes


# -- x / sqrt(mean(x^2) + eps), with r its factor: Jacobian r I - r^3 x x^T / size -------------------------------------


def _factor(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _normalized_tangent(xs: Tensors, ts: Tensors, dims: tuple[int, ...], eps: float) -> Tensor:
    (x,), (t,) = xs, ts
    r = _factor(x, dims, eps)  # 1 in `dims`
    return r * t - r**3 * x * (x * t).mean(dims, keepdim=True)


# -- products ----------------------------------------------------------------------------------------------------------


def _mul_tangent(xs: Tensors, ts: Tensors) -> Tensor:
    return ts[0] * xs[1] + xs[0] * ts[1]


def _matmul_tangent(xs: Tensors, ts: Tensors) -> Tensor:
    return ts[0] @ xs[1] + xs[0] @ ts[1]  # d(A B) = dA B + A dB


# -- p-norms, by default the Euclidean length: Jacobian sign(x) (|x| / |x|_p)^(p - 1), 0 at 0 ------------------------


def _length(xs: Tensors, dims: tuple[int, ...], order: float = 2.0) -> Tensor:
    return torch.linalg.vector_norm(xs[0], order, dim=dims, keepdim=True)


def _direction(x: Tensor, dims: tuple[int, ...], order: float = 2.0) -> Tensor:
    size = x.detach().abs().amax(dims, keepdim=True)  # 1 in `dims`
    at_zero = size == 0
    # The root of a safe number first: where the length is 0, autograd would multiply an infinite slope by 0.
    size = torch.where(at_zero, torch.ones_like(size), size)
    x = x / size  # the direction depends on no factor, and no power over- or underflows
    power = (x.square() if order == 2 else x.abs() ** order).sum(dims, keepdim=True)
    steep = x if order == 2 else x.sign() * x.abs() ** (order - 1)
    return torch.where(at_zero, torch.zeros_like(x), steep * torch.where(at_zero, 1.0, power) ** (1 / order - 1))


# -- entries in another order, which is that of the values: Jacobian with one 1 in every row ---------------------------


def _sorted(x: Tensor, dim: int, descending: bool) -> Tensor:
    return x.sort(dim, descending=descending).indices


def _running(x: Tensor, dim: int, smallest: bool) -> Tensor:
    return (torch.cummin if smallest else torch.cummax)(x, dim).indices


def _chosen(indices: Callable[..., Tensor]) -> Function:
    """The row of an operator whose results are the entries at `indices(x, dim, *args)` along an axis."""

    def tangent(xs: Tensors, ts: Tensors, dim: int, *args: Any) -> Tensor:
        where = indices(xs[0], dim, *args)  # (n, ...)
        return ts[0].gather(dim, where.expand(ts[0].shape[: ts[0].dim() - where.dim()] + where.shape))

    def adjoint(xs: Tensors, g: Tensor, dim: int, *args: Any) -> Tensors:
        return (torch.zeros_like(g).scatter_add(dim, indices(xs[0], dim, *args).expand(g.shape), g),)

    why = "which entry is where depends on the input, so it is not a sum over paths."
    return Function(lambda xs, *args: tangent(xs, xs, *args), tangent, adjoint, why)


_PRODUCT = "it multiplies two signals, so a path would count the input twice."

FUNCTIONS: dict[str, Function] = {
    "product": Function(lambda xs: xs[0] * xs[1], _mul_tangent, lambda xs, g: (g * xs[1], xs[0] * g), _PRODUCT),
    "matmul": Function(lambda xs: xs[0] @ xs[1], _matmul_tangent, lambda xs, g: (g @ xs[1].mT, xs[0].mT @ g), _PRODUCT),
    "softmax": Function(
        _softmax,
        _softmax_tangent,
        lambda xs, g, *args: (_softmax_tangent(xs, (g,), *args),),
        "a softmax is not positively homogeneous, so paths do not multiply.",
    ),
    "log_softmax": Function(
        lambda xs, dim: xs[0].log_softmax(dim),
        _log_softmax_tangent,
        _log_softmax_adjoint,
        "a softmax is not positively homogeneous, so paths do not multiply.",
    ),
    "logsumexp": Function(
        lambda xs, dims: xs[0].logsumexp(dims, keepdim=True),
        lambda xs, ts, dims: (_shares(xs[0], dims) * ts[0]).sum(dims, keepdim=True),
        lambda xs, g, dims: (_shares(xs[0], dims) * g,),
        "a logarithm of a sum of exponentials is not positively homogeneous, so paths do not multiply.",
    ),
    "normalization": Function(
        lambda xs, dims, eps: xs[0] * _factor(xs[0], dims, eps),
        _normalized_tangent,
        lambda xs, g, dims, eps: (_normalized_tangent(xs, (g,), dims, eps),),
        "it divides by the size of its input, so paths do not multiply.",
    ),
    "sort": _chosen(_sorted),
    "running extremum": _chosen(_running),
    "length": Function(
        _length,
        lambda xs, ts, dims, *order: (_direction(xs[0], dims, *order) * ts[0]).sum(dims, keepdim=True),
        lambda xs, g, dims, *order: (_direction(xs[0], dims, *order) * g,),
        "a length is not a sum over paths.",
    ),
}
