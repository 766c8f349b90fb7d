"""Gates that mix two signals, z a + (1 - z) b with 0 <= z <= 1, as in a GRU: their value stays between a and b."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..graph import NetworkGraph, Node

__all__ = ["Mix", "convex_mix"]

#: Operators whose results are entries of what they read.
_ENTRIES = ("view", "permute", "slice", "pick")
_SHARES = ("sigmoid", "hardsigmoid")


@dataclass(frozen=True)
class Mix:
    """The names of the nodes z, a and b."""

    gate: str
    first: str
    second: str


def convex_mix(graph: NetworkGraph, node: Node) -> Mix | None:
    """The mix that a sum is, written as z a + (1 - z) b or as b + z (a - b); None if it is another sum."""
    if node.op != "add" or node.params["signs"] != (1.0, 1.0):
        return None
    one, two = (graph[name] for name in node.inputs)
    for p, q in ((one, two), (two, one)):
        mix = _of_products(graph, p, q) or _of_difference(graph, p, q)
        if mix is not None:
            return mix
    return None


def _is_product(node: Node) -> bool:
    return node.op == "function" and node.params["kind"] == "product"


def _of_products(graph: NetworkGraph, p: Node, q: Node) -> Mix | None:
    """z a + (1 - z) b."""
    if not _is_product(p) or not _is_product(q):
        return None
    for gate, a in (p.inputs, p.inputs[::-1]):
        for rest, b in (q.inputs, q.inputs[::-1]):
            if _is_complement(graph, rest, gate) and _is_share(graph, gate):
                return Mix(gate, a, b)
    return None


def _of_difference(graph: NetworkGraph, b: Node, q: Node) -> Mix | None:
    """b + z (a - b)."""
    if not _is_product(q):
        return None
    for gate, name in (q.inputs, q.inputs[::-1]):
        gap = graph[name]
        if (
            gap.op == "add"
            and gap.params["signs"] == (1.0, -1.0)
            and gap.inputs[1] == b.name
            and _is_share(graph, gate)
        ):
            return Mix(gate, gap.inputs[0], b.name)
    return None


def _is_complement(graph: NetworkGraph, rest: str, gate: str) -> bool:
    """Whether one is 1 minus the other, possibly broadcast in the same way."""
    r, g = graph[rest], graph[gate]
    while r.op == g.op == "pick" and _same(r.params, g.params):
        r, g = graph[r.inputs[0]], graph[g.inputs[0]]
    if r.op != "diagonal" or r.weight is None or r.bias is None or any(r.trainable):
        return False
    return bool((r.weight == -1).all()) and bool((r.bias == 1).all()) and _alike(graph, r.inputs[0], g.name)


def _alike(graph: NetworkGraph, a: str, b: str) -> bool:
    """Whether two values are the same entries of one value, in the same order."""
    first, second = graph[a], graph[b]
    if a == b or first.op != second.op or first.op not in _ENTRIES or first.shape != second.shape:
        return a == b
    return _same(first.params, second.params) and _alike(graph, first.inputs[0], second.inputs[0])


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two nodes have equal parameters, some of which may be indices."""
    pairs = [(a[key], b.get(key)) for key in a]
    return all(torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in pairs)


def _is_share(graph: NetworkGraph, name: str) -> bool:
    """Whether all entries are between 0 and 1."""
    node = graph[name]
    while node.op in _ENTRIES:
        node = graph[node.inputs[0]]
    if node.op == "function":
        return node.params["kind"] == "softmax"
    return node.op == "activation" and node.params["kind"] in _SHARES
