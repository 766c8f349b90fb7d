"""Operators of a traced program that are composed of others, written out in those that have rules.

Torch itself can write out most of them; `_WRITTEN_HERE` has those that it would write in operators without rules, or
not at all.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from .in_place import mutates, replace_in_place
from .layouts import at_samples

__all__ = ["write_out"]

_aten = torch.ops.aten
#: Steps of a product along an axis.
_MOST_STEPS = 64
#: Operators that torch writes out: other names, then losses and distances, differences, products, norms, and joins.
_WRITTEN_BY_TORCH = frozenset(
    "absolute negative fix clip sgn arctan arccos arcsin arcsinh arccosh arctanh "
    "special_expit special_ndtr special_erf special_erfc special_erfinv special_exp2 special_expm1 special_log1p "
    "special_sinc special_round special_digamma special_psi special_gammaln special_logit special_softmax "
    "special_log_softmax special_logsumexp "
    "float_power true_divide divide multiply subtract deg2rad rad2deg frac ldexp addcdiv "
    "mse_loss l1_loss binary_cross_entropy_with_logits soft_margin_loss poisson_nll_loss cosine_similarity "
    "pairwise_distance hinge_embedding_loss triplet_margin_loss margin_ranking_loss cosine_embedding_loss "
    "tensordot inner linalg_vecdot outer ger linalg_multi_dot chain_matmul linalg_matrix_power addmv addr mv dot cross "
    "linalg_matrix_norm linalg_norm frobenius_norm norm std_mean var_mean aminmax broadcast_tensors "
    "column_stack dstack vstack row_stack concat concatenate hsplit dsplit atleast_3d atleast_2d fliplr flipud "
    "moveaxis swapdims fft_fftshift fft_ifftshift".split()
)


def write_out(graph: fx.Graph) -> None:
    """Replace composed operators of an exported graph, in place, by those that they are composed of.

    What cannot be written out stays as it is, and measures name it. So does everything where the trace has fixed the
    number of samples, which would be written into the calls.
    """
    for node in list(graph.nodes):
        if not (node.target in _WRITTEN_HERE or _name(node) in _WRITTEN_BY_TORCH) or not _varies(graph):
            continue
        values = [_for_three(read.meta.get("val")) for read in node.all_input_nodes]
        result = _for_three(node.meta.get("val"))
        body = _body(node)
        if body is not None and _fits(body, values, result):
            _replace(graph, node, body)


def _varies(graph: fx.Graph) -> bool:
    """Whether the number of samples is free."""
    inputs = (node.meta.get("val") for node in graph.nodes if node.op == "placeholder")
    sizes = (size for value in inputs if isinstance(value, Tensor) for size in value.shape)
    return any(at_samples(size, 1) != at_samples(size, 2) for size in sizes)


def _name(node: fx.Node) -> str:
    is_operator = isinstance(node.target, torch._ops.OpOverload)
    return node.target.__name__.split(".")[0] if is_operator else ""  # type: ignore[union-attr]


def _fits(body: fx.Graph, values: list[Any], expected: Any) -> bool:
    """Whether the body is right for another number of samples, too: torch writes some sizes of the trace into it."""
    try:
        result = fx.Interpreter(fx.GraphModule({}, body)).run(*values)
    except Exception:
        return False
    return [part.shape for part in tree_leaves(result)] == [part.shape for part in tree_leaves(expected)]


def _for_three(value: Any) -> Any:
    """A traced value for three samples, without entries."""
    if isinstance(value, tuple | list):
        return [_for_three(part) for part in value]
    if isinstance(value, Tensor):
        return torch.empty([at_samples(size, 3) for size in value.shape], dtype=value.dtype, device="meta")
    return at_samples(value, 3)


def _body(node: fx.Node) -> fx.Graph | None:
    """The calls of which an operator is composed, with one placeholder for each of its inputs; None if unknown."""
    # Imported here, since it imports sympy, which would slow the package's import by a second.
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = node.all_input_nodes
    values = [read.meta.get("val") for read in inputs]
    mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)
    if mode is None:
        return None

    def call(*operands: Any) -> Any:
        given = dict(zip(inputs, operands, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return _WRITTEN_HERE.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]

    table = {**torch._decomp.get_decompositions([node.target]), **_WRITTEN_HERE}  # type: ignore[list-item]
    try:
        with mode:
            body = make_fx(call, decomposition_table=table)(*values).graph
    except Exception:  # among others, where it is not known how to write this call out
        return None
    replace_in_place(body)
    has_constants = any(part.op == "get_attr" for part in body.nodes)
    return None if mutates(body) or has_constants else body


def _replace(graph: fx.Graph, node: fx.Node, body: fx.Graph) -> None:
    placeholders = [part for part in body.nodes if part.op == "placeholder"]
    copies = dict(zip(placeholders, node.all_input_nodes, strict=True))
    with graph.inserting_before(node):
        result: Any = graph.graph_copy(body, copies)  # type: ignore[arg-type]
    origin = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    for part, copy in copies.items():
        if part.op != "placeholder":
            copy.meta = {**copy.meta, **origin}
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    graph.erase_node(node)


# -- what torch does not write in operators with rules -----------------------------------------------------------------


def _var_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = list(range(x.dim())) if dim is None else dim
    return _aten.var.correction(x, axes, correction=correction, keepdim=keepdim), x.mean(axes, keepdim)


def _std_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    variance, mean = _var_mean(x, dim, correction=correction, keepdim=keepdim)
    return variance.sqrt(), mean


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch.broadcast_tensors(a, b), -1), 2, -1)


def _cross(a: Tensor, b: Tensor, *, dim: int = -1) -> Tensor:
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _remainder(x: Tensor, divisor: float) -> Tensor:
    return x - (x / divisor).floor() * divisor


def _fmod(x: Tensor, divisor: float) -> Tensor:
    return x - (x / divisor).trunc() * divisor


def _rounded(x: Tensor, *, decimals: int) -> Tensor:
    return (x * 10.0**decimals).round() / 10.0**decimals


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return x.log() - (-x).log1p()


def _power_of(base: float, x: Tensor) -> Any:
    return (x * math.log(base)).exp() if base > 0 else NotImplemented


def _slices(x: Tensor, dim: int, dtype: Any) -> list[Tensor] | None:
    """The entries along an axis, unless there are too many to combine one by one."""
    is_short = isinstance(x.shape[dim], int) and x.shape[dim] <= _MOST_STEPS
    return list(x.unbind(dim)) if is_short and dtype is None else None


def _prefixes(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Everything up to each entry along an axis, combined."""

    def write(x: Tensor, dim: int, *, dtype: Any = None) -> Any:
        parts = _slices(x, dim, dtype)
        return NotImplemented if parts is None else torch.stack(list(itertools.accumulate(parts, combine)), dim)

    return write


def _prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    parts = _slices(x, dim, dtype)
    if parts is None:
        return NotImplemented
    product = functools.reduce(operator.mul, parts)
    return product.unsqueeze(dim) if keepdim else product


_WRITTEN_HERE: dict[Any, Callable[..., Any]] = {
    _aten.var_mean.correction: _var_mean,
    _aten.std_mean.correction: _std_mean,
    _aten.cdist.default: _cdist,
    _aten.hypot.default: _hypot,
    _aten.linalg_cross.default: _cross,
    _aten.remainder.Scalar: _remainder,
    _aten.fmod.Scalar: _fmod,
    _aten.floor_divide.default: lambda x, divisor: (x / divisor).floor(),
    _aten.floor_divide.Scalar: lambda x, divisor: (x / divisor).floor(),
    _aten.round.decimals: _rounded,
    _aten.logit.default: _logit,
    _aten.atanh.default: lambda x: (x.log1p() - (-x).log1p()) / 2,
    _aten.lerp.Scalar: lambda a, b, t: a * (1 - t) + b * t,
    _aten.lerp.Tensor: lambda a, b, t: a * (1 - t) + b * t,
    _aten.addcmul.default: lambda x, a, b, *, value=1: x + a * b * value,
    _aten.pow.Scalar: _power_of,
    _aten.cumprod.default: _prefixes(torch.mul),
    _aten.logcumsumexp.default: _prefixes(torch.logaddexp),
    _aten.prod.dim_int: _prod,
    # On finite numbers.
    _aten.nansum.default: lambda x, dim=None, keepdim=False, dtype=None: x.sum(dim, keepdim),
    _aten.nanmean.default: lambda x, dim=None, keepdim=False, dtype=None: x.mean(dim, keepdim),
}
