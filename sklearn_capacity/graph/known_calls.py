"""The calls that a recorded forward pass may make, the operators as which an export would write them, their results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CALLS", "IN_PLACE", "RESHAPES", "VIEWS", "WITHOUT_EFFECT", "UnknownCallError", "fits", "result_of"]

aten = torch.ops.aten
#: An operator, its arguments and its keyword arguments.
Translation = tuple[Any, tuple, dict[str, Any]]
Rule = Callable[..., Translation]
Shape = Sequence[int]


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


def _cat(tensors: Any, dim: int = 0) -> Translation:
    return _call(aten.cat.default, list(tensors), dim)


def _permute(x: Any, *dims: Any) -> Translation:
    return _call(aten.permute.default, x, list(dims if isinstance(dims[0], int) else dims[0]))


def _mean(x: Any, dim: Any, keepdim: bool = False) -> Translation:
    return _call(aten.mean.dim, x, [dim] if isinstance(dim, int) else list(dim), keepdim)


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
#: Operators that change no value in eval mode, the only one that is recorded.
WITHOUT_EFFECT = {aten.dropout.default, aten.feature_dropout.default}
#: Operators whose result may be their argument, or a view of it.
VIEWS = RESHAPES | WITHOUT_EFFECT
VIEWS |= {aten.flatten.using_ints, aten.slice.Tensor, aten.permute.default, aten.transpose.int}

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
    **dict.fromkeys((torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _same(aten.relu.default)),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _same(aten.tanh.default)),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _same(aten.sigmoid.default)),
    Tensor.neg: _same(aten.neg.default),
}
#: Calls that overwrite their first argument, beside those with `inplace`.
IN_PLACE = {torch.relu_, Tensor.relu_, Tensor.add_, Tensor.sub_, Tensor.mul_, Tensor.div_}
_REARRANGEMENTS: dict[Any, Rule] = {
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((torch.reshape, Tensor.reshape), _reshape(aten.reshape.default)),
    Tensor.view: _reshape(aten.view.default),
    **dict.fromkeys((torch.permute, Tensor.permute), _permute),
    **dict.fromkeys((torch.transpose, Tensor.transpose), _same(aten.transpose.int)),
    Tensor.__getitem__: _slices,
    torch.cat: _cat,
}
#: torch's functions and their rules.
CALLS: dict[Any, Rule] = (
    _ELEMENTWISE
    | _REARRANGEMENTS
    | {
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
        **dict.fromkeys((torch.add, Tensor.add, Tensor.add_), _same(aten.add.Tensor)),
        **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), _same(aten.sub.Tensor)),
        **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_), _same(aten.mul.Tensor)),
        **dict.fromkeys((torch.div, Tensor.div, Tensor.div_), _same(aten.div.Tensor)),
        **dict.fromkeys((torch.mean, Tensor.mean), _mean),
    }
)
#: Operators whose result has the shape and the dtype of their first argument.
KEEP_SHAPE = {rule(None)[0] for rule in _ELEMENTWISE.values()} | {
    *(aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.clamp_min.default),
    *(aten.softmax.int, aten.log_softmax.int, aten.dropout.default, aten.feature_dropout.default),
}


def fits(target: Any, args: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether an operator takes such arguments, which its function in torch may have in another order."""
    schema = target._schema.arguments
    positional = [argument.name for argument in schema if not argument.kwarg_only]
    others = {argument.name for argument in schema} - set(positional[: len(args)])
    return len(args) <= len(positional) and isinstance(args[0], Tensor | list) and options.keys() <= others


# ---- results: for their shapes, torch would first import hundreds of modules ----------------------------------------


def result_of(target: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The result of an operator on tensors without entries; only its shape and its dtype are meaningful."""
    first: Tensor = args[0][0] if isinstance(args[0], list) else args[0]
    if target in KEEP_SHAPE:
        return first
    shape = _SHAPES[target](*args) if target in _SHAPES and not options else None
    if shape is None:  # an unusual case, or an error
        result: Tensor = target(*args, **options)
        return result
    return first if shape == first.shape else first.new_empty(shape)


def _shape_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    return (*x.shape[:-1], len(weight)) if x.shape[-1:] == weight.shape[1:] and x.dtype == weight.dtype else None


def _shape_of_two(a: Tensor, b: Any) -> Shape | None:
    if not isinstance(b, Tensor):
        return a.shape if a.is_floating_point() else None
    alike = a.dtype == b.dtype and len(a.shape) >= len(b.shape)
    return torch.broadcast_shapes(a.shape, b.shape) if alike else None


def _windows(x: Tensor, channels: int, sizes: Shape, strides: Shape, paddings: Shape, dilations: Shape) -> Shape:
    axes = zip(x.shape[-len(sizes) :], sizes, strides, paddings, dilations, strict=True)
    return (len(x), channels, *((n + 2 * p - d * (size - 1) - 1) // s + 1 for n, size, s, p, d in axes))


def _shape_of_convolution(
    x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    fits = x.dim() == weight.dim() and x.shape[1] == groups * weight.shape[1] and x.dtype == weight.dtype
    shape = _windows(x, len(weight), weight.shape[2:], stride, padding, dilation) if fits else (0,)
    return shape if min(shape) > 0 else None


def _shape_of_pooling(nd: int, kinds: str) -> Callable[..., Any]:
    """The shape rule of pooling without `ceil_mode`."""

    def shape_rule(x: Tensor, sizes: Shape, strides: Shape, paddings: Shape, *others: Any) -> Shape | None:
        dilations, ceil_mode = others[:2] if kinds == "max" else ([1] * nd, others[0])
        if ceil_mode or x.dim() != nd + 2 or any(2 * p > size for p, size in zip(paddings, sizes, strict=True)):
            return None
        shape = _windows(x, x.shape[1], sizes, strides, paddings, dilations)
        return shape if min(shape) > 0 else None

    return shape_rule


def _shape_of_adaptive_pooling(nd: int) -> Callable[..., Any]:
    return lambda x, sizes: (*x.shape[:2], *sizes) if x.dim() == nd + 2 and min(sizes) > 0 else None


def _shape_of_cat(tensors: Sequence[Tensor], dim: int) -> Shape | None:
    first = tensors[0]
    if not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    others = {(*t.shape[:dim], *t.shape[dim + 1 :], t.dtype) for t in tensors}
    total = sum(t.shape[dim] for t in tensors if t.dim() == first.dim())
    return (*first.shape[:dim], total, *first.shape[dim + 1 :]) if len(others) == 1 else None


def _shape_of_permutation(x: Tensor, dims: Shape) -> Shape | None:
    return [x.shape[dim] for dim in dims] if sorted(dim % x.dim() for dim in dims) == list(range(x.dim())) else None


def _shape_of_transpose(x: Tensor, a: int, b: int) -> Shape:
    order = list(range(x.dim()))
    order[a], order[b] = order[b], order[a]
    return [x.shape[dim] for dim in order]


def _shape_of_mean(x: Tensor, dims: Shape, keepdim: bool) -> Shape | None:
    if not dims or not x.is_floating_point() or not all(-x.dim() <= dim < x.dim() for dim in dims):
        return None
    gone = {dim % x.dim() for dim in dims}
    sizes = [(1 if axis in gone else size) for axis, size in enumerate(x.shape) if keepdim or axis not in gone]
    return sizes if len(gone) == len(dims) else None


#: The shape of the result by operator, from its arguments; None where the rule does not apply.
_SHAPES: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _shape_of_linear,
    **{getattr(aten, f"conv{nd}d").default: _shape_of_convolution for nd in (1, 2, 3)},
    **{getattr(aten, f"max_pool{nd}d").default: _shape_of_pooling(nd, "max") for nd in (1, 2, 3)},
    **{getattr(aten, f"avg_pool{nd}d").default: _shape_of_pooling(nd, "avg") for nd in (2, 3)},
    **{getattr(aten, f"adaptive_avg_pool{nd}d").default: _shape_of_adaptive_pooling(nd) for nd in (2, 3)},
    aten.cat.default: _shape_of_cat,
    aten.permute.default: _shape_of_permutation,
    aten.transpose.int: _shape_of_transpose,
    aten.mean.dim: _shape_of_mean,
    **{getattr(aten, name).Tensor: _shape_of_two for name in ("add", "sub", "mul", "div")},
}
