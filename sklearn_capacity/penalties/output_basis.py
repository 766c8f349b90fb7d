"""Fewer outputs with the same singular values, for networks with more classes than units before the last layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.graph import NetworkGraph
from sklearn_capacity.penalties.shared_pass import LinearizedBatch

__all__ = ["in_basis_of_last_layer"]

#: torch decomposes no matrices in shorter numbers.
DECOMPOSED = (torch.float32, torch.float64)
#: Outputs per input of the last layer from which the decomposition costs less than the directions that it saves.
WORTHWHILE = 2


def in_basis_of_last_layer(batch: LinearizedBatch, output: str) -> LinearizedBatch:
    """The batch of the network ``Q^T f``, if the last layer W has many more outputs than inputs, or the same batch.

    The columns of Q are an orthonormal basis that contains the range of W, (C, H) for H inputs. So ``J = W M`` and
    ``Q^T J`` have the same singular values, and a penalty on these takes H directions instead of C. With Q held fixed
    the gradients are equal, too: with ``h(J^T J)`` for the penalty and a symmetric matrix S for the derivative of h,
    that with respect to W is ``2 W M S M^T``, and through ``Q^T W`` it is ``Q (2 Q^T W M S M^T)``, where
    ``Q Q^T W = W``.
    """
    graph = batch.graph
    last = graph[graph.output]
    # The Jacobian of the softmax has a factor (diag p - p p^T) for each sample before W.
    if output == "softmax" or last.op != "linear" or last.weight is None or last.weight.dtype not in DECOMPOSED:
        return batch
    n_outputs, n_inputs = last.weight.shape
    if n_outputs < WORTHWHILE * n_inputs:
        return batch
    basis = torch.linalg.qr(last.weight.detach()).Q.t()  # Q^T, (H, C)
    bias = None if last.bias is None else basis @ last.bias  # (H,)
    projected = replace(last, weight=basis @ last.weight, bias=bias, shape=(n_inputs,))
    graph = NetworkGraph(tuple(projected if node is last else node for node in graph.nodes), graph.output)
    return replace(batch, graph=graph, tape=_projected(batch.tape, graph, basis))


def _projected(tape: Tape | None, graph: NetworkGraph, basis: Tensor) -> Tape | None:
    return None if tape is None else replace(tape, graph=graph, logits=tape.logits @ basis.t())  # (n, H)
