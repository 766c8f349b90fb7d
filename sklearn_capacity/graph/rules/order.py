"""Rules for order statistics: entries along an axis in the order of their values, and running extrema."""

from __future__ import annotations

from dataclasses import replace

from .call import Call, Draft, rule
from .drafts import as_view, function


def _ordered(call: Call, *, descending: bool) -> tuple[Draft, int] | None:
    """All entries in order, and their axis; None along the samples."""
    shape = call.shapes[call["self"].name]
    dim = call["dim"] % len(shape)
    if dim == 0:
        return None
    return function("sort", call["self"], args=(dim - len(shape), descending), shape=shape[1:]), dim


@rule("sort.default", "sort.stable")
def _sort(call: Call) -> Draft | None:
    ordered = _ordered(call, descending=bool(call["descending"]))
    return None if ordered is None else ordered[0]


@rule("topk.default")
def _topk(call: Call) -> Draft | None:
    ordered = _ordered(call, descending=bool(call["largest"]))
    if ordered is None or not call["sorted"] or not isinstance(call["k"], int):
        return None
    return Draft("slice", ordered[:1], params={"kind": "slice", "dim": ordered[1], "index": slice(0, call["k"], 1)})


@rule("kthvalue.default", "median.dim")
def _order_statistic(call: Call) -> Draft | None:
    """The k-th smallest entry; the median is the lower one of two."""
    ordered = _ordered(call, descending=False)
    if ordered is None:
        return None
    place = call.get("k", (call.shapes[call["self"].name][ordered[1]] + 1) // 2) - 1
    entry = Draft("slice", ordered[:1], params={"kind": "select", "dim": ordered[1], "index": place})
    return as_view(replace(entry, shape=_without(call, ordered[1])))


def _without(call: Call, dim: int) -> tuple[int, ...]:
    shape = call.shapes[call["self"].name]
    return (*shape[1:dim], *shape[dim + 1 :])


@rule("cummax.default", "cummin.default")
def _running_extremum(call: Call) -> Draft | None:
    dim = call["dim"] % len(call.shape)
    smallest = "min" in call.target.__name__
    return None if dim == 0 else function("running extremum", call["self"], args=(dim - len(call.shape), smallest))
