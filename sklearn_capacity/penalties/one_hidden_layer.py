"""The exact penalty of a network with one hidden layer, whose cost does not grow with the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.graph import Node
from sklearn_capacity.graph.end_layers import one_hidden_layer as layers_of
from sklearn_capacity.linalg.product import product
from sklearn_capacity.penalties.gradient_sums import Gradients, wants
from sklearn_capacity.penalties.shared_pass import LinearizedBatch
from sklearn_capacity.penalties.sweep_gradients import curvature

__all__ = ["one_hidden_layer"]

#: The closed form is preferred to sweeps if it takes this share of the multiplications, or less.
SHARE = 0.7


def one_hidden_layer(batch: LinearizedBatch, scale: Tensor) -> Tensor | None:
    r"""``sum_i scale_i ||J(x_i)||_F^2``, differentiable once; None for another network, or if sweeps take less.

    Two linear maps W (h, D) and V (C, h) and an activation with the slopes d_i have the Jacobians V diag(d_i) W. With
    the Gram matrices G = W W^T and K = V^T V and with N = sum_i s_i d_i d_i^T, all (h, h),

    .. math:: R = \sum_i s_i \, d_i^T (G \circ K)\, d_i = \langle N, G \circ K \rangle, \qquad
              \frac{dR}{dW} = 2 (N \circ K) W, \qquad \frac{dR}{dV} = 2 V (N \circ G), \qquad
              \frac{dR}{dd_i} = 2 s_i (G \circ K)\, d_i

    Parameters
    ----------
    batch : LinearizedBatch
    scale : Tensor of shape (n,)
    """
    layers = _layers(batch, len(scale))
    if layers is None:
        return None
    first, activation, last = layers
    ((_, tape),) = batch.parts(len(scale))
    return _closed_form(tape, first, activation, last, scale)


def _layers(batch: LinearizedBatch, n: int) -> tuple[Node, Node, Node] | None:
    """The two linear maps and the activation between them, if the closed form takes less than sweeps."""
    layers = layers_of(batch.graph)
    if layers is None:
        return None
    W, V = layers[0].weight, layers[2].weight
    assert W is not None and V is not None
    (h, D), C = W.shape, len(V)
    closed, swept = h * (2 * D + 2 * C + n), n * C * 3 * D  # multiplications, over h
    small = h <= D + C + n  # the Gram matrices take no more memory than a step, up to a factor
    return layers if small and closed <= SHARE * swept else None


def _closed_form(tape: Tape, first: Node, activation: Node, last: Node, scale: Tensor) -> Tensor:
    W, V, d = first.weight, last.weight, tape.slopes[activation.name]
    assert W is not None and V is not None and d is not None
    z = tape.smooth.get(activation.name)
    trains_first, trains_last, is_curved = (wants(t) for t in (W, V, z))
    sums = Gradients()
    with torch.no_grad():
        gram, kernel = product(W, W.t()), product(V.t(), V)  # G and K, (h, h)
        weighted = d * scale[:, None]  # s_i d_i, (n, h)
        if is_curved and z is not None:
            sums.add(z, product(weighted, gram * kernel).mul_(2) * curvature(activation, z))
        slopes = product(weighted.t(), d)  # N, (h, h)
        gram.mul_(slopes)
        value = (gram * kernel).sum()
        if trains_last:
            sums.add(V, product(V, gram).mul_(2))
        if trains_first:
            sums.add(W, product(kernel.mul_(slopes), W).mul_(2))
    return sums.attach(value)
