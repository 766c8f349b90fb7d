"""The calls that a recorded forward pass may make, and the operators as which an export would write them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CALLS", "KEEP_SHAPE", "RESHAPES", "VIEWS", "UnknownCallError"]

aten = torch.ops.aten
#: An operator, its arguments and its keyword arguments.
Translation = tuple[Any, tuple, dict[str, Any]]
Rule = Callable[..., Translation]


class UnknownCallError(Exception):
    """A call that cannot be recorded."""


def _call(target: Any, *args: Any, **options: Any) -> Translation:
    return target, args, options


def _same(target: Any) -> Rule:
    """The rule of a call that has the operator's arguments."""
    return lambda *args, **options: (target, args, options)


# ---- layers ---------------------------------------------------------------------------------------------------------


def _convolution(nd: int) -> Rule:
    packet = getattr(aten, f"conv{nd}d")

    def rule(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Translation:
        target = packet.padding if isinstance(padding, str) else packet.default
        return _call(target, x, weight, bias, stride, padding, dilation, groups)

    return rule


def _batch_norm(
    x: Any,
    mean: Any,
    variance: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Translation:
    if training:  # it also writes its statistics
        raise UnknownCallError("batch norm in training mode")
    cudnn = torch.backends.cudnn.enabled
    return _call(aten.batch_norm.default, x, weight, bias, mean, variance, training, momentum, eps, cudnn)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Translation:
    return _call(aten.layer_norm.default, x, list(shape), weight, bias, eps, torch.backends.cudnn.enabled)


def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Translation:
    return _call(aten.group_norm.default, x, groups, weight, bias, eps, torch.backends.cudnn.enabled)


def _normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Translation:
    record = x.tape.record
    norm = record(aten.clamp_min.default, record(aten.linalg_vector_norm.default, x, p, [dim], True), eps)
    return _call(aten.div.Tensor, x, record(aten.expand_as.default, norm, x))


def _dropout(target: Any) -> Rule:
    def rule(x: Any, p: float = 0.5, training: bool = True) -> Translation:
        if training:
            raise UnknownCallError("random numbers")
        return _call(target, x, p, training)

    return rule


def _softmax(target: Any) -> Rule:
    def rule(x: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Translation:
        if dim is None or dtype is not None:
            raise UnknownCallError("a softmax without an axis, or in another precision")
        return _call(target, x, dim)

    return rule


# ---- pooling --------------------------------------------------------------------------------------------------------


def _per_axis(size: Any, nd: int) -> list[Any]:
    return list(size) if isinstance(size, tuple | list) else [size] * nd


def _max_pool(nd: int) -> Rule:
    target = getattr(aten, f"max_pool{nd}d").default

    def rule(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Translation:
        if return_indices:
            raise UnknownCallError("indices of the maxima")
        stride = kernel_size if stride is None else stride
        return _call(target, x, *(_per_axis(size, nd) for size in (kernel_size, stride, padding, dilation)), ceil_mode)

    return rule


def _avg_pool(nd: int) -> Rule:
    target = getattr(aten, f"avg_pool{nd}d").default

    def rule(x: Any, kernel_size: Any, stride: Any, padding: Any, *others: Any) -> Translation:
        return _call(target, x, *(_per_axis(size, nd) for size in (kernel_size, stride, padding)), *others)

    return rule


def _adaptive_avg_pool(nd: int) -> Rule:
    target = getattr(aten, f"adaptive_avg_pool{nd}d").default

    def rule(x: Any, output_size: Any) -> Translation:
        sizes = zip(_per_axis(output_size, nd), x.shape[-nd:], strict=True)
        return _call(target, x, [there if size is None else size for size, there in sizes])

    return rule


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Translation:
    return _call(aten.flatten.using_ints, x, start_dim, end_dim)


def _reshape(target: Any) -> Rule:
    def rule(x: Any, *sizes: Any) -> Translation:
        return _call(target, x, list(sizes if isinstance(sizes[0], int) else sizes[0]))

    return rule


def _slices(x: Any, index: Any) -> Translation:
    """``x[:, :, ::2]``: one operator for each axis, of which the last is returned."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, slice) for part in parts) or parts[0] != slice(None):
        raise UnknownCallError("an index, or some of the samples")
    cuts = [(axis, part.start or 0, _end(part.stop), part.step or 1) for axis, part in enumerate(parts)]
    for cut in cuts[:-1]:
        x = x.tape.record(aten.slice.Tensor, x, *cut)
    return _call(aten.slice.Tensor, x, *cuts[-1])


def _end(stop: int | None) -> int:
    return sys.maxsize if stop is None else stop


RESHAPES = {aten.reshape.default, aten.view.default}
#: Operators whose result may be their argument, or a view of it.
VIEWS = RESHAPES | {aten.flatten.using_ints, aten.slice.Tensor, aten.dropout.default, aten.feature_dropout.default}

_ELEMENTWISE: dict[Any, Rule] = {
    F.relu: _same(aten.relu.default),
    F.leaky_relu: _same(aten.leaky_relu.default),
    F.elu: lambda x, alpha=1.0: _call(aten.elu.default, x, alpha),
    F.selu: _same(aten.selu.default),
    F.celu: lambda x, alpha=1.0: _call(aten.celu.default, x, alpha),
    F.hardtanh: lambda x, min_val=-1.0, max_val=1.0: _call(aten.hardtanh.default, x, min_val, max_val),
    F.gelu: _same(aten.gelu.default),
    F.silu: _same(aten.silu.default),
    F.mish: _same(aten.mish.default),
    F.hardswish: _same(aten.hardswish.default),
    F.hardsigmoid: _same(aten.hardsigmoid.default),
    F.softplus: _same(aten.softplus.default),
    F.logsigmoid: _same(aten.log_sigmoid.default),
    torch.prelu: _same(aten.prelu.default),
    torch.tanh: _same(aten.tanh.default),
    torch.sigmoid: _same(aten.sigmoid.default),
    Tensor.neg: _same(aten.neg.default),
}
#: torch's functions and their rules.
CALLS: dict[Any, Rule] = _ELEMENTWISE | {
    F.linear: _same(aten.linear.default),
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _same(aten.conv_transpose1d.default),
    torch.conv_transpose2d: _same(aten.conv_transpose2d.input),
    torch.conv_transpose3d: _same(aten.conv_transpose3d.input),
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.normalize: _normalize,
    F.softmax: _softmax(aten.softmax.int),
    F.log_softmax: _softmax(aten.log_softmax.int),
    F.dropout: _dropout(aten.dropout.default),
    F.dropout2d: _dropout(aten.feature_dropout.default),
    F.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    F.max_pool3d: _max_pool(3),
    F.avg_pool2d: _avg_pool(2),
    F.avg_pool3d: _avg_pool(3),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(2),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(3),
    F.pad: lambda x, pad, mode="constant", value=None: _call(aten.pad.default, x, list(pad), mode, value),
    torch.flatten: _flatten,
    Tensor.flatten: _flatten,
    Tensor.reshape: _reshape(aten.reshape.default),
    Tensor.view: _reshape(aten.view.default),
    Tensor.add: _same(aten.add.Tensor),
    Tensor.sub: _same(aten.sub.Tensor),
    Tensor.mul: _same(aten.mul.Tensor),
    Tensor.div: _same(aten.div.Tensor),
    Tensor.__getitem__: _slices,
}
#: Operators whose result has the shape and the dtype of their first argument.
KEEP_SHAPE = {rule(None)[0] for rule in _ELEMENTWISE.values()} | {
    *(aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.clamp_min.default),
    *(aten.softmax.int, aten.log_softmax.int, aten.dropout.default, aten.feature_dropout.default),
}
