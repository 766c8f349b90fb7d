"""Element-wise activations: value, derivative and the constants that measures need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .nodes import Node

__all__ = ["ACTIVATIONS", "Activation", "activation_of"]

aten = torch.ops.aten
#: GELU is 0 or the identity there, in double precision, too.
_GELU_END = 40.0


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    Attributes
    ----------
    value, derivative : callable(Tensor, *args) -> Tensor
        `args` are the activation's own parameters (a slope, a temperature), positional as in torch.
    lipschitz : callable(*args) -> float
        Its exact Lipschitz constant.
    homogeneous : bool
        Positively homogeneous: f(c z) = c f(z) for c > 0, so that f(z) = f'(z) z.
    piecewise_linear : bool
        The derivative is piecewise constant, so gradients do not include the second derivative.
    steepest_at_ends : callable(*args) -> bool
        Whether, between -m and m, the value and the derivative are largest, in absolute value, at one of the ends.
    slope_mask : callable(Tensor) -> Tensor, or None
        1 where the derivative is a trained slope, else 0: the derivative of f' with respect to the slope and,
        multiplied by z, that of f. The slope is the node's weight and the last of `args`, shaped to broadcast against a
        batch.
    derivative_at_value : callable(Tensor, Tensor, *args) -> Tensor, or None
        The derivative from z and the value f(z), where this takes less.
    second_derivative : callable(Tensor, *args) -> Tensor, or None
        In closed form, where this takes less than to differentiate `derivative`.
    """

    value: Callable[..., Tensor]
    derivative: Callable[..., Tensor]
    lipschitz: Callable[..., float]
    homogeneous: bool = False
    piecewise_linear: bool = False
    slope_mask: Callable[[Tensor], Tensor] | None = None
    steepest_at_ends: Callable[..., bool] = lambda *args: False
    derivative_at_value: Callable[..., Tensor] | None = None
    second_derivative: Callable[..., Tensor] | None = None

    def slope(self, z: Tensor, value: Tensor, *args: Any) -> Tensor:
        """The derivative at z, where the value is known."""
        if self.derivative_at_value is None:
            return self.derivative(z, *args)
        return self.derivative_at_value(z, value, *args)

    def curvature(self, z: Tensor, *args: Any) -> Tensor:
        """The second derivative at z, without a gradient."""
        if self.second_derivative is not None:
            return self.second_derivative(z.detach(), *args)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (second,) = torch.autograd.grad(self.derivative(z, *args).sum(), z)  # like z
        return second

    def within(self, limit: float, *args: Any) -> tuple[float, float]:
        """Bounds of the absolute values of the function and of its derivative between -limit and limit."""
        if not self.steepest_at_ends(*args):
            return math.inf, math.inf
        ends = torch.tensor([-limit, limit], dtype=torch.float64, device="cpu")
        bounds = (float(f(ends, *args).abs().max()) for f in (self.value, self.derivative))
        value, slope = (math.inf if math.isnan(bound) else bound for bound in bounds)
        return value, slope


def _leaky_slope(z: Tensor, slope: float = 0.01) -> Tensor:
    return aten.leaky_relu_backward(torch.ones_like(z), z, slope, False)


def _hardtanh_slope(z: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return ((z > low) & (z < high)).to(z.dtype)


def _gelu_slope(z: Tensor, approximate: str = "none") -> Tensor:
    z = z.clamp(-_GELU_END, _GELU_END)  # beyond, powers overflow
    return aten.gelu_backward(torch.ones_like(z), z, approximate=approximate)


def _gelu_curvature(z: Tensor, approximate: str = "none") -> Tensor:
    z = z.clamp(-_GELU_END, _GELU_END)
    if approximate == "tanh":
        c, a = math.sqrt(2 / math.pi), 0.044715
        t = torch.tanh(c * (z + a * z**3))
        inner, inner_slope = c * (1 + 3 * a * z**2), 6 * a * c * z  # the derivatives of the tanh's argument
        return (1 - t**2) * (inner + z * (inner_slope / 2 - t * inner**2))
    squares = z.square()
    density = squares.mul(-0.5).exp_()  # up to its constant
    return density.mul_(squares.neg_().add_(2)).mul_(1 / math.sqrt(2 * math.pi))  # (2 - z^2) times the density


def _tanh_curvature(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return t.square().sub_(1).mul_(t).mul_(2)


def _sigmoid_curvature(z: Tensor) -> Tensor:
    s, rest = torch.sigmoid(z), torch.sigmoid(-z)
    return (rest - s).mul_(s).mul_(rest)


def _silu_curvature(z: Tensor) -> Tensor:
    s, rest = torch.sigmoid(z), torch.sigmoid(-z)
    return (rest - s).mul_(z).add_(2).mul_(s).mul_(rest)


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _hardswish_slope(z: Tensor) -> Tensor:
    return torch.where(z <= -3, torch.zeros_like(z), torch.where(z < 3, (2 * z + 3) / 6, torch.ones_like(z)))


def _mish_slope(z: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(z))
    return t + z * (1 - t**2) * torch.sigmoid(z)


def _elu_slope(z: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return aten.elu_backward(torch.ones_like(z), alpha, scale, input_scale, False, z)


def _elu_curvature(z: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return _elu_slope(z, alpha, scale, input_scale).mul_(z < 0).mul_(input_scale)  # at 0 as autograd


def _elu_lipschitz(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> float:
    return abs(scale) * max(1.0, abs(alpha * input_scale))


def _huber(z: Tensor, delta: float) -> Tensor:
    within = z.clamp(-delta, delta)
    return within * (z - within / 2)


def _sinc_slope(z: Tensor) -> Tensor:
    near = z.abs() < 0.1  # where the difference below would cancel, and autograd divide by 0
    u = (math.pi * z).square()
    series = -(math.pi**2) * z * (1 / 3 - u / 30 + u**2 / 840 - u**3 / 45360 + u**4 / 3991680)
    far = torch.where(near, torch.ones_like(z), z)
    return torch.where(near, series, (torch.cos(math.pi * far) - torch.sinc(far)) / far)


def _softplus_slope(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    slope = torch.sigmoid(beta * z)
    return slope.masked_fill(beta * z > threshold, 1)  # torch's softplus is the identity there


def _softplus_curvature(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    curvature = beta * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)
    return curvature.masked_fill(beta * z > threshold, 0)


def _power(z: Tensor, exponent: float) -> Tensor:
    return z**exponent


def _power_slope(z: Tensor, exponent: float) -> Tensor:
    return exponent * z ** (exponent - 1)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        torch.relu,
        lambda z: (z > 0).to(z.dtype),
        lambda: 1.0,
        homogeneous=True,
        piecewise_linear=True,
        derivative_at_value=lambda z, value: value.sign(),  # one pass over data in the cache
    ),
    "leaky_relu": Activation(F.leaky_relu, _leaky_slope, lambda slope=0.01: max(1.0, abs(slope)), True, True),
    "prelu": Activation(
        lambda z, slope: torch.where(z > 0, z, slope * z),
        lambda z, slope: torch.where(z > 0, torch.ones_like(z), slope),
        lambda slope: max(1.0, float(slope.detach().abs().max())),
        homogeneous=True,
        piecewise_linear=True,
        slope_mask=lambda z: (z <= 0).to(z.dtype),
    ),
    "abs": Activation(torch.abs, torch.sign, lambda: 1.0, homogeneous=True, piecewise_linear=True),
    "threshold": Activation(  # a jump unless the value equals the threshold
        F.threshold,
        lambda z, threshold, value: (z > threshold).to(z.dtype),
        lambda threshold, value: 1.0 if threshold == value else math.inf,
        piecewise_linear=True,
    ),
    "hardshrink": Activation(
        F.hardshrink,
        lambda z, width=0.5: (z.abs() > width).to(z.dtype),
        lambda width=0.5: math.inf if width else 1.0,
        piecewise_linear=True,
    ),
    "softshrink": Activation(
        F.softshrink, lambda z, width=0.5: (z.abs() > width).to(z.dtype), lambda width=0.5: 1.0, piecewise_linear=True
    ),
    "softsign": Activation(F.softsign, lambda z: (1 + z.abs()) ** -2, lambda: 1.0),
    "sin": Activation(torch.sin, torch.cos, lambda: 1.0),
    "cos": Activation(torch.cos, lambda z: -torch.sin(z), lambda: 1.0),
    "atan": Activation(torch.atan, lambda z: 1 / (1 + z**2), lambda: 1.0),
    "huber": Activation(_huber, lambda z, delta: z.clamp(-delta, delta), lambda delta: delta),
    "hardtanh": Activation(F.hardtanh, _hardtanh_slope, lambda low=-1.0, high=1.0: 1.0, False, True),
    "tanh": Activation(
        torch.tanh,
        lambda z: 1 - torch.tanh(z) ** 2,
        lambda: 1.0,
        derivative_at_value=lambda z, value: 1 - value.square(),
        second_derivative=_tanh_curvature,
    ),
    "sigmoid": Activation(
        torch.sigmoid,
        lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
        lambda: 0.25,
        derivative_at_value=lambda z, value: value * torch.sigmoid(-z),
        second_derivative=_sigmoid_curvature,
    ),
    "softplus": Activation(
        F.softplus,
        _softplus_slope,
        # torch uses the identity beyond the threshold: a jump, which for a threshold of 20 is as small as rounding
        lambda beta=1.0, threshold=20.0: 1.0 if threshold >= 20 else math.inf,
        second_derivative=_softplus_curvature,
    ),
    # Extrema of the derivatives, at zeros of the second derivative: GELU at z = sqrt(2), SiLU at z = 2.3994;
    # rounded up in the last digit, so that they are bounds.
    "gelu": Activation(
        lambda z, approximate="none": F.gelu(z, approximate=approximate),
        _gelu_slope,
        lambda approximate="none": 1.1289042 if approximate == "none" else 1.1289931,
        second_derivative=_gelu_curvature,
    ),
    "silu": Activation(F.silu, _silu_slope, lambda: 1.0998394, second_derivative=_silu_curvature),
    "elu": Activation(aten.elu.default, _elu_slope, _elu_lipschitz, second_derivative=_elu_curvature),
    "hardsigmoid": Activation(
        # torch's hardsigmoid has no second derivative
        lambda z: F.hardtanh(z + 3, 0.0, 6.0) / 6,
        lambda z: ((z > -3) & (z < 3)).to(z.dtype) / 6,
        lambda: 1 / 6,
        piecewise_linear=True,
    ),
    "hardswish": Activation(F.hardswish, _hardswish_slope, lambda: 1.5),  # the slope just below z = 3
    # steepest at z = 1.4907, where the derivative is 1.088498..., rounded up
    "mish": Activation(F.mish, _mish_slope, lambda: 1.0884982),
    "log_sigmoid": Activation(F.logsigmoid, lambda z: torch.sigmoid(-z), lambda: 1.0),
    # Slopes without a bound: their Lipschitz constants are infinite.
    "pow": Activation(
        _power,
        _power_slope,
        lambda exponent: 1.0 if exponent == 1 else math.inf,
        steepest_at_ends=lambda exponent: exponent >= 1,
    ),
    "exp": Activation(torch.exp, torch.exp, lambda: math.inf, steepest_at_ends=lambda: True),
    "expm1": Activation(torch.expm1, torch.exp, lambda: math.inf, steepest_at_ends=lambda: True),
    "log": Activation(torch.log, torch.reciprocal, lambda: math.inf),
    "log1p": Activation(torch.log1p, lambda z: 1 / (1 + z), lambda: math.inf),
    "sinh": Activation(torch.sinh, torch.cosh, lambda: math.inf, steepest_at_ends=lambda: True),
    "cosh": Activation(torch.cosh, torch.sinh, lambda: math.inf, steepest_at_ends=lambda: True),
    "tan": Activation(torch.tan, lambda z: 1 + torch.tan(z) ** 2, lambda: math.inf),
    "acos": Activation(torch.acos, lambda z: -((1 - z**2).rsqrt()), lambda: math.inf, steepest_at_ends=lambda: True),
    "asin": Activation(torch.asin, lambda z: (1 - z**2).rsqrt(), lambda: math.inf, steepest_at_ends=lambda: True),
    "acosh": Activation(torch.acosh, lambda z: (z**2 - 1).rsqrt(), lambda: math.inf),
    "erfinv": Activation(
        torch.erfinv,
        lambda z: math.sqrt(math.pi) / 2 * torch.exp(torch.erfinv(z) ** 2),
        lambda: math.inf,
        steepest_at_ends=lambda: True,
    ),
    "lgamma": Activation(torch.lgamma, torch.digamma, lambda: math.inf),
    "digamma": Activation(torch.digamma, lambda z: torch.polygamma(1, z), lambda: math.inf),
    # steepest at z = 0.6626, where the derivative is -1.370305..., rounded up
    "sinc": Activation(torch.sinc, _sinc_slope, lambda: 1.3703052),
    "asinh": Activation(torch.asinh, lambda z: (1 + z**2).rsqrt(), lambda: 1.0),
    "sign": Activation(torch.sign, torch.zeros_like, lambda: math.inf, piecewise_linear=True),
    "floor": Activation(torch.floor, torch.zeros_like, lambda: math.inf, piecewise_linear=True),
    "ceil": Activation(torch.ceil, torch.zeros_like, lambda: math.inf, piecewise_linear=True),
    "round": Activation(torch.round, torch.zeros_like, lambda: math.inf, piecewise_linear=True),
    "trunc": Activation(torch.trunc, torch.zeros_like, lambda: math.inf, piecewise_linear=True),
    "erf": Activation(torch.erf, lambda z: 2 / math.sqrt(math.pi) * torch.exp(-(z**2)), lambda: 2 / math.sqrt(math.pi)),
}


def activation_of(node: Node) -> tuple[Activation, tuple]:
    """The table's row for an activation node, with the node's own arguments."""
    args = tuple(node.params.get("args", ()))
    if node.weight is not None:
        args += (node.weight.reshape(-1, *(1,) * (len(node.shape) - 1)) if node.shape else node.weight.reshape(()),)
    return ACTIVATIONS[node.params["kind"]], args
