"""Rules for element-wise operators: activations, scalings, shifts, sums."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .call import Call, Draft, Ref, Weight, rule
from .composite_activations import composite_activation
from .drafts import activation, centred, scaled, shifted
from .maxima import chosen, compared, constant, negated
from .products import product
from .shapes import all_widened, widened

_ACTIVATION_ARGS: dict[str, tuple[str, ...]] = {
    "relu.default": (),
    "relu6.default": (),
    "leaky_relu.default": ("negative_slope",),
    "hardtanh.default": ("min_val", "max_val"),
    "tanh.default": (),
    "sigmoid.default": (),
    "softplus.default": ("beta", "threshold"),
    "gelu.default": ("approximate",),
    "silu.default": (),
    "elu.default": ("alpha", "scale", "input_scale"),
    "erf.default": (),
    "hardsigmoid.default": (),
    "hardswish.default": (),
    "mish.default": (),
    "log_sigmoid.default": (),
    "log_sigmoid_forward.default": (),
    "abs.default": (),
    "threshold.default": ("threshold", "value"),
    "hardshrink.default": ("lambd",),
    "softshrink.default": ("lambd",),
    "sin.default": (),
    "cos.default": (),
    "atan.default": (),
    "asinh.default": (),
    "exp.default": (),
    "expm1.default": (),
    "log.default": (),
    "log1p.default": (),
    "sinh.default": (),
    "cosh.default": (),
    "tan.default": (),
    "sign.default": (),
    "floor.default": (),
    "ceil.default": (),
    "round.default": (),
    "trunc.default": (),
    "acos.default": (),
    "acosh.default": (),
    "asin.default": (),
    "sinc.default": (),
    "erfinv.default": (),
    "lgamma.default": (),
    "digamma.default": (),
}
_POWERS = {"sqrt.default": 0.5, "rsqrt.default": -0.5, "reciprocal.default": -1.0, "square.default": 2.0}


@rule(*_ACTIVATION_ARGS)
def _activation(call: Call) -> Draft | None:
    name = call.target.__name__  # "leaky_relu.default"
    kind = name.split(".")[0].removesuffix("_forward")
    args = tuple(call[key] for key in _ACTIVATION_ARGS[name])
    if kind == "relu6":
        kind, args = "hardtanh", (0.0, 6.0)
    if kind == "threshold" and not any(args):
        kind, args = "relu", ()
    return activation(kind, call["self"], *args)


@rule(*_POWERS, "pow.Tensor_Scalar")
def _power(call: Call) -> Draft | None:
    exponent = call.args.get("exponent", _POWERS.get(call.target.__name__))
    if isinstance(exponent, Ref | Weight):
        return None
    return activation("pow", call["self"], float(exponent))


#: Activations up to constants: the activation's name, the factors of its input and of its output, and a shift.
_SCALED = {
    "log2.default": ("log", 1.0, 1 / math.log(2), 0.0),
    "log10.default": ("log", 1.0, 1 / math.log(10), 0.0),
    "exp2.default": ("exp", math.log(2), 1.0, 0.0),
    "erfc.default": ("erf", 1.0, -1.0, 1.0),
}


@rule(*_SCALED)
def _scaled_activation(call: Call) -> Draft:
    kind, inner, outer, shift = _SCALED[call.target.__name__]
    x, shape = call["self"], call.shape[1:]
    if inner != 1:
        x = scaled(x, constant(inner, call), shape=shape)
    x = activation(kind, x, shape=shape)
    if (outer, shift) == (1, 0):
        return x
    return scaled(x, constant(outer, call), None if shift == 0 else constant(shift, call))


@rule("huber_loss.default", "smooth_l1_loss.default")
def _huber(call: Call) -> Draft | None:
    """The distance d of two values as d^2 / 2 up to a number, and beyond it as the tangent there."""
    delta = float(call["delta"] if "delta" in call.args else call["beta"])
    gap = _sum(replace(call, args={"self": call["self"], "other": call["target"]}), (1.0, -1.0))
    if call["reduction"] or gap is None or delta <= 0:  # a reduction mixes the samples
        return None
    shape = call.shape[1:]
    loss = activation("huber", replace(gap, shape=shape), delta, shape=shape)
    return loss if "delta" in call.args else scaled(loss, constant(1 / delta, call))


@rule("selu.default")
def _selu(call: Call) -> Draft:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return activation("elu", call["self"], alpha, scale, 1.0)


@rule("celu.default")
def _celu(call: Call) -> Draft:
    alpha = float(call["alpha"])
    return activation("elu", call["self"], alpha, 1.0, 1 / alpha)


@rule("rrelu.default")
def _rrelu(call: Call) -> Draft | None:
    if call["training"]:
        return None
    return activation("leaky_relu", call["self"], (float(call["lower"]) + float(call["upper"])) / 2)


@rule("prelu.default")
def _prelu(call: Call) -> Draft | None:
    slope, x = call["weight"], call["self"]
    if not isinstance(x, Ref) or not isinstance(slope, Weight):
        return None
    return Draft("activation", (x,), slope, params={"kind": "prelu", "dim": 1 if len(call.shape) > 1 else None})


@rule("clamp_min.default", "clamp_max.default", "clamp.default")
def _clamp(call: Call) -> Draft | None:
    low, high = call.get("min", -math.inf), call.get("max", math.inf)
    if isinstance(low, Ref | Weight) or isinstance(high, Ref | Weight):
        return None
    if low == 0 and high == math.inf:
        return activation("relu", call["self"])
    return activation("hardtanh", call["self"], float(low), float(high))


@rule("clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default")
@rule("positive.default", "nan_to_num.default")  # which changes no finite number
@rule("type_as.default", "to.other")  # for casts see `_cast`
def _identity(call: Call) -> Ref:
    return call["self"]


@rule("copy.default")
def _copy(call: Call) -> Ref | Draft | None:
    """What is written over all of a tensor, broadcast to its shape."""
    return widened(call, call["src"]) if isinstance(call["src"], Ref) else None


@rule("_to_copy.default", "to.dtype", "to.device", "to.dtype_layout")
def _cast(call: Call) -> Ref | None:
    # A measurement runs in the requested dtype, so a cast between floating dtypes is treated as the identity.
    dtype = call.get("dtype")
    return call["self"] if dtype is None or dtype.is_floating_point else None


@rule("dropout.default", "alpha_dropout.default", "feature_dropout.default", "feature_alpha_dropout.default")
def _dropout(call: Call) -> Ref | None:
    return None if call["train"] else call["input"]


def _multiplied(x: Ref, factor: Weight, call: Call) -> Draft | None:
    """The signal times a factor; one that is trained is a layer of its own, on the signal broadcast to its shape.

    A constant that repeats the signal is one map with it, whose norm is exact.
    """
    wide = widened(call, x) if factor.trainable else x
    return None if wide is None else scaled(wide, factor, layer=factor.trainable)


@rule("mul.Tensor", "mul.Scalar")
def _mul(call: Call) -> Draft | Ref | None:
    a, b = call["self"], call["other"]
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _product(call, a, b)
    x, factor = (a, b) if isinstance(a, Ref) else (b, a)
    weight = constant(factor, call)
    return None if weight is None else _multiplied(x, weight, call)


def _product(call: Call, a: Ref, b: Ref) -> Draft | Ref | None:
    """A product of two signals, or the activation or normalisation that is written as this product."""
    for x, other in ((a, b), (b, a)):
        if compared(call, other) is not None:  # x (x > 0)
            return chosen(call, other, x, 0.0)
    if not all(call.is_real(x) for x in (a, b)):
        return None
    return composite_activation(call, a, b) or product(call, a, b, (call.shapes[a.name], call.shapes[b.name]))


@rule("div.Tensor", "div.Scalar")
def _div(call: Call) -> Draft | None:
    if _is_softsign(call):
        return activation("softsign", call["self"])
    x, other = call["self"], call["other"]
    if isinstance(other, Ref):
        return _quotient(call, x, other)
    divisor = constant(other, call)
    if not isinstance(x, Ref) or divisor is None:
        return None
    # The reciprocal of an integer tensor has the network's precision.
    inverse = 1 / divisor.tensor.to(call.dtype) if isinstance(other, Weight) else 1 / divisor.tensor
    return _multiplied(x, replace(divisor, tensor=inverse), call)


def _quotient(call: Call, x: Any, divisor: Ref) -> Draft | None:
    """x / y as the product of x and 1 / y, or as a multiple of 1 / y."""
    shape = call.shapes[divisor.name]
    inverse = activation("pow", divisor, -1.0, shape=shape[1:])
    if isinstance(x, Ref):
        return product(call, x, inverse, (call.shapes[x.name], shape))
    factor = constant(x, call)
    if factor is None or shape != call.shape:
        return None
    return scaled(inverse, factor, layer=factor.trainable)


def _is_softsign(call: Call) -> bool:
    """Whether it is x / (1 + abs(x)): torch has no such operator."""
    if not isinstance(call["self"], Ref) or not isinstance(call["other"], Ref):
        return False
    shift = call.producer(call["other"])
    if shift.op != "diagonal" or shift.weight is not None or shift.bias is None or not bool((shift.bias == 1).all()):
        return False
    inner = call.producer(Ref(shift.inputs[0]))
    return inner.params.get("kind") == "abs" and inner.inputs == (call["self"].name,) and not any(shift.trainable)


@rule("neg.default")
def _neg(call: Call) -> Draft:
    return negated(call, call["self"])


def _sum(call: Call, signs: tuple[float, float]) -> Draft | None:
    a, b = call["self"], call["other"]
    alpha = call.get("alpha", 1)
    signs = (signs[0] * alpha, signs[1]) if "rsub" in call.target.__name__ else (signs[0], signs[1] * alpha)
    if isinstance(a, Ref) and isinstance(b, Ref):
        if _is_centring(call, a, b, signs):
            return centred(a, call.producer(b).params["dims"])
        parts = all_widened(call, a, b)
        return None if parts is None else Draft("add", parts, params={"signs": signs})
    x, added, sign, multiple = (a, b, signs[1], signs[0]) if isinstance(a, Ref) else (b, a, signs[0], signs[1])
    shift, wide = constant(added, call), widened(call, x)
    if shift is None or wide is None:
        return None
    factor = None if multiple == 1 else constant(float(multiple), call)
    # A view of a parameter remains one, in which a number may stand several times.
    return shifted(wide, shift if sign == 1 else replace(shift, tensor=shift.tensor * sign), factor)


def _is_centring(call: Call, x: Ref, mean: Ref, signs: tuple[float, float]) -> bool:
    """Whether it is x - mean(x), over axes that were kept."""
    node = call.producer(mean)
    return (
        signs == (1, -1)
        and node.op == "reduce"
        and node.params["kind"] == "mean"
        and node.params["keepdim"]
        and node.inputs == (x.name,)
    )


@rule("add.Tensor", "add.Scalar")
def _add(call: Call) -> Draft | None:
    return _sum(call, (1.0, 1.0))


@rule("sub.Tensor", "sub.Scalar")
def _sub(call: Call) -> Draft | None:
    return _sum(call, (1.0, -1.0))


@rule("rsub.Tensor", "rsub.Scalar")  # other - alpha * self
def _rsub(call: Call) -> Draft | None:
    return _sum(call, (-1.0, 1.0))
