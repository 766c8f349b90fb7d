"""Rules that evaluate a graph: the network's own function, from its folded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activation_of
from .functions import apply_function
from .max_pooling import max_pool
from .nodes import NetworkGraph, Node, Place, Weight, interpret

__all__ = [
    "EVALUATE",
    "LINEAR_RULES",
    "along_axes",
    "apply_linear",
    "avg_pool",
    "broadcast",
    "evaluate",
    "in_rows",
    "pad_input",
    "plain_padding",
    "slice_index",
]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


def evaluate(graph: NetworkGraph, X: Tensor, keep: Callable[[Node, Any], None] | None = None) -> Tensor:
    """Logits of the network, (n, C)."""
    return interpret(graph, EVALUATE, X, purpose="Evaluation", keep=keep)


def plain_padding(node: Node) -> bool:
    """Whether a convolution pads symmetrically with zeros, so that torch's convolution can do it."""
    p = node.params
    return p["padding_mode"] == "zeros" and all(a == b for a, b in p["padding"])


def pad_input(node: Node, x: Tensor) -> Tensor:
    """The input of a convolution with the node's padding applied."""
    flat = [p for pair in reversed(node.params["padding"]) for p in pair]
    mode = node.params["padding_mode"]
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)


def apply_linear(node: Node, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The affine map of a weight-carrying node with other tensors in place of its own.

    `x` is (n, ...); a weight of None stands for the identity of a diagonal node.
    """
    p = node.params
    if node.op == "linear":
        return F.linear(x, weight, bias)  # type: ignore[arg-type]
    if node.op == "conv":
        plain = plain_padding(node)
        padding = [a for a, _ in p["padding"]] if plain else 0
        x = x if plain else pad_input(node, x)
        return _CONV[p["nd"]](x, weight, bias, p["stride"], padding, p["dilation"], p["groups"])  # type: ignore[arg-type]
    if node.op == "conv_transpose":
        padding = [a for a, _ in p["padding"]]
        more = (p["stride"], padding, p["output_padding"], p["groups"], p["dilation"])
        return _CONV_TRANSPOSE[p["nd"]](x, weight, bias, *more)  # type: ignore[arg-type]
    y = x if weight is None else x * broadcast(node, weight, x)
    y = y if bias is None else y + broadcast(node, bias, x)
    return y if y.shape[1:] == node.shape else y.expand(len(y), *node.shape)  # a bias left out here would broadcast


def broadcast(node: Node, tensor: Tensor, x: Tensor) -> Tensor:
    """A diagonal node's tensor, shaped to broadcast against a batch."""
    dim = node.params["dim"]
    return tensor if dim is None else tensor.reshape(-1, *(1,) * (x.dim() - 1 - dim))


def _affine(node: Node, x: Tensor) -> Tensor:
    return apply_linear(node, x, node.weight, node.bias)


def _activation(node: Node, x: Tensor) -> Tensor:
    activation, args = activation_of(node)
    return activation.value(x, *args)


def avg_pool(node: Node, x: Tensor) -> Tensor:
    """Means over the windows."""
    p = node.params
    nd = p["nd"]
    if "adaptive" in p:
        return _ADAPTIVE[nd](x, p["adaptive"])
    if nd == 1:
        return F.avg_pool1d(x, p["kernel"], p["stride"], p["padding"], p["ceil_mode"], p["count_include_pad"])
    return _AVG_POOL[nd](
        x, p["kernel"], p["stride"], p["padding"], p["ceil_mode"], p["count_include_pad"], p["divisor_override"]
    )


def _reduce(node: Node, x: Tensor) -> Tensor:
    return x.sum(node.params["dims"], keepdim=node.params["keepdim"]) * node.params["factor"]


def slice_index(node: Node) -> tuple[Any, ...]:
    """The index with which a slice reads its input."""
    return (*(slice(None),) * node.params["dim"], node.params["index"])


def _slice(node: Node, x: Tensor) -> Tensor:
    return x[slice_index(node)]


def _pick(node: Node, x: Tensor) -> Tensor:
    return x.flatten(1).index_select(1, node.params["index"]).reshape(len(x), *node.shape)


def _pad(node: Node, x: Tensor) -> Tensor:
    return F.pad(x, node.params["pads"], mode=node.params["mode"])


def _center(node: Node, x: Tensor) -> Tensor:
    return x - x.mean(node.params["dims"], keepdim=True)


def along_axes(axes: Sequence[Tensor | None], x: Tensor, *, transposed: bool = False) -> Tensor:
    """A matrix of shape (outputs, inputs) applied along each of the last axes of x; None stands for the identity."""
    for axis, matrix in enumerate(axes, start=x.dim() - len(axes)):
        if matrix is not None:
            moved = x.movedim(axis, -1) @ (matrix if transposed else matrix.mT).to(x)  # (..., outputs)
            x = moved.movedim(-1, axis)
    return x


def _add(node: Node, a: Tensor, b: Tensor) -> Tensor:
    sign_a, sign_b = node.params["signs"]
    a = a if sign_a == 1 else a * sign_a
    return torch.add(a, b, alpha=sign_b)


def _opaque(node: Node, *values: Any) -> Any:
    p = node.params
    values = tuple(
        layout.from_rows(value) if layout is not None and isinstance(value, Tensor) else value
        for layout, value in zip(p["layouts"], values, strict=True)
    )
    leaves = [_operand(leaf, values) for leaf in p["leaves"]]
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, p["spec"])
    function = _lstm if p["function"] is torch.ops.aten.lstm.input else p["function"]
    return in_rows(node, function(*args, **kwargs))


def _lstm(x: Tensor, states: Sequence[Tensor], *args: Any) -> Any:
    """torch's operator, which writes outside of states that are for another number of samples instead of raising."""
    n_samples = x.shape[0 if args[-1] else 1]  # the last argument tells which axis comes first
    if any(state.shape[1] != n_samples for state in states):
        raise ValueError(f"an LSTM's states are for {states[0].shape[1]} samples, its input has {n_samples}.")
    return torch.ops.aten.lstm.input(x, states, *args)


def in_rows(node: Node, result: Any) -> Any:
    """The result of an operator without a rule, with one row per sample where that is known."""
    layout = node.params["result_layout"]
    return layout.to_rows(result) if layout is not None and isinstance(result, Tensor) else result


def _operand(leaf: Any, values: Sequence[Any]) -> Any:
    return values[leaf.index] if isinstance(leaf, Place) else leaf.tensor if isinstance(leaf, Weight) else leaf


#: Operators that are linear in their inputs and carry no weight; both evaluation and tangents use them.
LINEAR_RULES: dict[str, Callable[..., Tensor]] = {
    "view": lambda node, x: x.reshape(len(x), *node.shape),
    "permute": lambda node, x: x.permute(node.params["dims"]),
    "reduce": _reduce,
    "slice": _slice,
    "pick": _pick,
    "pad": _pad,
    "center": _center,
    "separable": lambda node, x: along_axes(node.params["axes"], x),
    "avg_pool": avg_pool,
    "add": _add,
    "cat": lambda node, *xs: torch.cat(xs, dim=node.params["dim"]),
}

EVALUATE: dict[str, Callable[..., Any]] = {
    **LINEAR_RULES,
    "linear": _affine,
    "conv": _affine,
    "conv_transpose": _affine,
    "diagonal": _affine,
    "activation": _activation,
    "max_pool": max_pool,
    "function": apply_function,
    "opaque": _opaque,
}
