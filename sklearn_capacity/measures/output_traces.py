r"""The trace of :math:`J^\top F J` per sample: exact for few outputs, else an unbiased estimate with its variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..derivatives.input_jacobian import jacobian_products
from ..derivatives.input_sweeps import linearize
from ..graph import Network
from ..graph.end_layers import one_hidden_layer
from .batch import Batch
from .output_gram import (
    apply_metric,
    apply_metric_transposed,
    each_column,
    holds_grams,
    logits_function,
    metric_gram,
    pullbacks,
    range_basis,
    rank_of,
    walkable_graph,
)
from .pass_limits import Parts

__all__ = ["TRACE_PASSES", "Traces", "trace_limits", "traces"]

#: Up to this rank of the Jacobian, its trace is exact for any number of draws.
EXACT_RANK = 100
#: Largest cost of a product in double precision, relative to one in the precision of the data.
DOUBLE = 2
#: Length of a difference, relative to the sample: it must exceed rounding in single precision.
STEP = 1e-3
#: Fewest squares of all samples together from which a standard error is estimated.
FEWEST_SQUARES = 48
#: The part of the free memory that images of signs may take, for another metric of the same call.
KEPT = 16
#: In forward passes: a backward pass through J takes 1.5, and a quarter of the draws another pass.
TRACE_PASSES = (lambda known: 1.5 * n if (n := known["n_outputs"]) <= EXACT_RANK else 2.0 * min(n, known["n_draws"]),)


@dataclass(frozen=True)
class Traces:
    """tr(J^T F J) of every sample, (n,), float64, and the variances of these values, if they are estimates."""

    values: Tensor
    variances: Tensor | None = None


def traces(network: Network, batch: Batch, metric: str, n_draws: int | None = None) -> Traces:
    """tr(J^T F J) of every sample; an estimate from `n_draws` vectors if the rank of J exceeds that many and 100."""
    if metric == "logits" and "jacobian_gram" not in batch.known and _passes_of_closed_form(network, batch):
        return batch.once("closed traces", lambda: Traces(_closed_form(network, batch)))
    if holds_grams(network, batch):
        gram = batch.once(("metric_gram", metric), lambda: metric_gram(network, batch, metric))  # (n, r, r)
        return Traces(gram.diagonal(0, 1, 2).sum(1))
    if n_draws is None or rank_of(network) <= max(n_draws, EXACT_RANK):
        return batch.once(("traces", metric), lambda: Traces(_exact(network, batch, metric)))
    return batch.once(("traces", metric, n_draws), lambda: _estimates(network, batch, metric, n_draws))


def trace_limits(
    network: Network, batch: Batch, metric: str, *, n_draws: int, reduction: str = "mean", **params: Any
) -> Parts:
    """The largest numbers of passes that `traces` takes."""
    closed = _passes_of_closed_form(network, batch) if metric == "logits" else None
    if closed:
        return {"closed traces": closed}
    if holds_grams(network, batch):
        return {"jacobian gram": 1 + rank_of(network), "logits": float(metric != "logits")}
    rank = rank_of(network)
    if reduction == "max" or rank <= max(n_draws, EXACT_RANK):
        return {("traces", metric): 1 + (rank if metric == "logits" else network.n_outputs)}
    n_sketch, n_squares = _numbers_of_draws(n_draws, batch.n_samples)
    images = 2 * n_sketch  # a backward and a forward pass each
    return {("traces", metric, n_draws): 1 + n_sketch + n_squares, _images_key(n_sketch): images}


def _numbers_of_draws(n_draws: int, n_samples: int) -> tuple[int, int]:
    """Vectors of the sketch, and of the estimate of the rest, for each sample."""
    n_sketch = n_draws // 4
    return n_sketch, max(n_draws - 2 * n_sketch, math.ceil(FEWEST_SQUARES / n_samples))


def _passes_of_closed_form(network: Network, batch: Batch) -> float | None:
    """The passes of one hidden layer's traces by their closed form; None if rows of Jacobians take fewer operations."""
    graph = walkable_graph(logits_function(network, batch))
    layers = None if graph is None else one_hidden_layer(graph)
    if layers is None:
        return None
    W, V = layers[0].weight, layers[2].weight
    assert W is not None and V is not None
    (h, D), C, n = W.shape, len(V), batch.n_samples
    small = h <= n + D + C and 8 * 4 * h * (h + D + C) <= batch.room  # the matrices in double precision
    worth = DOUBLE * (n + D + C) * h <= n * C * D  # multiplications, over h
    return 1 + h / n + h / (D + C) if small and worth else None


def _closed_form(network: Network, batch: Batch) -> Tensor:
    r"""||J||_F^2 of one hidden layer's network: the maps W (h, D) and V (C, h), and slopes d of the units between them.

    .. math:: \|V \operatorname{diag}(d)\, W\|_F^2 = d^\top (W W^\top \circ V^\top V)\, d
    """
    graph = network.graph
    layers = one_hidden_layer(graph)
    assert layers is not None
    W, V = (layers[k].weight.detach().double() for k in (0, 2))  # type: ignore[union-attr]
    # Each unit's factor moves to V, and then that of all V outside, so that squares of large weights are finite.
    tiny = torch.finfo(W.dtype).tiny
    factors = W.abs().amax(1).clamp_min(tiny)  # (h,)
    W, V = W / factors[:, None], V * factors
    scale = V.abs().max().clamp_min(tiny)
    V = V / scale
    products = (W @ W.T).mul_(V.T @ V)  # (h, h)

    def squares(X: Tensor) -> Tensor:
        with torch.no_grad():
            slopes = linearize(graph, X).slopes[layers[1].name]
        assert slopes is not None
        slopes = slopes.double()  # (n, h)
        return (slopes @ products).mul_(slopes).sum(1).clamp_min(0) * scale * scale  # (n,)

    return batch.cat(squares)


def _exact(network: Network, batch: Batch, metric: str) -> Tensor:
    """By one backward pass for each column of B, or for each vector of a basis of the logits."""
    function, basis = logits_function(network, batch), range_basis(network)
    vectors: Any = None if basis is None else basis.T.to(batch.X.dtype)  # (r, C)
    if metric != "logits":
        vectors = lambda logits: each_column(logits, metric)  # noqa: E731

    def squares(X: Tensor) -> Tensor:
        # tr(J^T B B^T J) = sum_k |(B e_k)^T J|^2
        return sum(map(_squared_lengths, jacobian_products(function, X, vectors)))  # type: ignore[return-value]

    return batch.cat(squares)


def _images_key(n_sketch: int) -> tuple[str, int]:
    return "images of random signs", n_sketch


def _estimates(network: Network, batch: Batch, metric: str, n_draws: int) -> Traces:
    """Hutch++ (see `linalg.trace_estimate`) for B^T J J^T B of every sample, with other random signs for each.

    The directions of large eigenvalues are looked for in B^T J J^T g, with the same random signs g for all metrics. A
    sample's signs do not depend on the chunk in which it is.
    """
    function = logits_function(network, batch)
    n_sketch, n_squares = _numbers_of_draws(n_draws, batch.n_samples)
    eps = torch.finfo(batch.X.dtype).eps
    seeds = torch.randint(2**62, (batch.n_samples,), generator=batch.generator(), device="cpu")  # (n,)
    key, size = _images_key(n_sketch), network.n_outputs * n_sketch
    known = batch.once(key, Tensor) if key in batch.known else None  # (n, C, s)
    kept = known is None and 8 * batch.n_samples * size <= batch.room / KEPT

    def estimates(X: Tensor, seeds: Tensor, images: Tensor | None = None) -> Tensor:
        drawn = [_signs(int(seed), n_sketch + n_squares, network.n_outputs) for seed in seeds]
        signs = torch.stack(drawn, dim=1).to(X.device, torch.float64)  # (k, n, C)
        logits, pulled = pullbacks(function, X)
        p = logits.double().softmax(1)  # (n, C)

        def squares(vectors: Tensor) -> Tensor:  # |v^T B^T J|^2 of vectors (k, n, C)
            rows = pulled(torch.stack([apply_metric(p, v, metric) for v in vectors]).to(logits.dtype))
            return torch.stack([_squared_lengths(row) for row in rows])  # (k, n)

        if images is None:
            rows = pulled(signs[:n_sketch].to(logits.dtype))
            images = torch.stack([_image(function, X, logits, row) for row in rows], dim=2)  # (n, C, s)
        # Orthonormal bases of directions with large eigenvalues of B^T J J^T B, (n, C, s)
        Q = torch.linalg.qr(torch.stack([apply_metric_transposed(p, t, metric) for t in images.unbind(2)], dim=2)).Q
        g = signs[n_sketch:].permute(1, 2, 0)  # (n, C, k)
        inside = squares(Q.permute(2, 0, 1)).sum(0)  # the trace on their span is exact
        outside = squares((g - Q @ (Q.mT @ g)).permute(2, 0, 1))  # (k, n)
        value = inside + outside.mean(0)  # (n,)
        stats = torch.stack([value, outside.var(0) / n_squares + (eps * value).square()], dim=1)  # (n, 2)
        return torch.cat([stats, images.flatten(1)], dim=1) if kept else stats

    results = batch.cat(estimates, seeds, *([] if known is None else [known]))
    if kept:
        batch.once(key, lambda: results[:, 2:].unflatten(1, (-1, n_sketch)))
    return Traces(results[:, 0], results[:, 1])


def _image(function: Callable[[Tensor], Tensor], X: Tensor, logits: Tensor, t: Tensor) -> Tensor:
    """J t up to a factor for every sample, (n, C), float64, by a difference of logits.

    The estimate is unbiased for any basis that is derived from it.
    """
    lengths = torch.linalg.vector_norm(t.flatten(1), dim=1)  # (n,)
    steps = STEP * torch.linalg.vector_norm(X.flatten(1), dim=1).clamp_min(STEP)
    scale = steps / lengths.clamp_min(torch.finfo(t.dtype).tiny)
    with torch.no_grad():
        moved = function(X + scale.reshape(-1, *(1,) * (X.dim() - 1)) * t)
    return moved.double() - logits.double()


def _squared_lengths(rows: Tensor) -> Tensor:
    return rows.flatten(1).double().square().sum(1)  # (n,)


def _signs(seed: int, count: int, size: int) -> Tensor:
    """Random signs, (count, size), int8."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randint(2, (count, size), generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)
