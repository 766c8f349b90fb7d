"""Rules for operators that select, move, join, average or pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call import Call, Draft, Ref, Weight, aten, axes_of, per_axis, rule
from .drafts import activation, as_view, cut, function, permuted, reduced, selected, shifted

__all__ = [
    "SAMPLES",
    "SPLITS",
    "all_widened",
    "broadcast_to",
    "is_whole",
    "picked",
    "split_piece",
    "widened",
    "zero_rows",
]


@rule("mean.dim", "sum.dim_IntList")
def _reduce(call: Call) -> Draft | None:
    x = call["self"]
    dims = axes_of(call.get("dim"), call.rank(x))
    if 0 in dims:
        return None
    keepdim = call.get("keepdim", False)
    if call.target is aten.sum.dim_IntList:
        return reduced("sum", x, dims, keepdim=keepdim)
    return reduced("mean", x, dims, 1 / math.prod(call.shapes[x.name][d] for d in dims), keepdim=keepdim)


@rule("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unsqueeze.default")
@rule("squeeze.dim", "squeeze.dims", "squeeze.default", "unflatten.int", "reshape_as.default")
@rule("view_as.default")
def _view(call: Call) -> Draft:
    return as_view(call["self"])


@rule("permute.default")
def _permute(call: Call) -> Draft | None:
    dims = tuple(d % len(call.shape) for d in call["dims"])
    return permuted(call["self"], dims) if dims[0] == 0 else None


@rule("transpose.int")
def _transpose(call: Call) -> Draft | None:
    rank = len(call.shape)
    a, b = call["dim0"] % rank, call["dim1"] % rank
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return permuted(call["self"], dims) if dims[0] == 0 else None


def is_whole(call: Call) -> bool:
    """Whether a slice takes everything."""
    end = call.get("end")
    ends = end is None or (isinstance(end, int) and end >= 1 << 62)
    return ends and call.get("start", 0) == 0 and call.get("step", 1) == 1


@rule("slice.Tensor")
def _slice(call: Call) -> Draft | Ref | None:
    x, rank = call["self"], call.rank(call["self"])
    dim, start, end, step = call.get("dim", 0) % rank, call.get("start", 0), call.get("end"), call.get("step", 1)
    if any(isinstance(v, Ref) for v in (start, end)):
        return None
    if is_whole(call):
        return x
    if dim == 0:
        return None
    size = call.shapes[x.name][dim]
    start, end, _ = slice(start, end).indices(size)
    return cut(x, dim, start, end, step)


@rule("select.int")
def _select(call: Call) -> Draft | None:
    x = call["self"]
    dim, index = call["dim"] % call.rank(x), call["index"]
    if dim == 0 or isinstance(index, Ref):
        return None
    return selected(x, dim, index % call.shapes[x.name][dim])


@rule("flip.default", "roll.default", "expand.default", "repeat.default", "tile.default", "rot90.default")
@rule("repeat_interleave.self_int", "narrow.default", "index.Tensor", "index_select.default", "diagonal.default")
@rule("movedim.int", "movedim.intlist", "mT.default", "swapaxes.default", "unfold.default", "channel_shuffle.default")
@rule("pixel_shuffle.default", "pixel_unshuffle.default", *(f"upsample_nearest{nd}d.vec" for nd in (1, 2, 3)))
@rule(*(f"_upsample_nearest_exact{nd}d.vec" for nd in (1, 2, 3)), "tril.default", "triu.default", "diag_embed.default")
@rule("im2col.default", "unfold_copy.default", "expand_copy.default", "permute_copy.default", "broadcast_to.default")
def _moved(call: Call) -> Draft | None:
    """Convert an operator that moves, repeats or drops entries to a table of indices, by applying it to indices."""
    names = list(call.args)
    x, rest = call[names[0]], {name: _plain(call, call[name]) for name in names[1:]}
    given = torch.utils._pytree.tree_leaves(rest, is_leaf=lambda v: isinstance(v, Ref))
    if not isinstance(x, Ref) or any(isinstance(value, Ref) for value in given):
        return None
    return picked(x, call.shapes[x.name][1:], lambda places: call.target(places, **rest), call.device)


def _plain(call: Call, value: Any) -> Any:
    """An argument in the operator's form, for two samples."""
    if isinstance(value, list | tuple):
        return [_plain(call, part) for part in value]
    if isinstance(value, Ref) and value.name in call.whole_numbers:
        return call.whole_numbers[value.name]
    return value.tensor if isinstance(value, Weight) else value


#: Number of samples in the index table; one sample must not depend on the other.
SAMPLES = 2


def picked(
    x: Ref | Draft, shape: tuple[int, ...], move: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Draft | None:
    """The draft of an operator that selects entries of x, or zeros; None if it selects across samples."""
    size = math.prod(shape)
    # Numbered from 1, as 0 marks what an operator fills in; some operators do not accept integers.
    places = torch.arange(1, SAMPLES * size + 1, dtype=torch.float64, device=device)  # (SAMPLES size,)
    moved = move(places.reshape(SAMPLES, *shape)).long()  # (SAMPLES, *result)
    if len(moved) != SAMPLES:
        return None
    first, second = moved.reshape(SAMPLES, -1)  # (entries of the result,) each
    zeros = first == 0  # what an operator fills in
    if not torch.equal(second, torch.where(zeros, 0, first + size)) or bool((first > size).any()):
        return None
    pick = {"kind": "pick", "index": first - 1}
    if bool(zeros.all()):
        return zero_rows(x, tuple(moved.shape[1:]), device)
    if bool(zeros.any()):
        flat = as_view(x, (size,))
        count = int(zeros.sum())  # one place for each, so that none of them is read twice
        padded = {"kind": "pad", "pads": (count, 0), "mode": "constant"}
        x = Draft("pad", (flat,), params=padded, shape=(size + count,))
        pick["index"] = torch.where(zeros, zeros.cumsum(0), first + count) - 1
    return Draft("pick", (x,), params=pick, shape=tuple(moved.shape[1:]))


def zero_rows(x: Ref | Draft, shape: tuple[int, ...], device: torch.device) -> Draft:
    """Zeros for every sample of a value, none of whose entries is read: none is picked, and zeros are padded to it."""
    nothing = torch.empty(0, dtype=torch.long, device=device)  # (0,)
    empty = Draft("pick", (x,), params={"kind": "pick", "index": nothing}, shape=(0,))
    size = math.prod(shape)
    zeros = Draft("pad", (empty,), params={"kind": "pad", "pads": (size, 0), "mode": "constant"}, shape=(size,))
    return as_view(zeros, shape)


def broadcast_to(call: Call, x: Ref | Draft, before: tuple[int, ...], after: tuple[int, ...]) -> Ref | Draft | None:
    """The value broadcast from one shape (batch included) to another; None if its axis of samples is another one."""
    if before == after:
        return x
    if len(before) != len(after):
        return None
    return picked(x, before[1:], lambda places: places.expand(SAMPLES, *after[1:]), call.device)


def widened(call: Call, x: Ref) -> Ref | Draft | None:
    """A signal broadcast to the shape of the operator's result; None if its samples are along another axis."""
    return broadcast_to(call, x, call.shapes[x.name], call.shape)


def all_widened(call: Call, *signals: Ref) -> tuple[Ref | Draft, ...] | None:
    """Signals broadcast to the shape of the operator's result; None if one cannot be."""
    wide = [widened(call, x) for x in signals]
    return None if None in wide else tuple(x for x in wide if x is not None)


@rule("expand_as.default")
def _expand_as(call: Call) -> Ref | Draft | None:
    return widened(call, call["self"]) if isinstance(call["self"], Ref) else None


#: Operators that cut a tensor along one axis into consecutive pieces.
SPLITS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unbind.int,
)


def split_piece(x: Ref, dim: int, sizes: Sequence[int] | None, index: int) -> Draft | None:
    """The piece at `index` of a split, as a slice; `sizes` are those of the pieces, None for single entries."""
    if dim == 0:
        return None
    if sizes is None:  # unbind, which drops the axis
        return selected(x, dim, index)
    start = sum(sizes[:index])
    return cut(x, dim, start, start + sizes[index])


@rule("stack.default")
def _stack(call: Call) -> Draft | None:
    tensors, dim = call["tensors"], call.get("dim", 0) % len(call.shape)
    if dim == 0 or not all(isinstance(t, Ref) for t in tensors):
        return None
    one = tuple(1 if axis == dim else size for axis, size in enumerate(call.shape))[1:]
    return Draft("cat", tuple(as_view(t, one) for t in tensors), params={"dim": dim})


@rule("glu.default")
def _glu(call: Call) -> Draft | None:
    """a sigmoid(b) for the halves a and b."""
    x, dim = call["self"], call.get("dim", -1) % len(call.shape)
    if dim == 0:
        return None
    half = call.shape[dim]
    a, b = (cut(x, dim, start, start + half) for start in (0, half))
    return function("product", a, activation("sigmoid", b))


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
    if len(pads) // 2 >= len(call.shape):
        return None
    draft = Draft("pad", (call["self"],), params={"kind": "pad", "pads": pads, "mode": mode})
    if mode != "constant" or value == 0:
        return draft
    x = torch.zeros(call.shapes[call["self"].name][1:], dtype=call.dtype, device=call.device)
    border = Weight(torch.nn.functional.pad(x, pads, value=value), False, frozenset())  # like a row of the result
    return shifted(draft, border)


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
def _adaptive_avg_pool(call: Call) -> Draft:
    return _adaptive_pool(call, "avg_pool", count_include_pad=True, divisor_override=None)


@rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max_pool(call: Call) -> Draft:
    return _adaptive_pool(call, "max_pool", dilation=(1,) * len(call["output_size"]))


def _adaptive_pool(call: Call, op: str, **params: Any) -> Draft:
    """Adaptive pooling, which is the plain one, with these further parameters, if all windows have one size."""
    x = call["self"]
    nd = len(call["output_size"])
    sizes, out = call.shapes[x.name][-nd:], call.shape[-nd:]
    if any(s % o for s, o in zip(sizes, out, strict=True)):
        return Draft(op, (x,), params={"nd": nd, "adaptive": tuple(out), "kind": f"adaptive_{op}"})
    kernel = tuple(s // o for s, o in zip(sizes, out, strict=True))
    window = {"nd": nd, "kernel": kernel, "stride": kernel, "padding": (0,) * nd, "ceil_mode": False, "kind": op}
    return Draft(op, (x,), params=window | params)


@rule("max_pool1d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool_with_indices(call: Call) -> Draft | Ref | None:
    return _max_pool(call)


#: Interpolations that are a matrix along each axis, by how many axes.
_INTERPOLATIONS = {
    "upsample_linear1d.vec": 1,
    "upsample_bilinear2d.vec": 2,
    "upsample_trilinear3d.vec": 3,
    "upsample_bicubic2d.vec": 2,
    "_upsample_bilinear2d_aa.vec": 2,
    "_upsample_bicubic2d_aa.vec": 2,
}


@rule(*_INTERPOLATIONS)
def _interpolation(call: Call) -> Draft:
    """One axis is seen on images that do not vary along the others; these have two places and keep them."""
    nd = _INTERPOLATIONS[call.target.__name__]
    rest = {name: call[name] for name in call.args if name not in ("input", "output_size", "scale_factors")}
    factors = call.get("scale_factors")
    matrices = []
    for axis, (n, m) in enumerate(zip(call.shapes[call["input"].name][-nd:], call.shape[-nd:], strict=True)):
        before, after = (2,) * axis, (2,) * (nd - 1 - axis)
        # Column j of the matrix is the image of the unit vector e_j: (n, 1, ..., n, ...), one image per vector.
        rows = torch.eye(n, dtype=torch.float64, device=call.device).reshape(n, 1, *(1,) * axis, n, *(1,) * len(after))
        size = None if factors else [*before, m, *after]
        scales = [*(1.0,) * axis, factors[axis], *(1.0,) * len(after)] if factors else None
        images = rows.expand(n, 1, *before, n, *after).contiguous()
        columns = call.target(images, output_size=size, scale_factors=scales, **rest)  # (n, 1, ..., m, ...)
        matrices.append(columns.movedim(2 + axis, -1).reshape(n, -1, m)[:, 0].mT)  # (m, n)
    return Draft("separable", (call["input"],), params={"kind": "interpolation", "axes": tuple(matrices)})


@rule("cumsum.default", "diff.default", "trapezoid.dx", "trapezoid.x", "cumulative_trapezoid.dx")
@rule("cumulative_trapezoid.x", "gradient.scalarint")
def _along_axis(call: Call) -> Draft | None:
    """A linear map along one axis, whose matrix is what the operator makes of unit vectors."""
    name = "y" if "y" in call.args else "self"
    x, rest = call[name], {key: _plain(call, value) for key, value in call.args.items() if key not in (name, "dim")}
    given = torch.utils._pytree.tree_leaves(rest, is_leaf=lambda v: isinstance(v, Ref))
    if not isinstance(x, Ref) or call["dim"] is None or any(isinstance(value, Ref) for value in given):
        return None
    if any(isinstance(value, Weight) and value.trainable for value in call.args.values()):  # steps that are trained
        return None
    if any(isinstance(value, torch.Tensor) and value.dim() > 1 for value in given):  # other steps for every row
        return None
    shape = call.shapes[x.name]
    dim = call["dim"] % len(shape)
    if dim == 0 or rest.get("dtype") is not None:
        return None
    units = torch.eye(shape[dim], dtype=torch.float64, device=call.device)  # (size, size)
    rows = call.target(**{name: units}, dim=-1, **rest)
    rows = rows[0] if isinstance(rows, list | tuple) else rows
    matrix = rows.reshape(shape[dim], -1).mT  # (outputs, size)
    axes = (matrix, *(None,) * (len(shape) - 1 - dim))
    kind = call.target.__name__.split(".")[0]
    outputs = (*shape[1:dim], len(matrix), *shape[dim + 1 :])
    return as_view(Draft("separable", (x,), params={"kind": kind, "axes": axes}, shape=outputs))
