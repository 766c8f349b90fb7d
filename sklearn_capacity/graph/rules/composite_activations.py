"""Activations and normalisations that a forward pass writes as products of two signals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..evaluate import EVALUATE
from ..nodes import Node
from .call import Call, Draft, Ref
from .drafts import activation, function, scaled
from .maxima import constant

__all__ = ["composite_activation"]

#: Activations that are often written as products: f(b z) up to a factor: name, arguments, b.
_CANDIDATES: tuple[tuple[str, tuple, float], ...] = (
    ("silu", (), 1.0),
    ("silu", (), 1.702),  # "quick GELU"
    ("gelu", ("none",), 1.0),
    ("gelu", ("tanh",), 1.0),
    ("mish", (), 1.0),
    ("hardswish", (), 1.0),
    ("pow", (2.0,), 1.0),
)
#: Steps to look back over.
MAX_STEPS = 12


def composite_activation(call: Call, a: Ref, b: Ref) -> Draft | None:
    """The activation or normalisation that equals the product of two signals; None if there is none."""
    for x, factor in ((a, b), (b, a)):
        if call.shapes[x.name] == call.shape:
            draft = _root_mean_square(call, x, factor)
            if draft is not None:
                return draft
    if call.shapes[a.name] == call.shapes[b.name] == call.shape:
        return _of_one_number(call, a, b)
    return None


def _root_mean_square(call: Call, x: Ref, factor: Ref) -> Draft | None:
    """x rsqrt(mean(x^2) + eps)."""
    root = call.producer(factor)
    if root.params.get("kind") != "pow" or root.params["args"] != (-0.5,):
        return None
    shift = call.producer(Ref(root.inputs[0]))
    if shift.op != "diagonal" or shift.weight is not None or shift.bias is None or shift.bias.numel() != 1:
        return None
    mean = call.producer(Ref(shift.inputs[0]))
    if mean.op != "reduce" or mean.params["kind"] != "mean" or not mean.params["keepdim"] or any(shift.trainable):
        return None
    square = call.producer(Ref(mean.inputs[0]))
    if square.params.get("kind") != "pow" or square.params["args"] != (2.0,) or square.inputs != (x.name,):
        return None
    dims = tuple(d - len(call.shape) for d in mean.params["dims"])
    return function("normalization", x, args=(dims, float(shift.bias)))


def _of_one_number(call: Call, a: Ref, b: Ref) -> Draft | None:
    """An activation, recognised by its values: both factors are computed, entry by entry, from one signal."""
    # Irrational steps, so that no two functions of the table meet at all of them; exact to rounding.
    z = torch.linspace(-4 * math.e, 4 * math.pi, 257, dtype=torch.float64, device="cpu")  # (257,)
    for source in _sources(call, a.name):
        values = {source: z}
        first, second = (_computed(call, name, values, MAX_STEPS) for name in (a.name, b.name))
        if first is None or second is None:
            continue
        product = first * second
        for kind, args, scale in _CANDIDATES:
            expected = ACTIVATIONS[kind].value(scale * z, *args)
            factor = float((product @ expected) / (expected @ expected))  # least squares: the c of product = c expected
            if torch.allclose(product, factor * expected, rtol=1e-6, atol=1e-6 * abs(factor)):
                return _activation(call, source, kind, args, scale, factor)
    return None


def _activation(call: Call, source: str, kind: str, args: tuple, scale: float, factor: float) -> Draft:
    """The activation of a multiple of a signal, times a factor."""
    x: Ref | Draft = Ref(source)
    shape = call.shape[1:]
    if scale != 1:
        x = scaled(x, constant(scale, call), shape=shape)
    result = activation(kind, x, *args, shape=shape)
    return result if abs(factor - 1) < 1e-9 else scaled(result, constant(factor, call))


def _sources(call: Call, name: str) -> list[str]:
    """The signals from which one is computed entry by entry, itself first."""
    sources = [name]
    for source in sources:
        node = call.producer(Ref(source))
        if _is_entrywise(node) and len(sources) < MAX_STEPS:
            sources += [name for name in node.inputs if name not in sources]
    return sources


def _computed(call: Call, name: str, values: dict[str, Tensor], steps: int) -> Tensor | None:
    """The values of a signal where those of its source are given; None where it reads something else."""
    if name not in values:
        node = call.producer(Ref(name))
        if not _is_entrywise(node) or not steps:
            return None
        parts = [_computed(call, part, values, steps - 1) for part in node.inputs]
        if any(part is None for part in parts):
            return None
        values[name] = _entrywise(node, [part for part in parts if part is not None])
    return values[name]


def _is_entrywise(node: Node) -> bool:
    """Whether every number of the node's value comes from those in the same place by one function without weights."""
    if node.op == "diagonal":
        given = [t for t in (node.weight, node.bias) if t is not None]
        return not any(node.trainable) and all(t.numel() == 1 for t in given)
    if node.op == "function":
        return node.params["kind"] == "product"
    return node.op == "add" or (node.op == "activation" and node.weight is None)


def _entrywise(node: Node, parts: Sequence[Tensor]) -> Tensor:
    if node.op == "diagonal":
        weight, bias = (t if t is None else t.detach().double().cpu().reshape(()) for t in (node.weight, node.bias))
        scaled = parts[0] if weight is None else parts[0] * weight
        return scaled if bias is None else scaled + bias
    return EVALUATE[node.op](node, *parts)
