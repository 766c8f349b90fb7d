"""One rule per aten operator: what canonical node it becomes.

A rule gets the call (its arguments by name, `Ref` where they depend on the network's input) and returns a `Draft`,
or None where the operator has no canonical form in this use; it then becomes "opaque": it can be evaluated, and every
other interpretation refuses it by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .nodes import UnsupportedLayerError

__all__ = ["CONVERSIONS", "Call", "Draft", "Ref", "Weight"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Ref:
    """A value that depends on the network's input."""

    name: str


@dataclass(frozen=True)
class Weight:
    """A tensor computed from parameters and buffers alone."""

    tensor: Tensor
    trainable: bool
    sources: frozenset[str]


@dataclass(frozen=True)
class Draft:
    """What a rule says of a node; binding adds name, scope and shape."""

    op: str
    inputs: tuple[Ref, ...]
    weight: Weight | None = None
    bias: Weight | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """An operator's arguments by their schema's names, and the shapes of its inputs and output (batch included)."""

    target: Any
    args: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    scope: str
    device: torch.device

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    def rank(self, ref: Ref) -> int:
        return len(self.shapes[ref.name])


Rule = Callable[[Call], "Draft | Ref | None"]
CONVERSIONS: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten overloads, given as "name.overload"."""

    def register(function: Rule) -> Rule:
        for name in names:
            packet, overload = name.split(".")
            CONVERSIONS[getattr(getattr(aten, packet), overload)] = function
        return function

    return register


def _is_weight(value: Any) -> bool:
    return value is None or isinstance(value, Weight)


# -- linear maps with weights -----------------------------------------------------------------------------------------


@rule("linear.default")
def _linear(call: Call) -> Draft | None:
    x, w, b = call["input"], call["weight"], call.get("bias")
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not _is_weight(b):
        return None
    return Draft("linear", (x,), w, b)


@rule("mm.default", "matmul.default", "addmm.default")
def _matmul(call: Call) -> Draft | None:
    names = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2") if "mat2" in call.args else ("self", "other")
    x, w = call[names[0]], call[names[1]]
    b = call["self"] if "mat1" in call.args else None
    if not isinstance(x, Ref) or not isinstance(w, Weight) or w.tensor.dim() != 2 or not _is_weight(b):
        return None
    if call.get("beta", 1) != 1 or call.get("alpha", 1) != 1:
        return None
    return Draft("linear", (x,), Weight(w.tensor.t(), w.trainable, w.sources), b)


def _tuple(value: Any, nd: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * nd if len(values) == 1 else values


@rule(*(f"conv{nd}d.{kind}" for nd in (1, 2, 3) for kind in ("default", "padding")))
def _conv(call: Call) -> Draft | None:
    x, w, b = call["input"], call["weight"], call.get("bias")
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not _is_weight(b):
        return None
    nd = w.tensor.dim() - 2
    stride, dilation = _tuple(call.get("stride", 1), nd), _tuple(call.get("dilation", 1), nd)
    padding = call.get("padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":  # torch puts the odd element at the end
        total = [d * (k - 1) for d, k in zip(dilation, w.tensor.shape[2:], strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _tuple(padding, nd))
    params = {
        "nd": nd,
        "stride": stride,
        "padding": pads,
        "padding_mode": "zeros",
        "dilation": dilation,
        "groups": call.get("groups", 1),
        "output_padding": (0,) * nd,
    }
    return Draft("conv", (x,), w, b, params)


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(call: Call) -> Draft | None:
    x, w, b = call["input"], call["weight"], call.get("bias")
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not _is_weight(b):
        return None
    nd = w.tensor.dim() - 2
    params = {
        "nd": nd,
        "stride": _tuple(call.get("stride", 1), nd),
        "padding": tuple((p, p) for p in _tuple(call.get("padding", 0), nd)),
        "padding_mode": "zeros",
        "dilation": _tuple(call.get("dilation", 1), nd),
        "groups": call.get("groups", 1),
        "output_padding": _tuple(call.get("output_padding", 0), nd),
    }
    return Draft("conv_transpose", (x,), w, b, params)


@rule("_native_batch_norm_legit_no_training.default", "batch_norm.default")
def _batch_norm(call: Call) -> Draft | None:
    x, w, b = call["input"], call.get("weight"), call.get("bias")
    mean, var = call.get("running_mean"), call.get("running_var")
    if call.get("training", False) or not isinstance(mean, Weight) or not isinstance(var, Weight):
        _refuse_batch_statistics(call)
    if not isinstance(x, Ref) or not _is_weight(w) or not _is_weight(b):
        return None
    scale = torch.rsqrt(var.tensor + call["eps"])
    if w is not None:
        scale = scale * w.tensor
    shift = -mean.tensor * scale
    if b is not None:
        shift = shift + b.tensor
    sources = frozenset().union(*(t.sources for t in (w, b, mean, var) if t is not None))
    trained = w is not None and w.trainable
    return Draft(
        "diagonal",
        (x,),
        Weight(scale, trained, sources),
        Weight(shift, b is not None and b.trainable, sources),
        {"kind": "batch_norm", "dim": 1, "layer": True},
    )


@rule("_native_batch_norm_legit.default", "_native_batch_norm_legit.no_stats", "native_batch_norm.default")
def _refuse_batch_statistics(call: Call) -> Draft | None:
    raise UnsupportedLayerError(
        f"The batch normalisation in layer `{call.scope}` uses the statistics of the batch in eval mode, so its samples "
        "mix and the network is no function of one input. Build it with `track_running_stats=True`."
    )


# -- element-wise ------------------------------------------------------------------------------------------------------

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
}


@rule(*_ACTIVATION_ARGS)
def _activation(call: Call) -> Draft | None:
    name = call.target.__name__  # "leaky_relu.default"
    kind = name.split(".")[0]
    args = tuple(call[key] for key in _ACTIVATION_ARGS[name])
    if kind == "relu6":
        kind, args = "hardtanh", (0.0, 6.0)
    return Draft("activation", (call["self"],), params={"kind": kind, "args": args})


@rule("clamp_min.default", "clamp.default")
def _clamp(call: Call) -> Draft | None:
    low, high = call.get("min"), call.get("max")
    if low is None or isinstance(low, Ref | Weight) or isinstance(high, Ref | Weight):
        return None
    if high is None:
        return Draft("activation", (call["self"],), params={"kind": "relu", "args": ()}) if low == 0 else None
    return Draft("activation", (call["self"],), params={"kind": "hardtanh", "args": (float(low), float(high))})


@rule("clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default")
def _identity(call: Call) -> Ref:
    return call["self"]


@rule("_to_copy.default", "to.dtype")
def _cast(call: Call) -> Ref | None:
    # A measurement runs in the dtype it was asked for; a cast between floating dtypes is the identity there.
    dtype = call.get("dtype")
    return call["self"] if dtype is None or dtype.is_floating_point else None


@rule("dropout.default")
def _dropout(call: Call) -> Ref | None:
    return None if call["train"] else call["input"]


def _constant(value: Any, call: Call) -> Weight | None:
    """A number or parameter-only tensor that multiplies or shifts whole samples, as a weight."""
    if isinstance(value, Weight):
        # A leading axis would index the batch: only tensors that broadcast over the samples are constants.
        fits = value.tensor.dim() < len(call.shape) or value.tensor.shape[0] == 1
        return value if fits else None
    if isinstance(value, int | float):
        # Zero-dimensional, so it takes on the dtype of what it multiplies.
        return Weight(torch.full((), float(value), dtype=torch.float64, device=call.device), False, frozenset())
    return None


def _scaled(x: Ref, factor: Weight, call: Call) -> Draft:
    return Draft("diagonal", (x,), factor, None, {"kind": "scale", "dim": None, "layer": factor.trainable})


@rule("mul.Tensor", "mul.Scalar")
def _mul(call: Call) -> Draft | None:
    a, b = call["self"], call["other"]
    x, factor = (a, b) if isinstance(a, Ref) else (b, a)
    constant = None if isinstance(factor, Ref) else _constant(factor, call)
    return None if constant is None else _scaled(x, constant, call)


@rule("div.Tensor", "div.Scalar")
def _div(call: Call) -> Draft | None:
    x, constant = call["self"], None if isinstance(call["other"], Ref) else _constant(call["other"], call)
    if not isinstance(x, Ref) or constant is None:
        return None
    return _scaled(x, Weight(1 / constant.tensor, constant.trainable, constant.sources), call)


@rule("neg.default")
def _neg(call: Call) -> Draft | None:
    minus = _constant(-1.0, call)
    return None if minus is None else _scaled(call["self"], minus, call)


def _sum(call: Call, signs: tuple[float, float]) -> Draft | None:
    a, b = call["self"], call["other"]
    alpha = call.get("alpha", 1)
    signs = (signs[0], signs[1] * alpha)
    if isinstance(a, Ref) and isinstance(b, Ref):
        same = call.shapes[a.name] == call.shapes[b.name]
        return Draft("add", (a, b), params={"signs": signs}) if same else None
    x, constant, sign, own = (a, b, signs[1], signs[0]) if isinstance(a, Ref) else (b, a, signs[0], signs[1])
    shift = _constant(constant, call)
    if shift is None or (own != 1):
        return None
    shift = Weight(shift.tensor * sign, shift.trainable, shift.sources)
    return Draft("diagonal", (x,), None, shift, {"kind": "shift", "dim": None})


@rule("add.Tensor", "add.Scalar")
def _add(call: Call) -> Draft | None:
    return _sum(call, (1.0, 1.0))


@rule("sub.Tensor", "sub.Scalar")
def _sub(call: Call) -> Draft | None:
    return _sum(call, (1.0, -1.0))


# -- linear maps without weights -----------------------------------------------------------------------------------------


def _dims(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(range(rank)) if value is None else tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(sorted(d % rank for d in values))


@rule("mean.dim", "sum.dim_IntList")
def _reduce(call: Call) -> Draft | None:
    x = call["self"]
    dims = _dims(call.get("dim"), call.rank(x))
    if 0 in dims:
        return None
    count = math.prod(call.shapes[x.name][d] for d in dims)
    mean = call.target is aten.mean.dim
    factor = 1 / count if mean else 1.0
    params = {"kind": "mean" if mean else "sum", "dims": dims, "keepdim": call.get("keepdim", False), "factor": factor}
    return Draft("reduce", (x,), params=params)


@rule("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unsqueeze.default")
@rule("squeeze.dim", "squeeze.dims", "squeeze.default", "unflatten.int")
def _view(call: Call) -> Draft:
    return Draft("view", (call["self"],), params={"kind": "view"})


@rule("permute.default")
def _permute(call: Call) -> Draft | None:
    dims = tuple(d % len(call.shape) for d in call["dims"])
    return Draft("permute", (call["self"],), params={"dims": dims}) if dims[0] == 0 else None


@rule("transpose.int")
def _transpose(call: Call) -> Draft | None:
    rank = len(call.shape)
    a, b = call["dim0"] % rank, call["dim1"] % rank
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return Draft("permute", (call["self"],), params={"dims": tuple(dims)}) if dims[0] == 0 else None


@rule("slice.Tensor")
def _slice(call: Call) -> Draft | Ref | None:
    x, rank = call["self"], call.rank(call["self"])
    dim, start, end, step = call.get("dim", 0) % rank, call.get("start", 0), call.get("end"), call.get("step", 1)
    if any(isinstance(v, Ref) for v in (start, end)):
        return None
    whole = start == 0 and step == 1 and (end is None or end >= (1 << 62))
    if whole:
        return x
    if dim == 0:
        return None
    size = call.shapes[x.name][dim]
    start, end, _ = slice(start, end).indices(size)
    return Draft("slice", (x,), params={"kind": "slice", "dim": dim, "index": slice(start, end, step)})


@rule("select.int")
def _select(call: Call) -> Draft | None:
    x = call["self"]
    dim, index = call["dim"] % call.rank(x), call["index"]
    if dim == 0 or isinstance(index, Ref):
        return None
    return Draft("slice", (x,), params={"kind": "select", "dim": dim, "index": index % call.shapes[x.name][dim]})


@rule("cat.default")
def _cat(call: Call) -> Draft | None:
    tensors, dim = call["tensors"], call.get("dim", 0) % len(call.shape)
    if dim == 0 or not all(isinstance(t, Ref) for t in tensors):
        return None
    return Draft("cat", tuple(tensors), params={"dim": dim})


@rule("pad.default", "constant_pad_nd.default")
def _pad(call: Call) -> Draft | None:
    mode, value = call.get("mode", "constant"), call.get("value", 0)
    pads = tuple(call["pad"])
    if mode == "constant" and value != 0:
        return None
    if len(pads) // 2 >= len(call.shape):
        return None
    return Draft("pad", (call["self"],), params={"kind": "pad", "pads": pads, "mode": mode})


# -- pooling ----------------------------------------------------------------------------------------------------------


def _window(call: Call, nd: int) -> dict[str, Any]:
    kernel = _tuple(call["kernel_size"], nd)
    stride = _tuple(call["stride"], nd) if call.get("stride") else kernel
    return {
        "nd": nd,
        "kernel": kernel,
        "stride": stride,
        "padding": _tuple(call.get("padding", 0), nd),
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }


@rule(*(f"max_pool{nd}d.default" for nd in (1, 2, 3)), "max_pool2d_with_indices.default")
def _max_pool(call: Call) -> Draft:
    nd = len(call["kernel_size"]) if "1d" not in call.target.__name__ else 1
    params = _window(call, nd) | {"dilation": _tuple(call.get("dilation", 1), nd), "kind": "max_pool"}
    return Draft("max_pool", (call["self"],), params=params)


@rule(*(f"avg_pool{nd}d.default" for nd in (1, 2, 3)))
def _avg_pool(call: Call) -> Draft:
    nd = int(call.target.__name__[len("avg_pool")])
    params = _window(call, nd) | {
        "count_include_pad": bool(call.get("count_include_pad", True)),
        "divisor_override": call.get("divisor_override"),
        "kind": "avg_pool",
    }
    return Draft("avg_pool", (call["self"],), params=params)


@rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
@rule("adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default")
def _adaptive_avg_pool(call: Call) -> Draft | None:
    x = call["self"]
    nd = len(call["output_size"])
    sizes, out = call.shapes[x.name][-nd:], call.shape[-nd:]
    if any(s % o for s, o in zip(sizes, out, strict=True)):  # windows of unequal size
        return Draft("avg_pool", (x,), params={"nd": nd, "adaptive": tuple(out), "kind": "adaptive_avg_pool"})
    kernel = tuple(s // o for s, o in zip(sizes, out, strict=True))
    window = {"nd": nd, "kernel": kernel, "stride": kernel, "padding": (0,) * nd, "ceil_mode": False}
    params = window | {"count_include_pad": True, "divisor_override": None, "kind": "avg_pool"}
    return Draft("avg_pool", (x,), params=params)


@rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max_pool(call: Call) -> Draft | None:
    x = call["self"]
    nd = len(call["output_size"])
    sizes, out = call.shapes[x.name][-nd:], call["output_size"]
    if any(s % o for s, o in zip(sizes, out, strict=True)):
        return None
    kernel = tuple(s // o for s, o in zip(sizes, out, strict=True))
    window = {"nd": nd, "kernel": kernel, "stride": kernel, "padding": (0,) * nd, "ceil_mode": False}
    return Draft("max_pool", (x,), params=window | {"dilation": (1,) * nd, "kind": "max_pool"})


@rule("max_pool1d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool_with_indices(call: Call) -> Draft:
    return _max_pool(call)
