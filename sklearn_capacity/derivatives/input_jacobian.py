"""Rows of the input-output Jacobian, for penalties and measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._validation import NotDefinedError
from .double_backward import pulled_back, twice_differentiable

__all__ = ["OUTPUTS", "apply_output", "gram_product", "jacobian_products", "pullback"]

OUTPUTS = ("logits", "softmax")


def apply_output(logits: Tensor, output: str) -> Tensor:
    """The function whose Jacobian is taken: the logits or their softmax."""
    return logits.softmax(dim=1) if output == "softmax" else logits


def jacobian_products(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    vectors: Tensor | Callable[[Tensor], Tensor | Iterator[Tensor]] | None = None,
    *,
    output: str = "logits",
    create_graph: bool = False,
) -> Iterator[Tensor]:
    """Yield v^T J(x) for each vector v, one backward pass each.

    Parameters
    ----------
    function : callable, (n, ...) -> (n, C)
        Must treat its samples independently (no batch statistics).
    X : Tensor of shape (n, ...)
    vectors : Tensor of shape (k, C) or (k, n, C), or a callable that returns it, default=None
        None stands for the C unit vectors, which yield the rows of J. A callable receives the values of shape
        (n, C), so that C is known without another forward pass; it may yield the vectors one by one.
    output : "logits" or "softmax"
    create_graph : bool
        Whether the products will be differentiated with respect to the parameters.

    Yields
    ------
    Tensor of shape (n, ...), k of them
    """
    with torch.enable_grad():
        X = X.detach().requires_grad_(True)
        values = apply_output(function(X), output)  # (n, C)
        directions: Tensor | Iterator[Tensor]
        if vectors is None:
            directions = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)  # (C, C)
        else:
            directions = vectors if isinstance(vectors, Tensor) else vectors(values.detach())
        if isinstance(directions, Tensor) and directions.dim() == 2:
            directions = directions[:, None, :].expand(-1, len(values), -1)  # (k, n, C)
    coming = iter(directions)
    vector = next(coming, None)
    while vector is not None:  # not in a context, which a generator would leave active in the caller
        following = next(coming, None)
        retain = create_graph or following is not None
        yield _pulled(values, X, vector, create_graph=create_graph, retain_graph=retain)  # (n, ...)
        vector = following


def pullback(function: Callable[[Tensor], Tensor], X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The values of a function and the map v -> v^T J(x): one forward pass, then a backward pass for each v.

    Parameters
    ----------
    function : callable, (n, ...) -> (n, C)
        Must treat its samples independently.
    X : Tensor of shape (n, ...)

    Returns
    -------
    values : Tensor of shape (n, C), detached
    product : callable, Tensor of shape (n, C) -> Tensor of shape (n, ...)
    """
    with torch.enable_grad():
        X = X.detach().requires_grad_(True)
        values = function(X)  # (n, C)
    return values.detach(), lambda v: _pulled(values, X, v, retain_graph=True)


def _pulled(values: Tensor, X: Tensor, vector: Tensor, **options: bool) -> Tensor:
    """v^T J(x)."""
    row = None
    if values.requires_grad:
        (row,) = torch.autograd.grad(values, X, vector, allow_unused=True, **options)
    if row is None:
        raise NotDefinedError(
            "The Jacobian with respect to the input is not defined for this network: its outputs do not depend on `X` "
            "through differentiable operators, as for token ids, which are whole numbers. Take the part of the network "
            "after the embedding."
        )
    return row


def gram_product(function: Callable[[Tensor], Tensor], X: Tensor) -> Callable[[Tensor], Tensor]:
    """The map v -> J(x) J(x)^T v of every sample, without forming a row of J.

    Each product takes two backward passes, the second through the graph of the first, which is built once.

    Parameters
    ----------
    function : callable, (n, ...) -> (n, C)
        Must treat its samples independently.
    X : Tensor of shape (n, ...)

    Returns
    -------
    callable, Tensor of shape (n, C) -> Tensor of shape (n, C)
    """
    with twice_differentiable():
        X = X.detach().requires_grad_(True)
        values = function(X)  # (n, C)
        # w of shape (n, C), and J^T w of shape (n, ...)
        dual, (pulled,) = pulled_back(values, [X]) if values.requires_grad else (values, (None,))

    def product(v: Tensor) -> Tensor:
        direction = _pulled(values, X, v, retain_graph=True)  # J^T v, (n, ...)
        assert pulled is not None
        (image,) = torch.autograd.grad(pulled, dual, direction, retain_graph=True)  # d<J^T w, J^T v>/dw, (n, C)
        return image

    return product
