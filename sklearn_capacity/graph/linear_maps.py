"""Matrices and kernels in operators without a rule, as far as descriptive measures of the weights need them.

A product of norms needs the trained matrix and the number of positions of a sample at which it is applied. Both are
known for many operators without a canonical form: a matrix of an attention whose samples are along the second axis, the
recurrent matrices of an LSTM, `torch.einsum` of a signal and a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from .nodes import WEIGHT_OPS, Node, Place, Weight
from .rules import CONVERSIONS, Call, Draft, Ref
from .rules.contractions import terms

__all__ = ["linear_maps"]

Sizes = tuple[int, ...]
#: Operators that place, add or compare parameters without multiplying by them, and slopes of activations.
_NO_MAPS = frozenset(
    "add sub rsub cat stack where expand expand_as broadcast_to repeat index index_put index_select copy masked_fill "
    "maximum minimum prelu _prelu_kernel slice_scatter select_scatter zeros_like new_zeros".split()
)


def linear_maps(node: Node) -> list[Node] | None:
    """The weight layers in an operator without a rule; None if it has a trained matrix that is not a known layer."""
    weights = [bound for bound in node.tensors().values() if bound.tensor.is_floating_point()]
    if not weights:
        return []
    named = _named(node)
    name = node.params["target"].split(".")[0]
    if name in _NO_MAPS:
        return []
    layers = list(_TABLE[name](node, named)) if name in _TABLE and named is not None else _by_rule(node, named)
    if layers or not any(bound.trainable and bound.tensor.dim() > 1 for bound in weights):
        return layers
    return None


def _named(node: Node) -> dict[str, Any] | None:
    """The arguments by the names of the operator's schema, signals as `Place`."""
    schema = getattr(node.params["function"], "_schema", None)
    if schema is None:
        return None
    args, kwargs = tree_unflatten(node.params["leaves"], node.params["spec"])
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
    return {**{argument.name: argument.default_value for argument in schema.arguments}, **given, **kwargs}


def _layer(node: Node, op: str, weight: Weight, shape: Sizes, before: Sizes, *, copies: int = 1, **params: Any) -> Node:
    """A weight layer with the inputs of `node`, the input shape `before`, and `copies` positions."""
    return replace(
        node,
        op=op,
        inputs=node.inputs[:1],
        shape=shape,
        weight=weight.tensor,
        bias=None,
        trainable=(weight.trainable, False),
        sources=(weight.sources, frozenset()),
        params={"layer": True, "kind": op, **params, "input_shape": before, "copies": copies},
    )


def _matrix(node: Node, weight: Weight, n_numbers: int) -> Node:
    """The linear map of a matrix (out, in) on a signal with `n_numbers` entries per sample."""
    n_out, n_in = weight.tensor.shape
    return _layer(node, "linear", weight, (n_out,), (n_in,), copies=n_numbers // max(n_in, 1))


def _sizes(node: Node, value: Any) -> Sizes:
    """The sizes of an argument; for a signal, those for one sample."""
    return node.params["for_one"][value.index] if isinstance(value, Place) else tuple(value.tensor.shape)


# -- operators that have a rule if samples are rows -----------------------------------------------------------


def _by_rule(node: Node, named: Mapping[str, Any] | None) -> list[Node]:
    """Apply the operator's rule if only the samples are not rows: they are along another axis, or merged with one."""
    rule = CONVERSIONS.get(node.params["function"])
    if rule is None or named is None:
        return []
    refs = {Place(index): Ref(name) for index, name in enumerate(node.inputs)}
    sizes = dict(zip(node.inputs, node.params["for_one"], strict=True))
    result = node.params["result_for_one"]
    call = Call(
        target=node.params["function"],
        args={key: refs.get(value, value) if isinstance(value, Place) else value for key, value in named.items()},
        shapes=sizes,
        shape=result,
        scope=node.scope,
        device=next(bound.tensor.device for bound in node.tensors().values()),
        dtype=next(bound.tensor.dtype for bound in node.tensors().values()),
        whole_numbers={},
        producer=lambda ref: node,
        is_real=lambda ref: True,
    )
    draft = rule(call)
    if not isinstance(draft, Draft) or draft.op not in WEIGHT_OPS or draft.weight is None:
        return []
    (x,) = draft.inputs
    if not isinstance(x, Ref):
        return []
    layer = _of_draft(node, draft, sizes[x.name])
    return [] if layer is None else [layer]


def _of_draft(node: Node, draft: Draft, sizes: Sizes) -> Node | None:
    weight, params = draft.weight, draft.params
    assert weight is not None
    if draft.op == "linear":
        layer = _matrix(node, weight, math.prod(sizes))
    elif draft.op == "diagonal" and params["dim"] is None:  # the samples may be along any axis
        layer = _layer(node, "diagonal", weight, sizes, sizes, **params)
    elif draft.op == "diagonal":
        layer = _layer(node, "diagonal", weight, sizes[1:], sizes[1:], copies=sizes[0], **params)
    elif len(sizes) != params["nd"] + 2:  # one image, without a sample axis
        return None
    else:
        shape = node.params["result_for_one"][1:]
        layer = _layer(node, draft.op, weight, shape, sizes[1:], copies=sizes[0], **params)
    if draft.bias is None:
        return layer
    bias = draft.bias
    trainable, sources = (weight.trainable, bias.trainable), (weight.sources, bias.sources)
    return replace(layer, bias=bias.tensor, trainable=trainable, sources=sources)


# -- products of a signal and a parameter -----------------------------------------------------------------------------


def _einsum(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    operands = named["tensors"]
    letters, result = terms(named["equation"], [len(_sizes(node, operand)) for operand in operands])
    yield from _product(node, operands, letters, result)


def _matmul(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    first = 1 if node.params["target"].startswith(("add", "badd")) else 0  # after the summand
    operands = [*named.values()][first : first + 2]
    ranks = [len(_sizes(node, operand)) for operand in operands]
    if 0 in ranks:
        return
    scale = named.get("alpha", 1)
    operands = [replace(w, tensor=w.tensor * scale) if scale != 1 and isinstance(w, Weight) else w for w in operands]
    batch = ascii_letters[: max(0, max(ranks) - 2)]
    left = "Z" if ranks[0] == 1 else batch[len(batch) - ranks[0] + 2 :] + "YZ"
    right = "Z" if ranks[1] == 1 else batch[len(batch) - ranks[1] + 2 :] + "ZX"
    rows, columns = "" if ranks[0] == 1 else "Y", "" if ranks[1] == 1 else "X"
    yield from _product(node, operands, [left, right], batch + rows + columns)


def _product(node: Node, operands: Sequence[Any], terms: Sequence[str], result: str) -> Iterator[Node]:
    """The linear map of a signal given by a sum of products with one parameter, index by index.

    A shared index that is summed over is an input, one of the parameter alone an output, a shared one in the result a
    block, and one of the signal alone in the result a position. For several signals, it is the map of their products.
    """
    pairs = list(zip(operands, terms, strict=True))
    signals = [(operand, term) for operand, term in pairs if isinstance(operand, Place)]
    weights = [(operand, term) for operand, term in pairs if isinstance(operand, Weight)]
    if len(weights) != 1 or not signals or any(len(set(term)) < len(term) for term in terms):
        return  # a diagonal of an operand
    ((weight, w_term),) = weights
    tensor = weight.tensor
    sizes = {c: n for operand, term in signals for c, n in zip(term, _sizes(node, operand), strict=True)}
    if len(signals) > 1 and any(c not in result and c not in w_term for c in sizes):
        return  # the signals are contracted without the parameter
    for axis in reversed(range(tensor.dim())):  # axes that are broadcast to the signal
        if tensor.shape[axis] == 1 and sizes.get(w_term[axis], 1) > 1:
            w_term, tensor = w_term[:axis] + w_term[axis + 1 :], tensor.squeeze(axis)
    w_sizes = dict(zip(w_term, tensor.shape, strict=True))
    sizes = {index: n for index, n in sizes.items() if n > 1 or w_sizes.get(index, 1) == 1}
    blocks = [c for c in w_term if c in sizes and c in result]
    inputs = [c for c in sizes if c not in result]  # an index without the parameter is a sum over the signal
    outputs = [c for c in w_term if c not in sizes and c in result]
    # (*blocks, *outputs, *inputs of the parameter), then one axis per input, repeated along those it does not have
    summed = torch.einsum(tensor, *_numbered(w_term, blocks + outputs + [c for c in inputs if c in w_term]))
    wide = _with_axes(summed, blocks + outputs, [c for c in inputs if c in w_term], inputs, sizes)
    b, o, i = (math.prod({**w_sizes, **sizes}[c] for c in group) for group in (blocks, outputs, inputs))
    copies = math.prod(n for c, n in sizes.items() if c in result and c not in w_term)
    yield _blocks(node, replace(weight, tensor=wide.reshape(b, o, i)), copies)


def _numbered(term: str, kept: Sequence[str]) -> tuple[list[int], list[int]]:
    return [ascii_letters.index(c) for c in term], [ascii_letters.index(c) for c in kept]


def _with_axes(tensor: Tensor, first: list[str], has: list[str], wanted: list[str], sizes: Mapping[str, int]) -> Tensor:
    """The tensor with the axes `first`, then one axis per wanted index, repeated along missing ones."""
    shape = [*tensor.shape[: len(first)], *(sizes[c] if c in has else 1 for c in wanted)]
    return tensor.reshape(shape).expand([*shape[: len(first)], *(sizes[c] for c in wanted)])


def _blocks(node: Node, weight: Weight, copies: int) -> Node:
    """Block diagonal matrices (blocks, out, in) as a linear map, a diagonal, or a grouped convolution."""
    b, o, i = weight.tensor.shape
    if b == 1:
        return _layer(node, "linear", replace(weight, tensor=weight.tensor[0]), (o,), (i,), copies=copies)
    if o == i == 1:
        return _layer(
            node, "diagonal", replace(weight, tensor=weight.tensor.flatten()), (b,), (b,), copies=copies, dim=None
        )
    params = {
        "nd": 1,
        "stride": (1,),
        "padding": ((0, 0),),
        "padding_mode": "zeros",
        "dilation": (1,),
        "groups": b,
        "output_padding": (0,),
    }
    kernel = replace(weight, tensor=weight.tensor.reshape(b * o, i, 1))  # one group per block
    return _layer(node, "conv", kernel, (b * o, 1), (b * i, 1), copies=copies, **params)


def _bilinear(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    """The matrix (out, in1 in2) that maps the products of two signals' entries."""
    x, weight = named["input1"], named["weight"]
    if isinstance(x, Place) and isinstance(named["input2"], Place) and isinstance(weight, Weight):
        positions = math.prod(_sizes(node, x)[:-1])
        flat = replace(weight, tensor=weight.tensor.flatten(1))  # (out, in1 in2)
        yield _matrix(node, flat, positions * flat.tensor.shape[1])


def _embedding(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    """The matrix (dimensions, words) that maps indicators of words, once per word or bag of words."""
    weight = named["weight"]
    per_bag = named.get("offsets")
    positions = math.prod(_sizes(node, named["indices"] if per_bag is None else per_bag))
    if isinstance(weight, Weight):
        flat = replace(weight, tensor=weight.tensor.t())  # (dimensions, words)
        yield _matrix(node, flat, positions * flat.tensor.shape[1])


def _recurrent(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    """Every matrix of a recurrent layer, at every time step."""
    x = named["input"] if "input" in named else named["data"]
    weights = [w for w in named["params"] if isinstance(w, Weight) and w.tensor.dim() == 2]
    if not isinstance(x, Place) or not weights:
        return
    steps = math.prod(_sizes(node, x)) // weights[0].tensor.shape[1]
    for weight in weights:
        yield _matrix(node, weight, steps * weight.tensor.shape[1])


def _cell(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    for key in ("w_ih", "w_hh"):
        weight, x = named[key], named["input" if key == "w_ih" else "hx"]
        x = x[0] if isinstance(x, list | tuple) else x
        if isinstance(weight, Weight):
            yield _matrix(node, weight, math.prod(_sizes(node, x)))


# -- scales of norms --------------------------------------------------------------------------------------------------


def _layer_scale(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    """The scale of a norm over the last axes, as a diagonal."""
    x, weight = named["input"], named.get("weight")
    if isinstance(x, Place) and isinstance(weight, Weight):
        shape = tuple(weight.tensor.shape)
        copies = math.prod(_sizes(node, x)) // math.prod(shape)
        yield _layer(node, "diagonal", weight, shape, shape, copies=copies, dim=None)


def _channel_scale(node: Node, named: Mapping[str, Any]) -> Iterator[Node]:
    """The scale of a norm with a factor per channel, as a diagonal."""
    x, weight = named["input"], named.get("weight")
    if isinstance(x, Place) and isinstance(weight, Weight):
        sizes = _sizes(node, x)
        yield _layer(node, "diagonal", weight, sizes[1:], sizes[1:], copies=sizes[0], dim=1)


Describer = Callable[[Node, Mapping[str, Any]], Iterator[Node]]
_TABLE: dict[str, Describer] = {
    "einsum": _einsum,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm"), _matmul),
    "bilinear": _bilinear,
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag"), _embedding),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), _layer_scale),
    **dict.fromkeys(("group_norm", "native_group_norm", "instance_norm"), _channel_scale),
}
