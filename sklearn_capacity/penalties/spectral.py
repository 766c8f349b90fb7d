"""Penalty on the squared spectral norm of the input-output Jacobian ([JR] eq. 48)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_capacity._validation import check_option
from sklearn_capacity.derivatives.input_jacobian import OUTPUTS, jacobian_products
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.linalg.product import product
from sklearn_capacity.linalg.squarings import leading_eigenvectors
from sklearn_capacity.penalties.end_layers import FirstLayer
from sklearn_capacity.penalties.evaluation import checked_penalty
from sklearn_capacity.penalties.frobenius import sample_scale, weighted_mean
from sklearn_capacity.penalties.output_basis import in_basis_of_last_layer
from sklearn_capacity.penalties.shared_pass import SharedPass, linearized
from sklearn_capacity.penalties.sweep_gradients import chain_products, softmax_jacobian, unit_rows

__all__ = ["spectral_penalty"]


@checked_penalty
def spectral_penalty(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    *,
    output: str = "logits",
    sample_weight: Tensor | None = None,
    shared: SharedPass | None = None,
) -> Tensor:
    r"""Mean squared spectral norm of the Jacobian, exact and differentiable.

    .. math:: R = \frac{1}{n} \sum_{i=1}^{n} \|J(x_i)\|_2^2, \qquad J(x) = \partial f / \partial x

    Parameters
    ----------
    function : nn.Module or callable, (n, ...) -> (n, C)
        As in :func:`frobenius_penalty`.
    X : Tensor of shape (n, ...)
    output : {"logits", "softmax"}, default="logits"
        Whether f is the output itself or, as in [JR], its softmax.
    sample_weight : Tensor of shape (n,), default=None
        The mean becomes ``(1/n) sum_i w_i ||J(x_i)||_2^2``. A sample of weight 0 is left out.
    shared : SharedPass, default=None
        As in :func:`frobenius_penalty`.

    Returns
    -------
    Tensor of shape ()
        Between 1/min(C, D) and 1 times the Frobenius penalty.

    Raises
    ------
    ValueError
        If `output` is not one of the two.

    Notes
    -----
    The largest eigenvalue of J J^T is ``|u^T J|^2`` for its eigenvector u, and its derivative is that of
    ``|u^T J|^2`` with u held fixed. So the C rows of J are computed without gradients, and one direction with
    gradients, at about half the cost of the Frobenius penalty. For a module with a graph it can be differentiated once.
    If the largest singular value is not simple, the gradient is one of several subgradients.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues: Robust large margin deep neural networks, 2017, eq. 48.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.penalties import spectral_penalty
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(float(spectral_penalty(linear, torch.randn(5, 2)).detach()), 4)
    16.0
    """
    check_option("output", output, OUTPUTS)
    batch = linearized(function, X, shared)
    if batch is None:
        return _by_loop(function, X, output, sample_weight)
    batch = in_basis_of_last_layer(batch, output)

    values = batch.outputs  # (n, C)
    wide = values.shape[1] <= math.prod(batch.graph.input.shape)  # A A^T is the smaller Gram matrix, see below
    first = FirstLayer.chosen(batch.graph, values.numel(), len(values)) if wide else None

    # At a simple singular value sigma = u^T J w, the derivative is u^T dJ w: the directions are constants.
    def directions(samples: slice, tape: Tape) -> Tensor | tuple[Tensor, Tensor]:
        return _top_directions(tape, output, first)

    return chain_products(batch, directions, sample_scale(values, sample_weight), output, first=first)


@torch.no_grad()
def _top_directions(tape: Tape, output: str, first: FirstLayer | None) -> Tensor | tuple[Tensor, Tensor]:
    """For every sample, the unit vector u with the largest ``|u^T J|``, (1, n, C), and ``u^T J``, (1, n, ...).

    The latter is left out with a first layer W: then J = A W for the rows A that the sweeps return.
    """
    logits = tape.logits.detach()
    rows = unit_rows(tape, first)  # those of the logits: J or A, (n, C, D) or (n, C, h)
    # In double, as 1 - p may be tiny, (n, 1, C).
    p = logits.double().softmax(1)[:, None, :] if output == "softmax" else None
    if first is not None:
        u = _top_left_vectors(rows, p, product(rows.flatten(0, 1), first.gram).view_as(rows))
        return u[None].to(logits.dtype)
    u = _top_left_vectors(rows, p)  # (n, C)
    v = u[:, None, :] if p is None else softmax_jacobian(p, u[:, None, :])  # (n, 1, C)
    products = (v.to(rows.dtype) @ rows).reshape(1, len(logits), *tape.graph.input.shape)  # (1, n, ...)
    return u[None].to(logits.dtype), products


def _top_left_vectors(rows: Tensor, p: Tensor | None = None, images: Tensor | None = None) -> Tensor:
    """For each matrix A (n, C, D), or S A with the softmax's Jacobian at p (n, 1, C), the leading left vector, (n, C).

    From the smaller Gram matrix, as a network may have many more classes than inputs, or the other way round; that of
    another inner product if its `images` of the rows, (n, C, D), are given.
    """
    n_outputs, n_inputs = rows.shape[1:]
    dtype = rows.dtype
    if p is not None:
        rows = rows.double()
    if n_outputs <= n_inputs or images is not None:
        gram = rows @ (rows if images is None else images.to(rows.dtype)).mT  # (n, C, C)
        gram = gram if p is None else softmax_jacobian(p, softmax_jacobian(p, gram).mT)  # S A A^T S, as S is symmetric
        return leading_eigenvectors(gram, dtype)
    rows = rows if p is None else softmax_jacobian(p, rows.mT).mT
    right = leading_eigenvectors(rows.mT @ rows, dtype)[:, :, None]  # (n, D, 1)
    left = (rows @ right).squeeze(2)  # along u: (n, C)
    length = torch.linalg.vector_norm(left, dim=1, keepdim=True)  # (n, 1)
    any_direction = torch.eye(1, n_outputs, dtype=left.dtype, device=left.device)  # where A is 0, (1, C)
    return torch.where(length > 0, left / length, any_direction)


def _by_loop(function: Callable[[Tensor], Tensor], X: Tensor, output: str, sample_weight: Tensor | None) -> Tensor:
    """The same for any function, by backward passes."""
    with evaluating(function):
        # (n, C, D)
        rows = torch.stack([row.flatten(1) for row in jacobian_products(function, X, output=output)], dim=1)
        u = _top_left_vectors(rows)[None]  # (1, n, C)
        (product,) = jacobian_products(function, X, u, output=output, create_graph=True)  # u^T J, (n, ...)
    return weighted_mean(product.flatten(1).square().sum(1), sample_weight)
