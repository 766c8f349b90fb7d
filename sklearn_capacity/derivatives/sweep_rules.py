"""Rules of the linearised network: each operator's tangent and its transpose, and the gradient of a weight.

The network is linearised at a batch, whose slopes are in a `Tape`. Cotangents and tangents may stack k copies of the
batch along the first axis, (k n, ...), one block per direction, all with the same masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.evaluate import (
    LINEAR_RULES,
    along_axes,
    apply_linear,
    avg_pool,
    broadcast,
    pad_input,
    plain_padding,
    slice_index,
)
from ..graph.functions import function_of
from ..graph.max_pooling import pick
from ..graph.memory_layout import channels_first, channels_last, memory_format_of
from ..graph.nodes import WEIGHT_OPS, Node
from ..linalg.pixel_blocks import PixelBlocks, pixel_blocks
from ..linalg.product import product
from .pooling_tiles import spread_over_tiles, tile_of
from .tape import Tape

__all__ = ["ADJOINT", "FRESH", "TANGENT", "convolution", "times_slope", "weight_gradient"]

#: Operators whose tangents and cotangents are always new tensors, which may be modified in place.
FRESH = ("linear", "conv", "conv_transpose")
#: Number of channels of an image that are few, such as its colours.
FEW = 4


def times(stacked: Tensor, factor: Tensor, *, in_place: bool = False) -> Tensor:
    """(k n, ...) times (n, ...), the same factor for every block."""
    n = factor.shape[0]
    blocks = stacked if stacked.shape[0] == n else stacked.unflatten(0, (-1, n))  # (k, n, ...)
    if in_place:
        blocks.mul_(factor)
        return stacked
    return (blocks * factor).reshape_as(stacked)


def _tangent_affine(tape: Tape, node: Node, t: Tensor) -> Tensor:
    if node.op == "linear":
        assert node.weight is not None
        return _rowwise(t, node.weight.t())
    return convolution(tape, node, t, None) if node.op == "conv" else apply_linear(node, t, tape.weight(node), None)


def convolution(tape: Tape, node: Node, x: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with weights of images (k n, channels, *side); the result has its channels last."""
    if _is_faster_plain(node, x):
        assert node.weight is not None
        return channels_last(apply_linear(node, channels_first(x), channels_first(node.weight), bias))
    return apply_linear(node, channels_last(x), tape.weight(node), bias)


def _is_faster_plain(node: Node, x: Tensor) -> bool:
    """Whether to convolve images of few channels in torch's default layout: in double precision it saves a half."""
    few = node.weight is not None and x.dim() == 4 and node.weight.shape[1] * node.params["groups"] <= FEW
    return few and x.dtype == torch.float64 and x.is_cpu


def _rowwise(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` for x (..., m) with any number of axes before the last."""
    if x.dim() == 2:
        return product(x, matrix)
    return product(x.flatten(0, -2), matrix).unflatten(0, x.shape[:-1])


def times_slope(tape: Tape, node: Node, t: Tensor, *, in_place: bool = False) -> Tensor:
    """An activation's tangent or cotangent, which are equal since its Jacobian is diagonal."""
    slope = tape.slopes[node.name]
    return t if slope is None else times(t, slope, in_place=in_place)


def _tangent_max_pool(tape: Tape, node: Node, t: Tensor) -> Tensor:
    chosen = tape.selections[node.name]
    if not chosen.masks:
        return pick(_stacked(chosen.indices, t), t)
    out: Tensor | None = None
    for place, mask in chosen.masks:
        t_here = t[place].unflatten(0, (-1, len(mask)))  # (k, n, channels, *windows)
        out = t_here * mask if out is None else out.addcmul_(t_here, mask)
    assert out is not None
    return out.flatten(0, 1)


def _blocks(tape: Tape, node: Node, stacked: Tensor) -> Tensor:
    """(k n, ...) as (k, n, ...), to align with the points of a function."""
    return stacked.unflatten(0, (-1, len(tape.points[node.name][0])))


def _tangent_function(tape: Tape, node: Node, *ts: Tensor) -> Tensor:
    row, args = function_of(node)
    along = tuple(_blocks(tape, node, t) for t in ts)  # (k, n, *shape) each
    return row.tangent(tape.kept[node.name], along, *args).flatten(0, 1)


def _linear(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A linear operator is its own tangent."""
    return lambda tape, node, *tangents: rule(node, *tangents)


#: Tangent rule of each operator: rule(tape, node, *tangents) -> tangent.
TANGENT: dict[str, Callable[..., Tensor]] = {
    **{op: _linear(rule) for op, rule in LINEAR_RULES.items()},
    **dict.fromkeys(WEIGHT_OPS, _tangent_affine),
    "activation": times_slope,
    "max_pool": _tangent_max_pool,
    "function": _tangent_function,
}


def _stacked(indices: Tensor | None, like: Tensor) -> Tensor:
    """The same indices (n, ...) for every block of `like`, (k n, ...)."""
    assert indices is not None
    return indices.repeat(len(like) // len(indices), *(1,) * (indices.dim() - 1))  # (k n, channels, *windows)


def _transposed(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], g: Tensor) -> Tensor:
    """The transpose of a linear map applied to g: the gradient of <g, A x> with respect to x, at x = 0."""
    with torch.enable_grad():
        x = torch.zeros(shape, dtype=g.dtype, device=g.device, requires_grad=True)  # the map's input, (k n, ...)
        (out,) = torch.autograd.grad(function(x), x, g)
    return out


def _adjoint_linear(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    assert node.weight is not None
    return (_rowwise(g, node.weight),)  # (k n, ..., out) @ (out, in)


def _convolution_backward(node: Node, g: Tensor, x: Tensor, want: tuple[bool, bool, bool]) -> tuple[Any, ...]:
    """Gradients of <g, W * x> for x, W and the bias, those that `want` names, by torch's kernel without autograd."""
    p = node.params
    padding = [a for a, _ in p["padding"]] if plain_padding(node) else [0] * p["nd"]
    return torch.ops.aten.convolution_backward(
        g,
        x,
        node.weight,
        None,
        p["stride"],
        padding,
        p["dilation"],
        node.op == "conv_transpose",
        p["output_padding"],
        p["groups"],
        want,
    )


def _adjoint_conv(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape = (len(g), *tape.input_shape(node))
    blocks = _blocks_of_pixels(node, shape[2:])
    if blocks is not None:
        return (blocks(g),)
    g = channels_first(g) if _is_faster_plain(node, g) else g
    template = torch.empty(
        shape, dtype=g.dtype, device=g.device, memory_format=memory_format_of(g)
    )  # only its shape matters
    if plain_padding(node):
        return (_convolution_backward(node, g, template, (True, False, False))[0],)
    padded = _convolution_backward(node, g, pad_input(node, template), (True, False, False))[0]
    return (_transposed(lambda x: pad_input(node, x), shape, padded),)


def _blocks_of_pixels(node: Node, sides: tuple[int, ...]) -> PixelBlocks | None:
    """The transpose of a convolution that reads few channels, such as the colours of an image."""
    p, weight = node.params, node.weight
    if node.op != "conv" or p["groups"] > 1 or not plain_padding(node):
        return None
    assert weight is not None
    before = [a for a, _ in p["padding"]]
    return pixel_blocks(weight, sides, node.shape[1:], p["stride"], before, p["dilation"])


def _adjoint_diagonal(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    part = g if node.weight is None else g * broadcast(node, node.weight, g)  # (k n, *node.shape)
    return (part.sum_to_size(len(g), *tape.input_shape(node)),)  # a scale or shift may be larger than its input


def _adjoint_slope(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (times_slope(tape, node, g),)


def _adjoint_max_pool(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape, chosen = (len(g), *tape.input_shape(node)), tape.selections[node.name]
    if not chosen.masks:
        indices = _stacked(chosen.indices, g)
        # (k n, channels, pixels): each window adds its cotangent to the pixel that it selected.
        flat = torch.zeros(*shape[:2], int(torch.Size(shape[2:]).numel()), dtype=g.dtype, device=g.device)
        return (flat.scatter_add_(2, indices.flatten(2), g.flatten(2)).reshape(shape),)
    n = len(chosen.masks[0][1])
    full = all(a == b * k for a, b, k in zip(shape[2:], g.shape[2:], node.params["kernel"], strict=True))
    # (k n, channels, *side); the masks of windows that tile the whole input write every pixel, so no zeros are needed.
    out = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format_of(g))
    out = out if full else out.zero_()
    for place, mask in chosen.masks:
        torch.mul(g.unflatten(0, (-1, n)), mask, out=out[place].unflatten(0, (-1, n)))
    return (out,)


def _adjoint_avg_pool(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape = (len(g), *tape.input_shape(node))
    tile = tile_of(node, shape[2:])
    if tile is not None:
        return (spread_over_tiles(g, tile, shape, node.params.get("divisor_override")),)
    return (_transposed(lambda x: avg_pool(node, x), shape, g),)


def _adjoint_reduce(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    if not node.params["keepdim"]:
        for dim in node.params["dims"]:
            g = g.unsqueeze(dim)  # a sum over an axis has the transpose that repeats along it
    return ((g * node.params["factor"]).expand(len(g), *tape.input_shape(node)),)


def _adjoint_view(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (g.reshape(len(g), *tape.input_shape(node)),)


def _adjoint_permute(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    dims = node.params["dims"]
    return (g.permute([dims.index(d) for d in range(len(dims))]),)  # the inverse permutation


def _adjoint_slice(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape = (len(g), *tape.input_shape(node))
    out = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format_of(g)).zero_()  # (k n, *input)
    out[slice_index(node)] = g
    return (out,)


def _adjoint_pick(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape = (len(g), *tape.input_shape(node))
    out = torch.zeros(shape, dtype=g.dtype, device=g.device).flatten(1)  # (k n, entries of a sample)
    return (out.index_add_(1, node.params["index"], g.flatten(1)).reshape(shape),)


def _adjoint_pad(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    if node.params["mode"] == "constant":
        return (F.pad(g, [-p for p in node.params["pads"]]),)
    return (_transposed(lambda x: LINEAR_RULES["pad"](node, x), (len(g), *tape.input_shape(node)), g),)


def _adjoint_center(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (LINEAR_RULES["center"](node, g),)  # I - 1 1^T / m is symmetric


def _adjoint_separable(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (along_axes(node.params["axes"], g, transposed=True),)


def _adjoint_function(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    row, args = function_of(node)
    parts = row.adjoint(tape.kept[node.name], _blocks(tape, node, g), *args)  # (k, n, *input) each
    return tuple(part.flatten(0, 1) for part in parts)  # (k n, *input) each


def _adjoint_add(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return tuple(g if sign == 1 else g * sign for sign in node.params["signs"])


def _adjoint_cat(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    dim = node.params["dim"]
    return g.split([tape.graph[name].shape[dim - 1] for name in node.inputs], dim=dim)


#: The transpose of each operator: rule(tape, node, cotangent) -> cotangents of its inputs.
ADJOINT: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "linear": _adjoint_linear,
    "conv": _adjoint_conv,
    "conv_transpose": _adjoint_conv,
    "diagonal": _adjoint_diagonal,
    "activation": _adjoint_slope,
    "max_pool": _adjoint_max_pool,
    "avg_pool": _adjoint_avg_pool,
    "reduce": _adjoint_reduce,
    "view": _adjoint_view,
    "permute": _adjoint_permute,
    "slice": _adjoint_slice,
    "pick": _adjoint_pick,
    "pad": _adjoint_pad,
    "center": _adjoint_center,
    "separable": _adjoint_separable,
    "function": _adjoint_function,
    "add": _adjoint_add,
    "cat": _adjoint_cat,
}


def weight_gradient(node: Node, t: Tensor, g: Tensor, total: Tensor | None) -> Tensor:
    """Gradient of <g, W t> with respect to the node's weight W, added to `total` (in place)."""
    weight = node.weight
    assert weight is not None
    if node.op == "linear":
        rows, columns = g.reshape(-1, g.shape[-1]).t(), t.reshape(-1, t.shape[-1])  # (out, k n), (k n, in)
        gradient = product(rows, columns)  # (out, in)
        return gradient if total is None else total.add_(gradient)
    if node.op == "diagonal":
        grad = (g * t).sum_to_size(broadcast(node, weight, t).shape).reshape(weight.shape)  # like the weight
    else:
        x = t if plain_padding(node) else pad_input(node, t)  # (k n, channels, *padded)
        grad = _convolution_backward(node, g, channels_last(x), (False, True, False))[1]
    return grad if total is None else total.add_(grad)
