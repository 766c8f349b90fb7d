"""Rules for smooth functions of several numbers of a sample: softmax, attention, normalisations, lengths, variances."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .call import Call, Draft, Ref, Weight, axes_of, is_weight, rule
from .drafts import activation, as_view, centred, function, permuted, reduced, scaled, shifted
from .layers import batch_norm
from .maxima import constant, largest_over
from .products import matmul
from .shapes import all_widened, broadcast_to


@rule("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default")
def _softmax(call: Call) -> Draft | None:
    dim = call["dim"] % len(call.shape)
    kind = "log_softmax" if "log" in call.target.__name__ else "softmax"
    return None if dim == 0 else function(kind, call["self"], args=(dim - len(call.shape),))


@rule("logsumexp.default")
def _logsumexp(call: Call) -> Draft | None:
    x, shape = call["self"], call.shapes[call["self"].name]
    dims = axes_of(call["dim"], len(shape))
    if 0 in dims:
        return None
    kept = tuple(1 if d in dims else size for d, size in enumerate(shape))[1:]
    row = function("logsumexp", x, args=(tuple(d - len(shape) for d in dims),), shape=kept)
    return as_view(row)


@rule("logaddexp.default")
def _logaddexp(call: Call) -> Draft | None:
    a, b = call["self"], call["other"]
    if not isinstance(a, Ref) or not isinstance(b, Ref):
        return None
    wide = all_widened(call, a, b)
    if wide is None:
        return None
    columns = tuple(as_view(x, (*call.shape[1:], 1)) for x in wide)
    pairs = Draft("cat", columns, params={"dim": len(call.shape)}, shape=(*call.shape[1:], 2))
    return as_view(function("logsumexp", pairs, args=((-1,),), shape=(*call.shape[1:], 1)))


# -- attention --------------------------------------------------------------------------------------------------------


@rule("scaled_dot_product_attention.default")
def _attention(call: Call) -> Draft | None:
    """softmax(scale Q K^T + mask) V, step by step."""
    q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    given = all(isinstance(x, Ref) for x in (q, k, v)) and (is_weight(mask) or isinstance(mask, Ref))
    if not given or call.get("dropout_p", 0.0) or call.get("enable_gqa", False):
        return None
    shapes = [call.shapes[x.name] for x in (q, k, v)]
    rank, n_queries, n_keys = len(shapes[0]), shapes[0][-2], shapes[1][-2]
    if rank < 3:
        return None
    scale = 1 / math.sqrt(shapes[0][-1]) if call.get("scale") is None else call["scale"]
    last_two_swapped = (*range(rank - 2), rank - 1, rank - 2)
    keys = (*shapes[1][:-2], shapes[1][-1], n_keys)
    queries = scaled(q, constant(float(scale), call), shape=shapes[0][1:])
    turned = permuted(k, last_two_swapped, shape=keys[1:])
    # (n, *heads, queries, keys), where -1 is any number of samples
    rows = (-1, *torch.broadcast_shapes(shapes[0][1:-2], keys[1:-2]), n_queries, n_keys)
    scores = matmul(call, queries, turned, (shapes[0], keys), shape=rows[1:])
    if scores is None:
        return None
    allowed = None
    if call.get("is_causal", False):
        allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=call.device).tril()  # (queries, keys)
    elif isinstance(mask, Ref):  # the same for all samples, with trained numbers in it
        wide = broadcast_to(call, mask, call.shapes[mask.name], rows)
        if wide is None or not call.is_real(mask):
            return None
        scores = Draft("add", (scores, wide), params={"signs": (1.0, 1.0)}, shape=rows[1:])
    elif mask is not None:
        if mask.tensor.dim() >= rank and mask.tensor.shape[0] != 1:
            return None
        allowed, scores = _masked(mask, scores, rows[1:])
    weights = function("softmax", scores, args=(-1,) if allowed is None else (-1, allowed), shape=rows[1:])
    return matmul(call, weights, v, (rows, shapes[2]))


def _masked(mask: Weight, scores: Draft, shape: tuple[int, ...]) -> tuple[torch.Tensor | None, Draft]:
    """Which keys may be attended to, and the scores with what the mask adds to them."""
    if mask.tensor.dtype is torch.bool:
        return mask.tensor, scores
    allowed = mask.tensor != -math.inf
    if bool(allowed.all()):  # as it is, so that it remains known what it was taken from
        return None, shifted(scores, mask, shape=shape)
    finite = replace(mask, tensor=mask.tensor.masked_fill(~allowed, 0.0))
    return allowed, shifted(scores, finite, shape=shape)


# -- normalisations ----------------------------------------------------------------------------------------------------


def _affine(x: Draft, weight: Weight | None, bias: Weight | None, dim: int | None) -> Draft:
    """The scale and shift behind a normalisation; the scale is a separate layer."""
    if weight is None and bias is None:
        return x
    return scaled(x, weight, bias, dim=dim, layer=weight is not None)


@rule("layer_norm.default", "native_layer_norm.default")
def _layer_norm(call: Call) -> Draft | None:
    x, weight, bias = call["input"], call.get("weight"), call.get("bias")
    count, rank = len(call["normalized_shape"]), len(call.shape)
    if not isinstance(x, Ref) or not is_weight(weight) or not is_weight(bias) or count >= rank:
        return None
    shape = call.shape[1:]
    args = (tuple(range(-count, 0)), call["eps"])
    row = centred(x, tuple(range(rank - count, rank)), shape=shape)
    return _affine(function("normalization", row, args=args, shape=shape), weight, bias, None)


@rule("rms_norm.default")
def _rms_norm(call: Call) -> Draft | None:
    x, weight, eps = call["input"], call.get("weight"), call.get("eps")
    count = len(call["normalized_shape"])
    if not isinstance(x, Ref) or not is_weight(weight) or count >= len(call.shape):
        return None
    args = (tuple(range(-count, 0)), torch.finfo(call.dtype).eps if eps is None else eps)
    return _affine(function("normalization", x, args=args, shape=call.shape[1:]), weight, None, None)


@rule("group_norm.default", "native_group_norm.default")
def _group_norm(call: Call) -> Draft | None:
    groups = call["num_groups"] if "num_groups" in call.args else call["group"]
    return _by_groups(call, groups)


@rule("instance_norm.default")
def _instance_norm(call: Call) -> Draft | Ref | None:
    # With tracked statistics it is a batch norm: `use_input_stats` is False in eval mode.
    return _by_groups(call, call.shape[1]) if call["use_input_stats"] else batch_norm(call)


def _by_groups(call: Call, groups: int) -> Draft | None:
    x, weight, bias = call["input"], call.get("weight"), call.get("bias")
    if not isinstance(x, Ref) or not is_weight(weight) or not is_weight(bias):
        return None
    shape = call.shape[1:]
    rows = (groups, math.prod(shape) // groups)
    group = centred(as_view(x, rows), (2,), shape=rows)
    normed = function("normalization", group, args=((-1,), call["eps"]), shape=rows)
    return _affine(as_view(normed, shape), weight, bias, 1)


# -- lengths and variances ---------------------------------------------------------------------------------------------


@rule("linalg_vector_norm.default", "norm.ScalarOpt_dim")
def _vector_norm(call: Call) -> Draft | None:
    x, rank = call["self"], call.rank(call["self"])
    order = float(call["ord"] if "ord" in call.args else call.get("p", 2))
    dims = axes_of(call.get("dim"), rank)
    if order < 1 or 0 in dims:
        return None
    if order in (1, math.inf):
        absolute = activation("abs", x, shape=call.shapes[x.name][1:])
        if order == math.inf:
            return largest_over(call, absolute, call.shapes[x.name], dims)
        return reduced("sum", absolute, dims, keepdim=call.get("keepdim", False))
    kept = tuple(1 if i in dims else size for i, size in enumerate(call.shapes[x.name]))[1:]
    args = (tuple(d - rank for d in dims),) + (() if order == 2 else (order,))
    return as_view(function("length", x, args=args, shape=kept))


@rule("var.correction", "var.dim", "var.default", "std.correction", "std.dim", "std.default")
def _variance(call: Call) -> Draft | None:
    """The sum of (x - mean)^2 over k entries, divided by k - correction; its root for a standard deviation."""
    x, shape = call["self"], call.shapes[call["self"].name]
    dims = axes_of(call.get("dim"), len(shape))
    if 0 in dims:
        return None
    correction = float(call.get("correction", 1)) if "unbiased" not in call.args else float(call["unbiased"])
    count = math.prod(shape[d] for d in dims) - correction
    if count <= 0:
        return None
    squared = activation("pow", centred(x, dims, shape=shape[1:]), 2.0, shape=shape[1:])
    variance = reduced("mean", squared, dims, 1 / count, keepdim=call.get("keepdim", False), shape=call.shape[1:])
    return variance if "var" in call.target.__name__ else activation("pow", variance, 0.5)
