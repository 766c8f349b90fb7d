"""The derivative of a function of parameters along a direction, by two reverse sweeps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..process_state import math_attention

__all__ = ["directional_derivative", "pulled_back", "pushed_forward", "twice_differentiable"]


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Modes for a forward pass that is differentiated twice, which some of torch's fused kernels do not support.

    Fused attention raises an error. Fused weight normalisation silently returns a wrong second derivative: its backward
    pass treats the norms as constants. The backward pass of a hard sigmoid has no derivative.
    """
    with torch.enable_grad(), math_attention(), _Elementary():
        yield


class _Elementary(TorchFunctionMode):
    """Computes a weight norm g v / ||v|| and a hard sigmoid from elementary operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ELEMENTARY.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return torch.nn.functional.hardtanh(input / 6 + 0.5, 0.0, 1.0)


_ELEMENTARY: dict[Any, Callable[..., Tensor]] = {
    torch._weight_norm: _weight_norm,
    torch.nn.functional.hardsigmoid: _hardsigmoid,
}


def pulled_back(value: Tensor, points: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """J^T w as a function of w: returns w, at 0, and the product for each point; None without dependence.

    w -> J^T w is linear and its transpose is J: the derivative of <J^T w, v> with respect to w is J v (the
    double-backward trick of Townsend, 2017).

    Parameters
    ----------
    value : Tensor
        Computed from the points within `twice_differentiable`.
    points : sequence of Tensor
    """
    # w, in the shape of the value; J^T w is linear in w, so it may be 0: only its derivative with respect to w is used.
    dual = torch.zeros_like(value, requires_grad=True)
    return dual, torch.autograd.grad(value, points, dual, create_graph=True, allow_unused=True)


def pushed_forward(value: Tensor, points: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor | None:
    """J v, the derivative of the value along a direction; None if the value does not depend on the points.

    Parameters
    ----------
    value : Tensor
        Computed from the points within `twice_differentiable`.
    points, along : sequence of Tensor
        Points and directions of the same shapes.
    """
    # <J^T w, v> = <w, J v>, and its derivative with respect to w is J v: two reverse passes make a forward one.
    dual, pulled = pulled_back(value, points)
    # Complex numbers are pairs of real ones: their inner product is the real part of <g, v>.
    inner = sum((g.conj() * v).real.sum() for g, v in zip(pulled, along, strict=True) if g is not None)
    if not isinstance(inner, Tensor) or not inner.requires_grad:
        return None
    (derivative,) = torch.autograd.grad(inner, dual, allow_unused=True)  # unused for a step function, whose slope is 0
    return None if derivative is None else derivative.detach()


def directional_derivative(
    function: Callable[[Mapping[str, Tensor]], Tensor], parameters: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Value f(theta) and J_theta f . v, without forward-mode automatic differentiation.

    Costs about three forward passes more than the value; works for everything that torch can differentiate
    twice.

    Parameters
    ----------
    function : callable of a mapping of tensors
    parameters, along : mapping of str to Tensor
        Point and direction, with the same keys and shapes.

    Returns
    -------
    value, derivative : Tensor
    """
    with twice_differentiable():
        point = {name: p.detach().requires_grad_(True) for name, p in parameters.items()}
        value = function(point)
        derivative = pushed_forward(value, list(point.values()), [along[name] for name in point])
    return value.detach(), torch.zeros_like(value) if derivative is None else derivative
