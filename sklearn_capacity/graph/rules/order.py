"""Rules for order statistics: entries along an axis in the order of their values, and running extrema."""

from __future__ import annotations

from .call import Call, Draft, rule
from .drafts import as_view, cut, function, selected


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
    return cut(*ordered, 0, call["k"])


@rule("kthvalue.default", "median.dim")
def _order_statistic(call: Call) -> Draft | None:
    """The k-th smallest entry; the median is the lower one of two."""
    ordered = _ordered(call, descending=False)
    if ordered is None:
        return None
    x, dim = ordered
    shape = call.shapes[call["self"].name]
    place = call.get("k", (shape[dim] + 1) // 2) - 1
    return as_view(selected(x, dim, place, shape=(*shape[1:dim], *shape[dim + 1 :])))


@rule("cummax.default", "cummin.default")
def _running_extremum(call: Call) -> Draft | None:
    dim = call["dim"] % len(call.shape)
    smallest = "min" in call.target.__name__
    return None if dim == 0 else function("running extremum", call["self"], args=(dim - len(call.shape), smallest))
