"""Rules for operators that carry weights: linear maps, convolutions, batch norm."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...graph.nodes import UnsupportedLayerError
from .call import Call, Draft, Ref, Weight, is_weight, per_axis, rule
from .contractions import matmul_with_parameter
from .drafts import as_view, function
from .products import matmul

__all__ = ["batch_norm"]


@rule("linear.default")
def _linear(call: Call) -> Draft | None:
    x, w, b = call["input"], call["weight"], call.get("bias")
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not is_weight(b):
        return None
    return Draft("linear", (x,), w, b)


@rule("mm.default", "matmul.default", "addmm.default")
def _matmul(call: Call) -> Draft | Ref | None:
    names = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2") if "mat2" in call.args else ("self", "other")
    x, w = call[names[0]], call[names[1]]
    b = call["self"] if "mat1" in call.args else None
    if names[0] == "self" and isinstance(x, Ref) and isinstance(w, Ref):
        return matmul(call, x, w, (call.shapes[x.name], call.shapes[w.name]))
    if names[0] == "self" and isinstance(w, Weight) and w.tensor.dim() == 1:
        row = replace(w, tensor=w.tensor[None])
        return as_view(Draft("linear", (x,), row, shape=(*call.shape[1:], 1)))
    if names[0] == "self" and (isinstance(x, Weight) or w.tensor.dim() != 2):
        return matmul_with_parameter(call, x, w)
    if not isinstance(x, Ref) or not isinstance(w, Weight) or w.tensor.dim() != 2 or not is_weight(b):
        return None
    weight = _multiple(replace(w, tensor=w.tensor.t()), call.get("alpha", 1))
    return Draft("linear", (x,), weight, None if b is None else _multiple(b, call.get("beta", 1)))


def _multiple(weight: Weight, factor: float) -> Weight:
    return weight if factor == 1 else replace(weight, tensor=weight.tensor * factor)


@rule("bilinear.default")
def _bilinear(call: Call) -> Draft | None:
    """The linear map of the products of both signals' entries."""
    a, b, w, bias = call["input1"], call["input2"], call["weight"], call.get("bias")
    if not isinstance(a, Ref) or not isinstance(b, Ref) or not isinstance(w, Weight) or not is_weight(bias):
        return None
    _, n, m = w.tensor.shape
    places = call.shape[1:-1]
    if len(call.shape) < 2:
        return None
    column, row = as_view(a, (*places, n, 1)), as_view(b, (*places, 1, m))
    products = as_view(function("matmul", column, row, shape=(*places, n, m)), (*places, n * m))
    return Draft("linear", (products,), replace(w, tensor=w.tensor.flatten(1)), bias)


@rule(*(f"conv{nd}d.{kind}" for nd in (1, 2, 3) for kind in ("default", "padding")))
def _conv(call: Call) -> Draft | None:
    x, w, b = call["input"], call["weight"], call.get("bias")
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not is_weight(b):
        return None
    nd = w.tensor.dim() - 2
    stride, dilation = per_axis(call.get("stride", 1), nd), per_axis(call.get("dilation", 1), nd)
    padding = call.get("padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":  # torch adds the odd element at the end
        total = [d * (k - 1) for d, k in zip(dilation, w.tensor.shape[2:], strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in per_axis(padding, nd))
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
    if not isinstance(x, Ref) or not isinstance(w, Weight) or not is_weight(b):
        return None
    nd = w.tensor.dim() - 2
    params = {
        "nd": nd,
        "stride": per_axis(call.get("stride", 1), nd),
        "padding": tuple((p, p) for p in per_axis(call.get("padding", 0), nd)),
        "padding_mode": "zeros",
        "dilation": per_axis(call.get("dilation", 1), nd),
        "groups": call.get("groups", 1),
        "output_padding": per_axis(call.get("output_padding", 0), nd),
    }
    return Draft("conv_transpose", (x,), w, b, params)


@rule("_native_batch_norm_legit_no_training.default", "batch_norm.default")
def batch_norm(call: Call) -> Draft | None:
    """The scale and shift that a batch norm applies in eval mode."""
    x, w, b = call["input"], call.get("weight"), call.get("bias")
    mean, var = call.get("running_mean"), call.get("running_var")
    if call.get("training", False) or not isinstance(mean, Weight) or not isinstance(var, Weight):
        _refuse_batch_statistics(call)
    if not isinstance(x, Ref) or not is_weight(w) or not is_weight(b):
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
        f"The batch normalisation in layer `{call.scope}` uses batch statistics in eval mode, so its "
        "samples mix, and the network is not a function of one input. Build it with `track_running_stats=True`."
    )
