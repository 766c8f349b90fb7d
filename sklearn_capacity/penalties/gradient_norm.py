"""The penalty on the gradient of the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklearn_capacity._validation import check_boolean, check_instance
from sklearn_capacity.derivatives.double_backward import twice_differentiable
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.penalties.evaluation import checked_penalty, checked_targets

__all__ = ["gradient_norm_penalty"]


@checked_penalty
def gradient_norm_penalty(
    module: nn.Module,
    X: Tensor,
    y: Tensor,
    *,
    criterion: Callable[..., Tensor] | None = None,
    sample_weight: Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    r"""Norm of the gradient of the loss with respect to all trained parameters.

    .. math:: R = \|\nabla_\theta L(\theta)\|_2

    Parameters
    ----------
    module : nn.Module, (n, ...) -> (n, C)
        Evaluated in eval mode: batch norm with its running statistics, no dropout.
    X : Tensor of shape (n, ...)
    y : Tensor of shape (n,) or (n, C)
        Targets of the criterion.
    criterion : callable, default=None
        ``criterion(outputs, y)`` is the mean loss L; it receives `sample_weight` if it has that parameter. None:
        cross-entropy if y is integer, else squared error. Estimators pass their own loss.
    sample_weight : Tensor of shape (n,), default=None
        Weights in the mean over the samples. Without a `criterion`, one of weight 0 is left out.
    squared : bool, default=False
        Return the squared norm, which is differentiable at 0 (Barrett and Dherin 2021).

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If the loss does not depend on a trained parameter, or if `y` has another length than `X`.

    Notes
    -----
    The cost is one forward pass, and a backward pass that is differentiated again: three to four plain steps. The
    gradient is a Hessian-vector product, :math:`\nabla R = H \nabla L / \|\nabla L\|`. For rectifiers, the second
    derivative is the one that holds almost everywhere.

    References
    ----------
    Y. Zhao, H. Zhang, X. Hu: Penalizing gradient norm for efficiently improving generalization in deep learning, ICML
    2022, eq. 1; D. Barrett, B. Dherin: Implicit gradient regularization, ICLR 2021.

    Examples
    --------
    The loss (w x - y)^2 has the gradient 2 x (w x - y):

    >>> import torch
    >>> from sklearn_capacity.penalties import gradient_norm_penalty
    >>> linear = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(linear.weight, 3.0)
    >>> float(gradient_norm_penalty(linear, torch.ones(1, 1), torch.ones(1, 1)).detach())
    4.0
    """
    check_boolean("squared", squared)
    check_instance("module", module, nn.Module, "a torch.nn.Module")
    parameters = [p for p in module.parameters() if p.requires_grad]
    with evaluating(module), twice_differentiable():
        loss = _mean_loss(module(X), y, criterion, sample_weight)
        if not parameters or not loss.requires_grad:
            raise ValueError("`module` must have a trained parameter that its outputs depend on, got none.")
        # in the parameters' shapes
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        flat = torch.cat([g.flatten() for g in gradients if g is not None])  # (P,)
        return flat.square().sum() if squared else torch.linalg.vector_norm(flat)


def _mean_loss(
    outputs: Tensor, y: Tensor, criterion: Callable[..., Tensor] | None, sample_weight: Tensor | None
) -> Tensor:
    y = checked_targets(y, outputs, numbers=criterion is None and isinstance(y, Tensor) and y.is_floating_point())
    if criterion is not None:
        function = criterion.forward if isinstance(criterion, nn.Module) else criterion
        weighs = sample_weight is not None and "sample_weight" in inspect.signature(function).parameters
        return criterion(outputs, y, **({"sample_weight": sample_weight} if weighs else {}))
    if y.is_floating_point():
        losses = functional.mse_loss(outputs, y, reduction="none").flatten(1).mean(1)  # (n,)
    else:
        losses = functional.cross_entropy(outputs, y, reduction="none")  # (n,)
    return (losses if sample_weight is None else losses * sample_weight).mean()
