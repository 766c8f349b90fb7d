"""Rules for operators that select, move, join, average or pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call import Call, Draft, Ref, Weight, aten, per_axis, rule, without_rule


def _dims(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(range(rank)) if value is None else tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(sorted(d % rank for d in values))


@rule("mean.dim", "sum.dim_IntList")
def _reduce(call: Call) -> Draft | None:
    x = call["self"]
    dims = _dims(call.get("dim"), call.rank(x))
    if 0 in dims:
        return None
    count = math.prod(call.shapes[x.name][d] for d in dims)
    mean = call.target is aten.mean.dim
    factor = 1 / count if mean else 1.0
    params = {"kind": "mean" if mean else "sum", "dims": dims, "keepdim": call.get("keepdim", False), "factor": factor}
    return Draft("reduce", (x,), params=params)


@rule("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unsqueeze.default")
@rule("squeeze.dim", "squeeze.dims", "squeeze.default", "unflatten.int")
def _view(call: Call) -> Draft:
    return Draft("view", (call["self"],), params={"kind": "view"})


@rule("permute.default")
def _permute(call: Call) -> Draft | None:
    dims = tuple(d % len(call.shape) for d in call["dims"])
    return Draft("permute", (call["self"],), params={"dims": dims}) if dims[0] == 0 else None


@rule("transpose.int")
def _transpose(call: Call) -> Draft | None:
    rank = len(call.shape)
    a, b = call["dim0"] % rank, call["dim1"] % rank
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return Draft("permute", (call["self"],), params={"dims": tuple(dims)}) if dims[0] == 0 else None


@rule("slice.Tensor")
def _slice(call: Call) -> Draft | Ref | None:
    x, rank = call["self"], call.rank(call["self"])
    dim, start, end, step = call.get("dim", 0) % rank, call.get("start", 0), call.get("end"), call.get("step", 1)
    if any(isinstance(v, Ref) for v in (start, end)):
        return None
    whole = start == 0 and step == 1 and (end is None or end >= (1 << 62))
    if whole:
        return x
    if dim == 0:
        return None
    size = call.shapes[x.name][dim]
    start, end, _ = slice(start, end).indices(size)
    return Draft("slice", (x,), params={"kind": "slice", "dim": dim, "index": slice(start, end, step)})


@rule("select.int")
def _select(call: Call) -> Draft | None:
    x = call["self"]
    dim, index = call["dim"] % call.rank(x), call["index"]
    if dim == 0 or isinstance(index, Ref):
        return None
    return Draft("slice", (x,), params={"kind": "select", "dim": dim, "index": index % call.shapes[x.name][dim]})


@rule("flip.default", "roll.default", "expand.default", "repeat.default", "tile.default", "rot90.default")
@rule("repeat_interleave.self_int", "narrow.default", "index.Tensor", "index_select.default", "diagonal.default")
@rule("movedim.int", "movedim.intlist", "mT.default", "swapaxes.default", "unfold.default", "channel_shuffle.default")
@rule("pixel_shuffle.default", "pixel_unshuffle.default", *(f"upsample_nearest{nd}d.vec" for nd in (1, 2, 3)))
def _moved(call: Call) -> Draft | None:
    """Convert an operator that moves, repeats or drops entries to a table of indices, by applying it to indices."""
    names = list(call.args)
    x, rest = call[names[0]], {name: _plain(call, call[name]) for name in names[1:]}
    given = torch.utils._pytree.tree_leaves(rest, is_leaf=lambda v: isinstance(v, Ref))
    if not isinstance(x, Ref) or any(isinstance(value, Ref) for value in given):
        return None
    return _picked(x, call.shapes[x.name][1:], lambda places: call.target(places, **rest), call.device)


def _plain(call: Call, value: Any) -> Any:
    """An argument in the operator's form, for two samples."""
    if isinstance(value, list | tuple):
        return [_plain(call, part) for part in value]
    if isinstance(value, Ref) and value.name in call.batch_sizes:
        return SAMPLES
    return value.tensor if isinstance(value, Weight) else value


#: Number of samples in the index table; one sample must not depend on the other.
SAMPLES = 2


def _picked(
    x: Ref, shape: tuple[int, ...], move: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Draft | None:
    """The draft of an operator that selects entries of x, or None if it selects across samples."""
    size = math.prod(shape)
    places = torch.arange(SAMPLES * size, dtype=torch.float64, device=device)  # some operators do not accept integers
    moved = move(places.reshape(SAMPLES, *shape)).long()
    rows = moved.reshape(len(moved), -1)
    if len(moved) != SAMPLES or not torch.equal(rows[1], rows[0] + size) or bool((rows[0] >= size).any()):
        return None
    return Draft("pick", (x,), params={"kind": "pick", "index": rows[0]}, shape=tuple(moved.shape[1:]))


def expanded(call: Call, x: Ref) -> Draft | None:
    """The value, broadcast to the shape of the operator's result."""
    shape = call.shapes[x.name]
    if len(shape) != len(call.shape):
        return None  # its samples would be along another axis
    return _picked(x, shape[1:], lambda places: places.expand(SAMPLES, *call.shape[1:]), call.device)


#: Operators that cut a tensor along one axis into consecutive pieces.
SPLITS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unbind.int,
)


def split_piece(x: Ref, rank: int, dim: int, shapes: Sequence[tuple[int, ...]], index: int) -> Draft | None:
    """The piece at `index` of a split, as a slice; `shapes` are those of all pieces, and x has `rank` axes."""
    if dim == 0:
        return None
    index %= len(shapes)
    if len(shapes[0]) < rank:  # unbind, which drops the axis
        return Draft("slice", (x,), params={"kind": "select", "dim": dim, "index": index})
    start = sum(shape[dim] for shape in shapes[:index])
    return Draft("slice", (x,), params={"kind": "slice", "dim": dim, "index": slice(start, start + shapes[index][dim])})


@rule("stack.default")
def _stack(call: Call) -> Draft | None:
    tensors, dim = call["tensors"], call.get("dim", 0) % len(call.shape)
    if dim == 0 or not all(isinstance(t, Ref) for t in tensors):
        return None
    one = tuple(1 if axis == dim else size for axis, size in enumerate(call.shape))[1:]
    return Draft(
        "cat", tuple(Draft("view", (t,), params={"kind": "view"}, shape=one) for t in tensors), params={"dim": dim}
    )


@rule("glu.default")
def _glu(call: Call) -> Draft | None:
    """a sigmoid(b) for the halves a and b: the product of two signals has no rule, but the parts before it have."""
    x, dim = call["self"], call.get("dim", -1) % len(call.shape)
    if dim == 0:
        return None
    half = call.shape[dim]
    a, b = (
        Draft("slice", (x,), params={"kind": "slice", "dim": dim, "index": slice(start, start + half, 1)})
        for start in (0, half)
    )
    return without_rule(torch.mul, a, Draft("activation", (b,), params={"kind": "sigmoid", "args": ()}))


@rule("hstack.default")
def _hstack(call: Call) -> Draft | None:
    tensors = call["tensors"]
    return Draft("cat", tuple(tensors), params={"dim": 1}) if all(isinstance(t, Ref) for t in tensors) else None


@rule("cat.default")
def _cat(call: Call) -> Draft | None:
    tensors, dim = call["tensors"], call.get("dim", 0) % len(call.shape)
    if dim == 0 or not all(isinstance(t, Ref) for t in tensors):
        return None
    return Draft("cat", tuple(tensors), params={"dim": dim})


@rule("pad.default", "constant_pad_nd.default")
def _pad(call: Call) -> Draft | None:
    mode, value = call.get("mode", "constant"), call.get("value", 0)
    pads = tuple(call["pad"])
    if mode == "constant" and value != 0:
        return None
    if len(pads) // 2 >= len(call.shape):
        return None
    return Draft("pad", (call["self"],), params={"kind": "pad", "pads": pads, "mode": mode})


def _window(call: Call, nd: int) -> dict[str, Any]:
    kernel = per_axis(call["kernel_size"], nd)
    stride = per_axis(call["stride"], nd) if call.get("stride") else kernel
    return {
        "nd": nd,
        "kernel": kernel,
        "stride": stride,
        "padding": per_axis(call.get("padding", 0), nd),
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }


@rule(*(f"max_pool{nd}d.default" for nd in (1, 2, 3)), "max_pool2d_with_indices.default")
def _max_pool(call: Call) -> Draft:
    nd = len(call["kernel_size"]) if "1d" not in call.target.__name__ else 1
    params = _window(call, nd) | {"dilation": per_axis(call.get("dilation", 1), nd), "kind": "max_pool"}
    return Draft("max_pool", (call["self"],), params=params)


@rule(*(f"avg_pool{nd}d.default" for nd in (1, 2, 3)))
def _avg_pool(call: Call) -> Draft:
    nd = int(call.target.__name__[len("avg_pool")])
    params = _window(call, nd) | {
        "count_include_pad": bool(call.get("count_include_pad", True)),
        "divisor_override": call.get("divisor_override"),
        "kind": "avg_pool",
    }
    return Draft("avg_pool", (call["self"],), params=params)


@rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
@rule("adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default")
def _adaptive_avg_pool(call: Call) -> Draft | None:
    x = call["self"]
    nd = len(call["output_size"])
    sizes, out = call.shapes[x.name][-nd:], call.shape[-nd:]
    if any(s % o for s, o in zip(sizes, out, strict=True)):  # windows of unequal size
        return Draft("avg_pool", (x,), params={"nd": nd, "adaptive": tuple(out), "kind": "adaptive_avg_pool"})
    kernel = tuple(s // o for s, o in zip(sizes, out, strict=True))
    window = {"nd": nd, "kernel": kernel, "stride": kernel, "padding": (0,) * nd, "ceil_mode": False}
    params = window | {"count_include_pad": True, "divisor_override": None, "kind": "avg_pool"}
    return Draft("avg_pool", (x,), params=params)


@rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max_pool(call: Call) -> Draft | None:
    x = call["self"]
    nd = len(call["output_size"])
    sizes, out = call.shapes[x.name][-nd:], call["output_size"]
    if any(s % o for s, o in zip(sizes, out, strict=True)):
        return None
    kernel = tuple(s // o for s, o in zip(sizes, out, strict=True))
    window = {"nd": nd, "kernel": kernel, "stride": kernel, "padding": (0,) * nd, "ceil_mode": False}
    return Draft("max_pool", (x,), params=window | {"dilation": (1,) * nd, "kind": "max_pool"})


@rule("max_pool1d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool_with_indices(call: Call) -> Draft | Ref | None:
    return _max_pool(call)
