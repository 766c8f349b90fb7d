r"""Largest eigenvalue of :math:`J^\top F J` per sample, from the C x C matrix :math:`B^\top J J^\top B`.

F = B B^T weights the outputs: it is the identity, the square of the softmax's Jacobian, or the Fisher matrix of the
softmax. Both products have the same nonzero eigenvalues, and C is small where the input is large. If the last layer has
fewer inputs than outputs, J = U U^T J for an orthonormal basis U of its range, (C, r), so r x r matrices are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._validation import NotDefinedError
from ..derivatives import input_sweeps as chain
from ..derivatives.fisher_matrix import cotangents, factor_product, transposed_factor_product
from ..derivatives.input_jacobian import gram_product, jacobian_products, pullback
from ..graph import Network, NetworkGraph, Node, UnsupportedLayerError, evaluate
from ..graph.end_layers import first_linear
from ..graph.recording import is_known
from ..linalg import lanczos
from .batch import Batch
from .memory import Peak
from .pass_limits import Parts

__all__ = [
    "GRAM",
    "LARGEST_PASSES",
    "apply_metric",
    "apply_metric_transposed",
    "each_column",
    "fisher_norm",
    "holds_grams",
    "jacobian_rows",
    "largest_eigenvalues",
    "largest_limits",
    "logits_function",
    "metric_gram",
    "output_function",
    "piece_size",
    "pullbacks",
    "range_basis",
    "rank_of",
    "walkable_graph",
]


# Up to this C, the C backward passes for the Gram matrix cost less than the 20 to 30 products of Lanczos.
FULL_GRAM = 80
# Relative error of Lanczos, also for close eigenvalues; see `linalg.lanczos_process`.
TOLERANCE = 1e-6
# Size of the largest layer's output above which tracing the network saves more than it costs: by torch's export, or by
# a recording, which suffices for known modules.
EXPORT_PAYS, RECORDING_PAYS = 2**21, 2**16
# Bytes of the largest tensor in a stack of vectors that are pulled back at once: for ResNet-18 on 16 images of 64 x 64,
# three of them took 15 % less time each than one alone.
STACK_BYTES = 2**24
# Inputs for each unit of the first layer, and rows for each of its units, from which an orthonormal basis of its range
# costs less than it saves.
SHORT_ROWS = 2
# Memory for the rows of J held at once.
ROW_BYTES = 2**25
# Vectors of Lanczos that are held at once, and how many of them a sample has, with its products.
LANCZOS_BYTES, LANCZOS_VECTORS = 2**28, 200


class FoldedLogits:
    """The logits of a traced network: with batch norm folded, differentiation is faster."""

    def __init__(self, graph: NetworkGraph):
        self.graph = graph
        self.walkable = chain.chain_refusal(graph) is None

    def __call__(self, X: Tensor) -> Tensor:
        return evaluate(self.graph, X).reshape(len(X), -1)  # (n, C)


def walkable_graph(function: Callable[[Tensor], Tensor]) -> NetworkGraph | None:
    """The graph of logits through which sweeps can go, or None."""
    return function.graph if isinstance(function, FoldedLogits) and function.walkable else None


def logits_function(network: Network, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The logits as a function to differentiate: from the folded graph if it is known or worth tracing."""
    enough = RECORDING_PAYS if is_known(network.module) else EXPORT_PAYS
    if not network.has_graph and batch.n_samples * network.activation_size < enough:
        return network.forward
    try:
        return FoldedLogits(network.graph)
    except UnsupportedLayerError:
        return network.forward


def output_function(network: Network, batch: Batch, output: str) -> Callable[[Tensor], Tensor]:
    """The logits or the softmax as a function to differentiate."""
    logits = logits_function(network, batch)
    return logits if output == "logits" else lambda X: logits(X).softmax(1)


def jacobian_rows(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    vectors: Tensor | None = None,
    first: tuple[Node, Tensor] | None = None,
) -> Tensor:
    """v^T J(x) of every sample for r vectors, (r, C), by default all C classes: (n, r, D).

    One backward pass for each of them, along the graph where possible, where another matrix may take the place of the
    `first` layer's weight.
    """
    graph = walkable_graph(function)
    if graph is not None:
        return chain.jacobian_rows(graph, X, vectors, first)
    return torch.stack([row.flatten(1) for row in jacobian_products(function, X, vectors)], dim=1)  # (n, r, D)


def pullbacks(function: Callable[[Tensor], Tensor], X: Tensor) -> tuple[Tensor, Callable[[Tensor], Iterator[Tensor]]]:
    """The logits, (n, C), and the map from k vectors for each sample, (k, n, C), to k rows v^T J(x), (n, ...) each.

    Along the graph where possible, which pulls several vectors back at once.
    """
    graph = walkable_graph(function)
    if graph is None:
        logits, row = pullback(function, X)
        return logits, lambda vectors: map(row, vectors)
    with torch.no_grad():
        tape = chain.linearize(graph, X)
    _, at_once = chain.stacks(graph, len(X), X, STACK_BYTES)

    def pulled(vectors: Tensor) -> Iterator[Tensor]:
        for part in vectors.split(at_once):
            with torch.no_grad():
                rows = chain.pull(tape, part.flatten(0, 1))  # (k n, ...)
            yield from rows.unflatten(0, part.shape[:2])

    return tape.logits, pulled


def range_basis(network: Network) -> Tensor | None:
    """An orthonormal basis of what a narrow last layer can return, (C, r), float64; None if that is all of R^C."""

    def compute() -> Tensor | None:
        if network.n_outputs <= FULL_GRAM:  # known without the graph: J J^T is small
            return None
        try:
            graph = network.graph
        except UnsupportedLayerError:
            return None
        last = graph[graph.output]
        if last.op != "linear" or last.weight is None or last.shape != (network.n_outputs,):
            return None
        weight = last.weight.detach().double()  # (C, d)
        return torch.linalg.qr(weight).Q if weight.shape[1] < weight.shape[0] else None

    return network.once("range_basis", compute)


def rank_of(network: Network) -> int:
    """Largest possible rank of the Jacobian with respect to the outputs."""
    basis = range_basis(network)
    return network.n_outputs if basis is None else basis.shape[1]


def _jacobian_gram(network: Network, batch: Batch) -> Tensor:
    """U^T J J^T U of every sample, (n, r, r), float64; cached for the call."""

    def compute() -> Tensor:
        function, basis, rank = logits_function(network, batch), range_basis(network), rank_of(network)
        vectors = None if basis is None else basis.T.to(batch.X.dtype)  # (r, C)
        first = _square_root(walkable_graph(function), batch.n_samples * rank)

        def gram(X: Tensor) -> Tensor:
            rows = jacobian_rows(function, X, vectors, first).double()  # (n, r, D), or (n, r, h)
            return rows @ rows.transpose(1, 2)  # (n, r, r)

        return batch.cat(lambda X: in_pieces(gram, X, rank))

    return batch.once("jacobian_gram", compute)


def _square_root(graph: NetworkGraph | None, n_rows: int) -> tuple[Node, Tensor] | None:
    """The first layer W (h, D) and R (h, h) with R R^T = W W^T, if that saves work for so many rows of Jacobians.

    J J^T is the same for both, and rows with R in place of W have h entries.
    """
    node = None if graph is None else first_linear(graph)
    if graph is None or node is None or node.weight is None or node.name == graph.output:
        return None
    h, D = node.weight.shape
    if SHORT_ROWS * h > D or n_rows < SHORT_ROWS * h:
        return None
    weight = node.weight.detach().double()
    return node, torch.linalg.qr(weight.T, mode="r").R.T.to(node.weight.dtype).contiguous()


def in_pieces(function: Callable[[Tensor], Tensor], X: Tensor, n_outputs: int) -> Tensor:
    """`function` on pieces whose Jacobians fit into memory."""
    return torch.cat([function(piece) for piece in X.split(piece_size(X, n_outputs))])


def piece_size(X: Tensor, n_outputs: int) -> int:
    """Number of samples whose Jacobians are held at once."""
    return max(1, ROW_BYTES // (8 * n_outputs * max(1, X[0].numel())))


def largest_eigenvalues(network: Network, batch: Batch, metric: str) -> Tensor:
    """The largest eigenvalue of J^T F J of every sample, (n,), float64, on the CPU."""

    def compute() -> Tensor:
        if not holds_grams(network, batch):
            function = logits_function(network, batch)
            size = max(1, int(min(LANCZOS_BYTES, batch.room / 4) / (8 * LANCZOS_VECTORS * network.n_outputs)))
            return batch.cat(lambda X: torch.cat([_by_lanczos(function, piece, metric) for piece in X.split(size)]))
        gram = batch.once(("metric_gram", metric), lambda: metric_gram(network, batch, metric))
        if not bool(torch.isfinite(gram).all()):
            raise NotDefinedError("The Jacobian is not finite. Check the weights and X for NaN and infinity.")
        # Many small symmetric problems: a GPU solves them one after the other.
        return torch.linalg.eigvalsh(gram.cpu())[:, -1].clamp_min(0)

    return batch.once(("largest", metric), compute)


def holds_grams(network: Network, batch: Batch) -> bool:
    """Whether the Gram matrices of all samples are worth their memory, with the metric and a copy."""
    if "jacobian_gram" in batch.known:
        return True
    rank = rank_of(network)
    return rank <= FULL_GRAM and 3 * 8 * batch.n_samples * rank**2 <= batch.room / 2


def gram_bytes(network: Network, batch: Batch, **params: Any) -> float:
    """What J J^T of the samples takes, or its products for one of them."""
    if not holds_grams(network, batch):
        return 8.0 * LANCZOS_VECTORS * network.n_outputs
    rank = rank_of(network)
    row = 3 * 8 * rank * math.prod(network.input_shape)
    return row + 3 * 8.0 * batch.n_samples * rank**2


GRAM = Peak(passes=4, outputs=2, more=gram_bytes)
#: In forward passes: a backward pass through J takes 1.5, and Lanczos up to 40 products of 6.
LARGEST_PASSES = (lambda known: 1.5 * known["n_outputs"] if known["n_outputs"] <= FULL_GRAM else 240.0,)


def largest_limits(network: Network, batch: Batch, metric: str) -> Parts:
    """The largest numbers of passes that `largest_eigenvalues` takes."""
    if holds_grams(network, batch):
        return {"jacobian gram": 1 + rank_of(network), "logits": float(metric != "logits")}
    # Two forward passes, one backward pass with a graph, and two sweeps for each product.
    return {("largest", metric): 3 + 2 * min(LANCZOS_VECTORS, network.n_outputs)}


def metric_gram(network: Network, batch: Batch, metric: str) -> Tensor:
    """A matrix with the nonzero eigenvalues of J^T F J for every sample, (n, r, r)."""
    gram = _jacobian_gram(network, batch)
    if metric == "logits":
        return gram
    basis = range_basis(network)
    if basis is None:
        B = _columns(batch.logits, metric).transpose(0, 1)  # (n, C, C), rows B e_k
        return B @ gram @ B.transpose(1, 2)
    p = batch.logits.softmax(1)  # (n, C)
    factors = [torch.linalg.qr(_pulled_basis(p_one, basis, metric), mode="r").R for p_one in p]  # (r, r) each
    R = torch.stack(factors)  # (n, r, r); B^T U = Q R, so B^T J J^T B = Q R (U^T J J^T U) R^T Q^T
    return R @ gram @ R.transpose(1, 2)


def _pulled_basis(p: Tensor, basis: Tensor, metric: str) -> Tensor:
    """B^T U of one sample with probabilities p, (C, r)."""
    p = p.expand(basis.shape[1], -1)  # (r, C)
    return apply_metric_transposed(p, basis.T, metric).T


def _by_lanczos(function: Callable[[Tensor], Tensor], X: Tensor, metric: str) -> Tensor:
    with torch.no_grad():
        p = function(X).double().softmax(1)  # (n, C)
    product = gram_product(function, X)

    def transformed(v: Tensor) -> Tensor:
        image = product(apply_metric(p, v, metric).to(X.dtype)).double()  # J J^T B v, (n, C)
        return apply_metric_transposed(p, image, metric)

    largest = lanczos(transformed, tuple(p.shape), tol=TOLERANCE, max_steps=LANCZOS_VECTORS, device=X.device)
    return largest.values[:, 0].clamp_min(0)


def _columns(logits: Tensor, metric: str) -> Tensor:
    """B e_k of every sample for every class k, (C, n, C); small entries of a confident network are kept."""
    if metric == "fisher":
        return cotangents(logits, "cross_entropy")
    p = logits.softmax(1)  # (n, C)
    identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)[:, None, :]  # (C, 1, C)
    return p.T[:, :, None] * (identity - p)  # p_k (e_k - p), (C, n, C)


def each_column(logits: Tensor, metric: str) -> Iterator[Tensor]:
    """The same one class at a time, (n, C) each: all C n vectors may not fit into memory."""
    p = logits.double().softmax(1).to(logits.dtype)
    scale = _scale(p, metric)  # (n, C)
    for k in range(p.shape[1]):
        column = -scale[:, k, None] * p  # s_k (e_k - p), (n, C)
        column[:, k] += scale[:, k]
        yield column


def apply_metric(p: Tensor, v: Tensor, metric: str) -> Tensor:
    """B v: v, (diag p - p p^T) v, or (diag sqrt(p) - p sqrt(p)^T) v."""
    if metric == "logits":
        return v
    return factor_product(p, _scale(p, metric), v)


def apply_metric_transposed(p: Tensor, w: Tensor, metric: str) -> Tensor:
    """B^T w."""
    if metric == "logits":
        return w
    return transposed_factor_product(p, _scale(p, metric), w)


def _scale(p: Tensor, metric: str) -> Tensor:
    return p if metric == "softmax" else p.sqrt()


def fisher_norm(logits: Tensor) -> Tensor:
    r"""Largest eigenvalue of diag p - p p^T, p = softmax(logits), per sample, from above.

    By Gershgorin's discs and the largest diagonal entry, the eigenvalue is in [q, 2 q] with q = p_1 (1 - p_1) for the
    most likely class; within that interval, the secular equation of the rank-one change is bisected to the last digit.
    """
    p = logits.double().softmax(1).sort(1, descending=True).values  # (n, C)
    top, rest = p[:, :1], p[:, 1:]  # (n, 1), (n, C - 1)
    least = top * rest.sum(1, keepdim=True)  # p_1 (1 - p_1) without cancellation, (n, 1)
    low, high = least, 2 * least
    for _ in range(54):
        middle = (low + high) / 2
        # sum_i p_i^2 / (p_i - z) - 1, whose largest root z is the eigenvalue, with p_1 - p_1^2 = `least`
        terms = rest * (rest / (middle - rest))  # (n, C - 1); a square would vanish below 1e-162
        secular = (middle - least) / (top - middle) - terms.sum(1, keepdim=True)
        below = (middle < top) & ((middle <= rest.amax(1, keepdim=True)) | (secular < 0))
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high.squeeze(1)
