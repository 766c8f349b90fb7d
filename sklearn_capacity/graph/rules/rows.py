"""Calls with samples along another axis, or joined with one, as calls on rows: (n, ...) per signal.

A rule only knows rows. Here the axes that an operator's arguments name become axes of the rows, and parameters that it
broadcasts get the shape in which they broadcast over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..layouts import ROWS, Layout, order_of_axes
from .call import Call, Draft, Ref, Rule, Weight, aten
from .contractions import terms
from .drafts import as_view, permuted
from .frames import on_frames
from .shapes import is_whole

__all__ = ["BROADCASTS", "ENTRIES", "PERMUTATIONS", "REPEATS", "VIEWS", "OnEntries", "Repeated", "on_rows"]

#: Operators that keep the order of all entries.
VIEWS = frozenset("view reshape reshape_as view_as _unsafe_view flatten unsqueeze squeeze unflatten".split())
PERMUTATIONS = frozenset("permute transpose movedim swapaxes mT permute_copy".split())
#: Operators on the last axes.
_LAST = frozenset("linear mm addmm layer_norm native_layer_norm rms_norm".split())
#: Operators on as many of the last axes as there are pairs of widths.
_PADS = frozenset(("pad", "constant_pad_nd"))
#: Operators on the last two axes of stacks of matrices.
_MATRICES = frozenset("matmul bmm baddbmm scaled_dot_product_attention".split())
#: Operators with arguments that name axes of their first signal, or of their result.
_ALONG = frozenset(
    "softmax _softmax log_softmax _log_softmax logsumexp mean sum var std select slice narrow cumsum amax amin max min "
    "glu linalg_vector_norm norm diff trapezoid cumulative_trapezoid gradient cat stack sort topk kthvalue median "
    "cummax cummin".split()
)
#: Operators that move, repeat or drop entries; their rule applies them to tables of indices.
_MOVES = frozenset(
    "flip roll expand repeat tile rot90 repeat_interleave index index_select diagonal unfold tril triu diag_embed "
    "expand_copy broadcast_to unfold_copy pixel_shuffle pixel_unshuffle channel_shuffle im2col "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d".split()
)
#: Operators that take entries of several signals; their rule applies them to numbered entries.
ENTRIES = frozenset(
    "gather scatter scatter_add index_add index_copy index_fill index_put take_along_dim slice_scatter select_scatter "
    "scatter_reduce diagonal_scatter fill kron grid_sampler affine_grid_generator linalg_solve_triangular "
    "masked_scatter".split()
)
#: Operators that may repeat the samples, and the layout of so many entries for each of them.
REPEATS: Mapping[str, Callable[[Layout, int], Layout]] = {
    "repeat_interleave": lambda layout, n: replace(layout, inner=n // layout.outer),
    **dict.fromkeys(("repeat", "tile"), lambda layout, n: replace(layout, outer=n // layout.inner)),
}
#: Operators entry by entry, with broadcasting.
BROADCASTS = frozenset(
    "relu relu6 leaky_relu hardtanh tanh sigmoid softplus gelu silu elu erf hardsigmoid hardswish mish log_sigmoid abs "
    "threshold hardshrink softshrink sin cos atan asinh exp expm1 log log1p sinh cosh tan sign floor ceil round trunc "
    "sqrt rsqrt reciprocal square log_sigmoid_forward sinc pow selu celu clamp_min clamp_max clamp clone alias detach "
    "contiguous lift_fresh_copy type_as to _to_copy dropout alpha_dropout feature_dropout feature_alpha_dropout "
    "mul div neg add sub rsub maximum minimum fmax fmin logaddexp log2 log10 exp2 erfc where masked_fill expand_as "
    "copy positive nan_to_num acos acosh asin erfinv lgamma digamma huber_loss smooth_l1_loss".split()
)
#: Arguments that broadcast with the signals.
_BROADCAST = tuple("self other attn_mask condition mask value target weight min max".split())


@dataclass(frozen=True)
class Repeated:
    """A tensor that is the same for every sample.

    Attributes
    ----------
    weight : Weight
        The tensor as traced, for two samples.
    layout : Layout
    """

    weight: Weight
    layout: Layout

    @property
    def row(self) -> Weight:
        """The tensor for one sample, (1, ...)."""
        return replace(self.weight, tensor=self.layout.to_rows(self.weight.tensor)[:1])


@dataclass(frozen=True)
class OnEntries:
    """An operator as a function of the rows of its signals, for two samples."""

    call: Call
    layouts: Mapping[str, Layout]
    result: Layout

    def __call__(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The rows of its result, from those of its signals by name."""

        def given(value: Any) -> Any:
            if isinstance(value, Ref):
                layout = self.layouts.get(value.name)
                return self.call.whole_numbers[value.name] if layout is None else layout.from_rows(rows[value.name])
            constant = value.weight if isinstance(value, Repeated) else value
            if not isinstance(constant, Weight):
                return constant
            return constant.tensor.double() if constant.tensor.is_floating_point() else constant.tensor

        leaves, spec = tree_flatten(
            dict(self.call.args), is_leaf=lambda leaf: isinstance(leaf, Ref | Weight | Repeated)
        )
        return self.result.to_rows(self.call.target(**tree_unflatten([given(leaf) for leaf in leaves], spec)))

    @property
    def name(self) -> str:
        return self.call.target.__name__.split(".")[0]


def on_rows(
    call: Call,
    rule: Rule,
    layouts: Mapping[str, Layout],
    result: Layout,
    view: Callable[[Ref, tuple[int, ...], Layout], Ref],
) -> Draft | Ref | None:
    """The draft of an operator on rows; None if it does not keep its samples apart.

    Parameters
    ----------
    call : Call
        With the traced arguments, and the shapes of rows.
    rule : Rule
        Of the operator, for rows.
    layouts : dict of name to Layout
        Of the tensors that it reads.
    result : Layout
        Of its result.
    view : callable(Ref, shape, Layout) -> Ref
        Enters a node with the entries of a value in another shape.
    """
    converted = _call_on_rows(call, layouts, result, view)
    if converted is None:
        return on_frames(call, rule, layouts, result, view)
    return rule(converted) if isinstance(converted, Call) else converted


def _call_on_rows(
    call: Call, layouts: Mapping[str, Layout], result: Layout, view: Callable[[Ref, tuple[int, ...], Layout], Ref]
) -> Call | Draft | Ref | None:
    """The call on rows, or what it is there; None if neither is known."""
    name = call.target.__name__.split(".")[0]
    if name in ENTRIES:
        return replace(call, target=OnEntries(call, layouts, result))
    repeated = any(isinstance(value, Repeated) for value in call.args.values())
    if result == ROWS and all(layout == ROWS for layout in layouts.values()) and not repeated:
        return call
    if name in VIEWS:
        return call
    if name in PERMUTATIONS:
        return _permutation(call, layouts)
    if name == "matmul" and any(isinstance(value, Weight) and value.tensor.dim() > 2 for value in call.args.values()):
        return None  # whose axes meet those of the traced tensors
    if name == "einsum":
        return _einsum(call, layouts, result)
    if name in _LAST or (name == "matmul" and isinstance(call["other"], Weight)):
        return call if all(layout.axis < _last(call) for layout in layouts.values()) else None
    if name in _PADS and all(layout.axis < len(call.traced) - len(call["pad"]) // 2 for layout in layouts.values()):
        return call if call.get("mode", "constant") == "constant" else None
    if name in _ALONG:
        return _along(call, layouts, result)
    if name in _MOVES:
        return _move(call, layouts, result)
    if name in _MATRICES and result.axis >= len(call.traced) - 2:
        return None
    return _broadcast(call, layouts, result, view) if name in BROADCASTS | _MATRICES else None


def _last(call: Call) -> int:
    """The first of the last axes, which the operator mixes."""
    return len(call.traced) - len(call.get("normalized_shape", (0,)))


def _permutation(call: Call, layouts: Mapping[str, Layout]) -> Draft:
    x = call["self"]
    layout = layouts[x.name]
    order = order_of_axes(call.target, call.args, "self", len(call.traced))
    dims = (0, *(position for axis in order for position in layout.positions(axis)))
    # Where only the samples move, the rows remain: a view, as the node of another layout.
    return as_view(x) if dims == tuple(range(len(dims))) else permuted(x, dims)


def _along(call: Call, layouts: Mapping[str, Layout], result: Layout) -> Call | Ref | None:
    """The call with the axes of the rows for those that its arguments name."""
    if call.target is aten.slice.Tensor and is_whole(call):
        return call["self"]
    if len(set(layouts.values())) > 1:
        return None
    (layout,) = set(layouts.values())
    rank = call.traced_rank
    of_result = "tensors" in call.args
    layout, rank = (result, len(call.traced)) if of_result else (layout, rank)
    given = call.args.get("dim")
    if given is None:
        return None
    axes = [given] if isinstance(given, int) else list(given)
    axes = [axis % rank for axis in axes]
    if layout.axis in axes:
        return None
    moved = [layout.positions(axis)[0] for axis in axes]
    return replace(call, args={**call.args, "dim": moved[0] if isinstance(given, int) else moved})


def _einsum(call: Call, layouts: Mapping[str, Layout], result: Layout) -> Call | None:
    """The call with the samples' letter in front, and letters for what they were merged with in its place."""
    operands = call["tensors"]
    if not all(isinstance(x, Weight) or x.name in layouts for x in operands):
        return None
    width = len(result.positions(result.axis))
    ranks = [call.rank(x) - width if isinstance(x, Ref) else x.tensor.dim() for x in operands]
    given, right = terms(call["equation"], ranks)
    letter = right[result.axis]
    merged = [c for c in ascii_letters if c not in right and not any(c in term for term in given)][:width]
    moved = []
    for x, term in zip(operands, given, strict=True):
        layout = layouts[x.name] if isinstance(x, Ref) else None
        alike = layout is not None and (layout.outer, layout.inner) == (result.outer, result.inner)
        if letter in term and not (alike and layout is not None and term[layout.axis] == letter):
            return None
        if layout is not None and letter not in term:
            return None
        moved.append(term if letter not in term else letter + term.replace(letter, "".join(merged)))
    equation = f"{','.join(moved)}->{letter + right.replace(letter, ''.join(merged))}"
    return replace(call, args={**call.args, "equation": equation})


def _move(call: Call, layouts: Mapping[str, Layout], result: Layout) -> Call | None:
    x = next(iter(call.args.values()))
    if not isinstance(x, Ref) or len(layouts) > 1:
        return None
    before = layouts[x.name]

    def moved(places: torch.Tensor, **rest: Any) -> torch.Tensor:
        return result.to_rows(call.target(before.from_rows(places), **rest))

    return replace(call, target=moved)


def _broadcast(
    call: Call, layouts: Mapping[str, Layout], result: Layout, view: Callable[[Ref, tuple[int, ...], Layout], Ref]
) -> Call | None:
    rank, args, shapes = len(call.traced), dict(call.args), dict(call.shapes)
    matrices = call.target.__name__.split(".")[0] in _MATRICES - {"baddbmm"}
    for key in ("attn_mask",) if matrices else _BROADCAST:
        value = args.get(key)
        if isinstance(value, Weight | Repeated):
            args[key] = _constant_on_rows(value, rank, result)
            if args[key] is None:
                return None
    for key, value in args.items():
        if not isinstance(value, Ref) or value.name not in layouts:
            continue
        layout = layouts[value.name]
        missing = len(call.shape) - len(call.shapes[value.name])
        if layout.aligned(missing) != result:
            return None
        if missing:
            shape = (*(1,) * missing, *call.shapes[value.name][1:])
            args[key] = view(value, shape, result)
            shapes[args[key].name] = (-1, *shape)
    return replace(call, args=args, shapes=shapes)


def _constant_on_rows(constant: Weight | Repeated, rank: int, layout: Layout) -> Weight | None:
    """A constant that broadcasts over traced tensors of a rank, in the shape in which it broadcasts over their rows.

    None if it is not the same for all samples.
    """
    tensor = constant.tensor if isinstance(constant, Weight) else constant.weight.tensor
    missing = rank - tensor.dim()
    if missing < 0:
        return None
    if isinstance(constant, Repeated):
        row = constant.row
        shape = (1, *(1,) * missing, *row.tensor.shape[1:])
        return replace(row, tensor=row.tensor.reshape(shape)) if constant.layout.aligned(missing) == layout else None
    place = layout.axis - missing  # its axis that meets that of the samples
    if layout == ROWS or place < 0:
        return constant
    if tensor.shape[place] != 1:
        return None
    sizes = (*(1,) * missing, *tensor.shape)
    factors = (1,) * len(layout.positions(layout.axis))
    shape = (1, *sizes[: layout.axis], *factors, *sizes[layout.axis + 1 :])
    return replace(constant, tensor=tensor.reshape(shape))
