"""Rules of the linearised network: each operator's tangent and its transpose, and the gradient of a weight.

The network is linearised at a batch whose masks a `Tape` holds. Cotangents and tangents may stack k times the batch
along the first axis, (k n, ...), one block per direction, all with the same masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .evaluate import LINEAR_RULES, apply_linear, avg_pool, broadcast, pad_input
from .nodes import NetworkGraph, Node

__all__ = ["ADJOINT", "TANGENT", "WEIGHT_OPERATORS", "Selection", "Tape", "weight_gradient"]

#: Operators that a tape knows how to linearise and that carry weights.
WEIGHT_OPERATORS = ("linear", "conv", "conv_transpose", "diagonal")


@dataclass(frozen=True)
class Selection:
    """Which entry each window of a max-pooling took: a 0/1 mask where windows tile the input, else indices."""

    mask: Tensor | None = None
    indices: Tensor | None = None


@dataclass
class Tape:
    """A network linearised at a batch: the slope of every activation, the choice of every max-pooling.

    Attributes
    ----------
    logits : Tensor of shape (n, C)
    slopes : dict of node name to Tensor of shape (n, ...)
        Derivatives of the activations.
    selections : dict of node name to Selection
    smooth : dict of node name to Tensor of shape (n, ...)
        Pre-activations of activations whose derivative is not constant in pieces.
    """

    graph: NetworkGraph
    logits: Tensor
    slopes: dict[str, Tensor] = field(default_factory=dict)
    selections: dict[str, Selection] = field(default_factory=dict)
    smooth: dict[str, Tensor] = field(default_factory=dict)

    def input_shape(self, node: Node) -> tuple[int, ...]:
        """Shape of one sample of the node's (first) input."""
        return self.graph[node.inputs[0]].shape


def times(stacked: Tensor, factor: Tensor) -> Tensor:
    """(k n, ...) times (n, ...), the same factor for every block."""
    n = len(factor)
    if len(stacked) == n:
        return stacked * factor
    return (stacked.unflatten(0, (-1, n)) * factor).flatten(0, 1)


def _tangent_affine(tape: Tape, node: Node, t: Tensor) -> Tensor:
    return apply_linear(node, t, node.weight, None)


def _slope(tape: Tape, node: Node, t: Tensor) -> Tensor:
    return times(t, tape.slopes[node.name])


def _tangent_max_pool(tape: Tape, node: Node, t: Tensor) -> Tensor:
    p, chosen = node.params, tape.selections[node.name]
    if chosen.mask is None:
        indices = _stacked(chosen.indices, t)
        return t.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)
    picked = times(_crop(t, node), chosen.mask)
    if p["nd"] == 1:
        return F.avg_pool1d(picked, p["kernel"]) * p["kernel"][0]
    pool = F.avg_pool2d if p["nd"] == 2 else F.avg_pool3d
    return pool(picked, p["kernel"], divisor_override=1)


def _linear(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda tape, node, *tangents: rule(node, *tangents)


#: What each operator does to tangents of its inputs: rule(tape, node, *tangents) -> tangent.
TANGENT: dict[str, Callable[..., Tensor]] = {
    **{op: _linear(rule) for op, rule in LINEAR_RULES.items()},
    **dict.fromkeys(WEIGHT_OPERATORS, _tangent_affine),
    "activation": _slope,
    "max_pool": _tangent_max_pool,
}


def _crop(x: Tensor, node: Node) -> Tensor:
    """The part of the input that windows cover."""
    for axis, (size, kernel) in enumerate(zip(node.shape[1:], node.params["kernel"], strict=True), start=2):
        x = x.narrow(axis, 0, size * kernel)
    return x


def _stacked(indices: Tensor | None, like: Tensor) -> Tensor:
    assert indices is not None
    return indices.repeat(len(like) // len(indices), *(1,) * (indices.dim() - 1))


def _transposed(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], g: Tensor) -> Tensor:
    """The transpose of a linear map applied to g, by differentiating the map at 0."""
    with torch.enable_grad():
        x = torch.zeros(shape, dtype=g.dtype, device=g.device, requires_grad=True)
        (out,) = torch.autograd.grad(function(x), x, g)
    return out


def _adjoint_linear(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    assert node.weight is not None
    return (g @ node.weight,)


def _plain_padding(node: Node) -> bool:
    p = node.params
    return p["padding_mode"] == "zeros" and all(a == b for a, b in p["padding"])


def _convolution_backward(node: Node, g: Tensor, x: Tensor, want: tuple[bool, bool, bool]) -> tuple[Any, ...]:
    p = node.params
    padding = [a for a, _ in p["padding"]] if _plain_padding(node) else [0] * p["nd"]
    return torch.ops.aten.convolution_backward(
        g, x, node.weight, None, p["stride"], padding, p["dilation"], node.op == "conv_transpose",
        p["output_padding"], p["groups"], want,
    )


def _adjoint_conv(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape = (len(g), *tape.input_shape(node))
    if not _plain_padding(node):
        return (_transposed(lambda x: apply_linear(node, x, node.weight, None), shape, g),)
    channels_last = g.dim() == 4 and g.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    template = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=layout)  # only its shape is read
    return (_convolution_backward(node, g, template, (True, False, False))[0],)


def _adjoint_diagonal(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (g if node.weight is None else g * broadcast(node, node.weight, g),)


def _adjoint_slope(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (_slope(tape, node, g),)


def _adjoint_max_pool(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    shape, chosen = (len(g), *tape.input_shape(node)), tape.selections[node.name]
    if chosen.mask is None:
        indices = _stacked(chosen.indices, g)
        flat = torch.zeros(*shape[:2], int(torch.Size(shape[2:]).numel()), dtype=g.dtype, device=g.device)
        return (flat.scatter_add_(2, indices.flatten(2), g.flatten(2)).reshape(shape),)
    spread = times(_upsample(g, node.params["kernel"]), chosen.mask)
    missing = [pad for a, b in zip(shape[:1:-1], spread.shape[:1:-1], strict=True) for pad in (0, a - b)]
    return (F.pad(spread, missing) if any(missing) else spread,)


def _upsample(g: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Every entry repeated over its window."""
    for axis, k in enumerate(kernel, start=2):
        g = g.repeat_interleave(k, dim=axis)
    return g


def _adjoint_avg_pool(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (_transposed(lambda x: avg_pool(node, x), (len(g), *tape.input_shape(node)), g),)


def _adjoint_reduce(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    if not node.params["keepdim"]:
        for dim in node.params["dims"]:
            g = g.unsqueeze(dim)
    return ((g * node.params["factor"]).expand(len(g), *tape.input_shape(node)),)


def _adjoint_view(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    return (g.reshape(len(g), *tape.input_shape(node)),)


def _adjoint_permute(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    dims = node.params["dims"]
    return (g.permute([dims.index(d) for d in range(len(dims))]),)


def _adjoint_slice(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    out = torch.zeros(len(g), *tape.input_shape(node), dtype=g.dtype, device=g.device)
    index: list[Any] = [slice(None)] * out.dim()
    index[node.params["dim"]] = node.params["index"]
    out[tuple(index)] = g
    return (out,)


def _adjoint_pad(tape: Tape, node: Node, g: Tensor) -> tuple[Tensor, ...]:
    if node.params["mode"] == "constant":
        return (F.pad(g, [-p for p in node.params["pads"]]),)
    return (_transposed(lambda x: LINEAR_RULES["pad"](node, x), (len(g), *tape.input_shape(node)), g),)


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
    "pad": _adjoint_pad,
    "add": _adjoint_add,
    "cat": _adjoint_cat,
}


def weight_gradient(node: Node, t: Tensor, g: Tensor, total: Tensor | None) -> Tensor:
    """Gradient of <g, W t> with respect to the node's weight W, added to `total` (in place)."""
    weight = node.weight
    assert weight is not None
    if node.op == "linear":
        rows, columns = g.reshape(-1, g.shape[-1]).t(), t.reshape(-1, t.shape[-1])
        return rows @ columns if total is None else total.addmm_(rows, columns)
    if node.op == "diagonal":
        grad = (g * t).sum_to_size(*broadcast(node, weight, t).shape).reshape(weight.shape)
    else:
        x = t if _plain_padding(node) else pad_input(node, t)
        grad = _convolution_backward(node, g, x, (False, True, False))[1]
    return grad if total is None else total.add_(grad)
