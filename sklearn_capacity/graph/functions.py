"""Smooth functions of several numbers of a sample at once: products of signals, softmax, normalisations.

They are neither element-wise nor linear. Each row has its value, its derivative along a direction, and the transpose of
that; second derivatives are in closed form for the functions of attention, and follow by differentiating the derivative
for others.
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
    tangent : callable(kept, ts, *args) -> Tensor
        Derivative along ts, which may have further axes in front, (k, n, ...).
    adjoint : callable(kept, g, *args) -> tuple of Tensor
        Its transpose, one tensor for each input.
    why : str
        Why no path runs through it, in words that finish a message.
    kept : callable(xs, value, *args) -> tuple of Tensor
        What the derivative at xs needs; differentiable in xs. By default xs.
    curvature : callable(kept, ts, g, *args) -> tuple of Tensor, or None
        Gradients of ``sum_k <g_k, tangent_k>`` with respect to xs, for ts and g of shape (k, n, ...).
    """

    value: Callable[..., Tensor]
    tangent: Callable[..., Tensor]
    adjoint: Callable[..., Tensors]
    why: str
    kept: Callable[..., Tensors] = lambda xs, value, *args: xs
    curvature: Callable[..., Tensors] | None = None

    def tangent_at(self, xs: Tensors, ts: Tensors, *args: Any) -> Tensor:
        """Derivative at xs along ts, differentiable in both."""
        return self.tangent(self.kept(xs, self.value(xs, *args), *args), ts, *args)


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


def _softmax_tangent(kept: Tensors, ts: Tensors, dim: int, mask: Tensor | None = None) -> Tensor:
    ((s,), (t,)) = kept, ts
    return torch._softmax_backward_data(t, s.expand_as(t), dim, t.dtype)  # diag(s) t - s (s . t), in one pass


def _softmax_curvature(kept: Tensors, ts: Tensors, g: Tensor, dim: int, mask: Tensor | None = None) -> Tensors:
    ((s,), (t,)) = kept, ts  # <g, Ds t> = <s, g t> - <s, g> <s, t>, which is differentiated by s first
    by_s = (g * (t - (s * t).sum(dim, keepdim=True))).sub_(t * (s * g).sum(dim, keepdim=True)).sum(0)  # (n, ...)
    return (_softmax_tangent(kept, (by_s,), dim),)


def _log_softmax_tangent(kept: Tensors, ts: Tensors, dim: int) -> Tensor:
    return ts[0] - (kept[0] * ts[0]).sum(dim, keepdim=True)


def _log_softmax_adjoint(kept: Tensors, g: Tensor, dim: int) -> Tensors:
    return (g - kept[0] * g.sum(dim, keepdim=True),)


# -- y = r x for r = 1 / sqrt(mean(x^2) + eps): Jacobian r (I - y y^T / size) ------------------------------------------


def _factor(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _normalized_tangent(kept: Tensors, ts: Tensors, dims: tuple[int, ...], eps: float) -> Tensor:
    (y, r), (t,) = kept, ts  # r has sizes of 1 in `dims`
    return torch.addcmul(t, y, (y * t).mean(dims, keepdim=True), value=-1).mul_(r)


def _normalized_curvature(kept: Tensors, ts: Tensors, g: Tensor, dims: tuple[int, ...], eps: float) -> Tensors:
    (y, r), (t,) = kept, ts

    def mean(product: Tensor) -> Tensor:
        return product.mean(dims, keepdim=True)

    yt, gy = mean(y * t), mean(g * y)  # (k, n, ...)
    along = (3 * gy * yt).sub_(mean(g * t)).sum(0)  # (n, ...)
    others = (g * yt).addcmul_(t, gy).sum(0)  # (n, ...)
    return (r.square() * (y * along).sub_(others),)


# -- the same after subtraction of the mean, over the last axes: Jacobian r (I - (1 1^T + y y^T) / size) ---------------


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensors:
    """y, the means and the factors r."""
    return torch.native_layer_norm(x, x.shape[min(dims) :], None, None, eps)


def _kept_standardized(xs: Tensors, value: Tensor, dims: tuple[int, ...], eps: float) -> Tensors:
    r = _standardized(xs[0], dims, eps)[2]
    # value / r is x less its mean, of which x and a mean in bfloat16 have lost digits if the mean is large
    return value / r, r, value


def _standardized_tangent(kept: Tensors, t: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    sizes = t.shape[: min(dims)]
    centred, r = (part.expand(*sizes, *part.shape[min(dims) :]).contiguous() for part in kept[:2])
    wants = [True, False, False]
    # the Jacobian is symmetric, so its transpose, a layer norm's gradient, is also its product with a tangent
    return torch.ops.aten.native_layer_norm_backward(
        t.contiguous(), centred, t.shape[min(dims) :], torch.zeros_like(r), r, None, None, wants
    )[0]


def _standardized_curvature(kept: Tensors, ts: Tensors, g: Tensor, dims: tuple[int, ...], eps: float) -> Tensors:
    _, r, y = kept
    g, t = (part - part.mean(dims, keepdim=True) for part in (g, ts[0]))  # their means do not matter
    return _normalized_curvature((y, r), (t,), g, dims, eps)


# -- products ----------------------------------------------------------------------------------------------------------


def _mul_tangent(xs: Tensors, ts: Tensors) -> Tensor:
    return ts[0] * xs[1] + xs[0] * ts[1]


def _mul_adjoint(xs: Tensors, g: Tensor) -> Tensors:
    return g * xs[1], xs[0] * g


def _mul_curvature(xs: Tensors, ts: Tensors, g: Tensor) -> Tensors:
    return (g * ts[1]).sum(0), (g * ts[0]).sum(0)


def _matmul_tangent(xs: Tensors, ts: Tensors) -> Tensor:
    return (ts[0] @ xs[1]).add_(xs[0] @ ts[1])  # d(A B) = dA B + A dB


def _matmul_adjoint(xs: Tensors, g: Tensor) -> Tensors:
    return g @ xs[1].mT, xs[0].mT @ g


def _matmul_curvature(xs: Tensors, ts: Tensors, g: Tensor) -> Tensors:
    return (g @ ts[1].mT).sum(0), (ts[0].mT @ g).sum(0)


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

    def kept(xs: Tensors, value: Any, *args: Any) -> Tensors:
        return (indices(xs[0], *args),)  # (n, ...)

    def tangent(kept: Tensors, ts: Tensors, dim: int, *args: Any) -> Tensor:
        (where,), (t,) = kept, ts
        return t.gather(dim, where.expand(t.shape[: t.dim() - where.dim()] + where.shape))

    def adjoint(kept: Tensors, g: Tensor, dim: int, *args: Any) -> Tensors:
        return (torch.zeros_like(g).scatter_add(dim, kept[0].expand(g.shape), g),)

    why = "which entry is where depends on the input, so it is not a sum over paths."
    return Function(lambda xs, *args: tangent(kept(xs, None, *args), xs, *args), tangent, adjoint, why, kept)


_PRODUCT = "it multiplies two signals, so a path would count the input twice."

FUNCTIONS: dict[str, Function] = {
    "product": Function(lambda xs: xs[0] * xs[1], _mul_tangent, _mul_adjoint, _PRODUCT, curvature=_mul_curvature),
    "matmul": Function(
        lambda xs: xs[0] @ xs[1],
        _matmul_tangent,
        _matmul_adjoint,
        _PRODUCT,
        lambda xs, value: tuple(x.contiguous() for x in xs),  # as heads are permuted, and torch would copy them often
        _matmul_curvature,
    ),
    "softmax": Function(
        _softmax,
        _softmax_tangent,
        lambda kept, g, *args: (_softmax_tangent(kept, (g,), *args),),
        "a softmax is not positively homogeneous, so paths do not multiply.",
        lambda xs, value, *args: (value,),
        _softmax_curvature,
    ),
    "log_softmax": Function(
        lambda xs, dim: xs[0].log_softmax(dim),
        _log_softmax_tangent,
        _log_softmax_adjoint,
        "a softmax is not positively homogeneous, so paths do not multiply.",
        lambda xs, value, dim: (value.exp(),),
    ),
    "logsumexp": Function(
        lambda xs, dims: xs[0].logsumexp(dims, keepdim=True),
        lambda kept, ts, dims: (kept[0] * ts[0]).sum(dims, keepdim=True),
        lambda kept, g, dims: (kept[0] * g,),
        "a logarithm of a sum of exponentials is not positively homogeneous, so paths do not multiply.",
        lambda xs, value, dims: ((xs[0] - value).exp(),),  # the softmax over several axes
    ),
    "normalization": Function(
        lambda xs, dims, eps: xs[0] * _factor(xs[0], dims, eps),
        _normalized_tangent,
        lambda kept, g, dims, eps: (_normalized_tangent(kept, (g,), dims, eps),),
        "it divides by the size of its input, so paths do not multiply.",
        lambda xs, value, dims, eps: (value, _factor(xs[0], dims, eps)),
        _normalized_curvature,
    ),
    "standardization": Function(
        lambda xs, dims, eps: _standardized(xs[0], dims, eps)[0],
        lambda kept, ts, dims, eps: _standardized_tangent(kept, ts[0], dims, eps),
        lambda kept, g, dims, eps: (_standardized_tangent(kept, g, dims, eps),),
        "it divides by the size of its input, so paths do not multiply.",
        _kept_standardized,
        _standardized_curvature,
    ),
    "sort": _chosen(_sorted),
    "running extremum": _chosen(_running),
    "length": Function(
        _length,
        lambda kept, ts, dims, *order: (kept[0] * ts[0]).sum(dims, keepdim=True),
        lambda kept, g, dims, *order: (kept[0] * g,),
        "a length is not a sum over paths.",
        lambda xs, value, dims, *order: (_direction(xs[0], dims, *order),),
    ),
}
