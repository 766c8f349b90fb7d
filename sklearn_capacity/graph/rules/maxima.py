"""Rules for maxima and minima, and for choices by a comparison that are piecewise linear."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .call import Call, Draft, Ref, Weight, aten, axes_of, rule
from .drafts import activation, as_view, permuted, scaled, shifted
from .shapes import all_widened, widened

__all__ = ["READ_MASKS", "chosen", "compared", "constant", "largest_over", "negated"]


def negated(call: Call, x: Ref | Draft, shape: tuple[int, ...] | None = None) -> Draft:
    """-x."""
    return scaled(x, constant(-1.0, call), shape=shape)


def _largest(x: Ref | Draft, rows: tuple[int, int]) -> Draft:
    """Maxima along the last axis of a value of shape (n, *rows), as pooling of windows that are whole rows."""
    window = {"nd": 1, "kernel": rows[1:], "stride": rows[1:], "padding": (0,), "ceil_mode": False, "dilation": (1,)}
    return Draft("max_pool", (x,), params=window | {"kind": "max"}, shape=(rows[0], 1))


@rule("amax.default", "amin.default", "max.dim", "min.dim")
def _extremum_over_axes(call: Call) -> Draft | None:
    x, shape = call["self"], call.shapes[call["self"].name]
    dims = axes_of(call["dim"], len(shape))
    return None if 0 in dims else largest_over(call, x, shape, dims, smallest="min" in call.target.__name__)


def largest_over(
    call: Call, x: Ref | Draft, shape: tuple[int, ...], dims: tuple[int, ...], *, smallest: bool = False
) -> Draft:
    """The largest entries of a value of this shape, batch included, along some axes; or the smallest ones."""
    kept = [d for d in range(len(shape)) if d not in dims]
    rows = (math.prod(shape[d] for d in kept[1:]), math.prod(shape[d] for d in dims))
    order = (*kept, *dims)
    moved = permuted(x, order, shape=tuple(shape[d] for d in order[1:]))
    return _extremum(call, as_view(moved, rows), rows, smallest=smallest)


@rule("maximum.default", "minimum.default", "max.other", "min.other", "fmax.default", "fmin.default")
def _extremum_of_two(call: Call) -> Draft | None:
    a, b = call["self"], call["other"]
    smallest = "min" in call.target.__name__
    if isinstance(a, Ref) and isinstance(b, Ref):
        wide = all_widened(call, a, b)
        if wide is None:
            return None
        size = math.prod(call.shape[1:])
        columns = tuple(as_view(x, (size, 1)) for x in wide)
        pairs = Draft("cat", columns, params={"dim": 2}, shape=(size, 2))
        return _extremum(call, pairs, (size, 2), smallest=smallest)
    x, other = (a, b) if isinstance(a, Ref) else (b, a)
    level = constant(other, call)
    return None if level is None or call.shapes[x.name] != call.shape else _clipped(call, x, level, smallest=smallest)


def _extremum(call: Call, x: Draft, rows: tuple[int, int], *, smallest: bool) -> Draft:
    if not smallest:
        return as_view(_largest(x, rows))
    return as_view(negated(call, _largest(negated(call, x, rows), rows), (rows[0], 1)))


@rule("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def _clamp(call: Call) -> Draft | Ref | None:
    """min(max(x, low), high)."""
    x, draft = call["self"], call["self"]
    for name in ("min", "max"):
        level = call.get(name)
        if level is None:
            continue
        level = constant(level, call)
        if level is None or not isinstance(x, Ref) or call.shapes[x.name] != call.shape:
            return None
        if not bool(level.tensor.isinf().all()):
            if bool(level.tensor.isinf().any()):
                return None
            draft = _clipped(call, draft, level, smallest=name == "max")
            draft = replace(draft, shape=call.shape[1:])
    return draft


def _clipped(call: Call, x: Ref | Draft, level: Weight, *, smallest: bool) -> Draft:
    """max(x, c) = relu(x - c) + c, and min(x, c) = c - relu(c - x)."""
    zero = not bool(level.tensor.any()) and not level.trainable
    if zero and not smallest:
        return activation("relu", x)
    shape = call.shape[1:]
    above = shifted(x, replace(level, tensor=-level.tensor), shape=shape)
    above = negated(call, above, shape) if smallest else above
    kept = activation("relu", above, shape=shape)
    kept = negated(call, kept, shape) if smallest else kept
    return shifted(kept, level)


def constant(value: object, call: Call) -> Weight | None:
    """A number or a tensor of parameters that is the same for all samples, as a weight."""
    if isinstance(value, Weight):
        # A leading axis would index the batch: only tensors that broadcast over the samples are constants.
        fits = value.tensor.dim() < len(call.shape) or value.tensor.shape[0] == 1
        return value if fits else None
    if isinstance(value, int | float):
        # Zero-dimensional, so it takes on the dtype of what it multiplies.
        return Weight(torch.full((), float(value), dtype=torch.float64, device=call.device), False, frozenset())
    return None


# -- x where it is larger than a number, else something linear ---------------------------------------------------------

_ABOVE = ("gt.Scalar", "ge.Scalar")
_BELOW = ("lt.Scalar", "le.Scalar")


def compared(call: Call, condition: object) -> tuple[str, float, bool] | None:
    """The name of x, the number c, and whether the condition is x > c, and not x < c."""
    if not isinstance(condition, Ref):
        return None
    node = call.producer(condition)
    while node.op == "opaque" and node.params["target"] in ("to.dtype", "_to_copy.default"):
        node = call.producer(Ref(node.inputs[0]))
    target = node.params.get("target")
    if node.op != "opaque" or target not in _ABOVE + _BELOW:
        return None
    level = node.params["leaves"][1]
    return (node.inputs[0], float(level), target in _ABOVE) if isinstance(level, int | float) else None


def chosen(call: Call, condition: object, then: object, otherwise: object) -> Draft | Ref | None:
    """`then` where x is above a number, else `otherwise`, if that is a rectifier or a threshold of x."""
    comparison = compared(call, condition)
    if comparison is None:
        return None
    name, level, above = comparison
    if not above:
        then, otherwise = otherwise, then
    if call.shapes[name] != call.shape:
        return None
    if then != Ref(name):
        return _below(call, name, level, _number(call, then)) if otherwise == Ref(name) else None
    slope = _slope(call, otherwise, name)
    if slope is not None:
        return activation("leaky_relu", Ref(name), slope) if level == 0 else None
    value = _number(call, otherwise)
    if value is None:
        return None
    return activation("threshold", Ref(name), level, value) if (level or value) else activation("relu", Ref(name))


def _below(call: Call, name: str, level: float, value: float | None) -> Draft | None:
    """x where it is at most the level, else a number: with the level as the number, a minimum."""
    if value is None:
        return None
    if value == level:
        return activation("hardtanh", Ref(name), -math.inf, level)
    shape = call.shape[1:]
    return negated(call, activation("threshold", negated(call, Ref(name), shape), -level, -value, shape=shape))


def _slope(call: Call, value: object, name: str) -> float | None:
    """c, where the value is c x with c != 0."""
    if not isinstance(value, Ref):
        return None
    node = call.producer(value)
    scaled = node.op == "diagonal" and node.weight is not None and node.bias is None and not any(node.trainable)
    if not scaled or node.inputs != (name,) or node.weight is None or node.weight.numel() != 1:
        return None
    return float(node.weight) or None


def _number(call: Call, value: object) -> float | None:
    """The one number that a constant holds."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Weight) and not value.trainable and value.tensor.numel():
        low, high = (float(end) for end in value.tensor.double().aminmax())
        return low if low == high else None
    if isinstance(value, Ref):  # zeros_like(x)
        node = call.producer(value)
        zero = node.op == "diagonal" and node.weight is not None and node.bias is None and not bool(node.weight.any())
        return 0.0 if zero and not any(node.trainable) else None
    return None


@rule("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(call: Call) -> Draft | Ref | None:
    condition, a, b = call["condition"], call.get("self"), call.get("other")
    if isinstance(condition, Weight):
        return _masked(call, condition, a, b)
    return chosen(call, condition, a, b)


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(call: Call) -> Draft | Ref | None:
    mask = call["mask"]
    if isinstance(mask, Weight):
        return _masked(call, mask, call["value"], call["self"])
    return chosen(call, mask, call["value"], call["self"])


def _masked(call: Call, mask: Weight, then: object, otherwise: object) -> Draft | None:
    """A choice that is the same for all samples: each side where it stands, plus 0 elsewhere."""
    if constant(mask, call) is None:
        return None
    # (1, *shape), the mask of every sample
    here = mask.tensor.broadcast_to(torch.broadcast_shapes(mask.tensor.shape, (1, *call.shape[1:])))
    sides = [_kept(call, value, place) for value, place in ((then, here), (otherwise, ~here))]
    if None in sides:
        return None
    (first, shift), (second, more) = sides  # type: ignore[misc]
    shift = Weight(shift.tensor + more.tensor, shift.trainable or more.trainable, shift.sources | more.sources)
    signals = [side for side in (first, second) if side is not None]
    if not signals:
        return None
    both = signals[0] if len(signals) == 1 else Draft("add", tuple(signals), params={"signs": (1.0, 1.0)})
    shape = call.shape[1:]
    return shifted(replace(both, shape=shape), shift, shape=shape)


def _kept(call: Call, value: object, here: torch.Tensor) -> tuple[Draft | None, Weight] | None:
    """A value where a mask is true: what depends on the input, and a constant."""
    nothing = Weight(torch.zeros((), dtype=call.dtype, device=call.device), False, frozenset())
    if isinstance(value, Ref):
        wide = widened(call, value)
        scale = Weight(here.to(call.dtype), False, frozenset())
        return None if wide is None else (scaled(wide, scale, shape=call.shape[1:]), nothing)
    fixed = constant(value, call)
    if fixed is None:
        return None
    tensor = torch.where(here, fixed.tensor.to(call.dtype), nothing.tensor)
    return None, replace(fixed, tensor=tensor)


#: Operators whose rules read truth values.
READ_MASKS = frozenset(
    (
        *(getattr(aten.where, name) for name in ("self", "ScalarOther", "ScalarSelf", "Scalar")),
        *(getattr(aten.masked_fill, name) for name in ("Scalar", "Tensor")),
        aten.mul.Tensor,
    )
)
