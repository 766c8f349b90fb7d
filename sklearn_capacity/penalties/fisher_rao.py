"""The penalty on the length of the parameters in the metric of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_option, shape_text
from sklearn_capacity.derivatives.double_backward import pushed_forward, twice_differentiable
from sklearn_capacity.derivatives.output_fisher import DISTRIBUTIONS, fisher_form
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.graph import NetworkGraph, UnsupportedLayerError, evaluate
from sklearn_capacity.losses import HingeLoss
from sklearn_capacity.penalties.evaluation import checked_penalty, checked_targets
from sklearn_capacity.penalties.frobenius import weighted_mean
from sklearn_capacity.penalties.gradient_sums import Gradients
from sklearn_capacity.penalties.module_graph import whole_graph

__all__ = ["fisher_rao_penalty"]

_LOSSES = {
    nn.CrossEntropyLoss: "cross_entropy",
    HingeLoss: "hinge",
    nn.MSELoss: "squared",
    nn.L1Loss: "absolute",
}


@checked_penalty
def fisher_rao_penalty(
    module: nn.Module,
    X: Tensor,
    y: Tensor | None = None,
    *,
    criterion: Callable[..., Tensor] | None = None,
    distribution: str = "model",
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Squared Fisher-Rao norm of the trained parameters.

    .. math:: R = \langle \theta, I(\theta)\, \theta \rangle
              = \frac{1}{n} \sum_{i=1}^{n} \langle u_i, F_\psi(f(x_i))\, u_i \rangle, \qquad
              u_i = \partial f(x_i) / \partial \theta \cdot \theta

    with the Fisher matrix F of the loss at the outputs.

    Parameters
    ----------
    module : nn.Module, (n, ...) -> (n, C)
        Evaluated in eval mode with batch norm folded, as in the measure ``fisher_rao_norm``. Theta excludes frozen
        parameters.
    X : Tensor of shape (n, ...)
    y : Tensor of shape (n,) or (n, C), default=None
        Labels or targets, for the "empirical" distribution.
    criterion : nn.CrossEntropyLoss, nn.MSELoss, nn.L1Loss or HingeLoss, default=None
        The loss; ``sklearn_capacity.losses.HingeLoss`` has the "empirical" distribution only. None: cross-entropy if y
        is None or integer, else squared error. Estimators pass their own loss.
    distribution : {"model", "empirical"}, default="model"
        Labels distributed as the model predicts, or the data's labels. The empirical form vanishes where labels are
        fitted.
    sample_weight : Tensor of shape (n,), default=None
        Weights in the mean over the samples. One of weight 0 is left out.

    Returns
    -------
    Tensor of shape ()
        The square of ``fisher_rao_norm`` at this batch, under the same loss and distribution.

    Raises
    ------
    UnsupportedLayerError
        If the module cannot be traced as a graph, or has no trained parameter.
    ValueError
        If the Fisher matrix of the loss is not known, or y is missing.

    Notes
    -----
    The cost is one tangent sweep (at most two forward passes) and its backward pass: three to five plain steps. For
    operators without a rule (attention, layer norm), u takes two backward passes and the gradient two more; the penalty
    can then be differentiated only once.

    References
    ----------
    T. Liang, T. Poggio, A. Rakhlin, J. Stokes: Fisher-Rao metric, geometry, and complexity of neural networks, AISTATS
    2019, definition 2.

    Examples
    --------
    For the squared loss, a linear model f = w x has u = w x:

    >>> import torch
    >>> from sklearn_capacity.penalties import fisher_rao_penalty
    >>> linear = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(linear.weight, 3.0)
    >>> float(fisher_rao_penalty(linear, torch.ones(4, 1), criterion=torch.nn.MSELoss()).detach())
    9.0
    """
    check_option("distribution", distribution, DISTRIBUTIONS)
    if distribution == "empirical" and y is None:
        raise ValueError("`y` must be given with distribution='empirical', got None.")
    loss = _loss_name(criterion, y)
    graph = whole_graph(module, X, "The Fisher-Rao penalty")
    if not any(bound.trainable for node in graph.nodes for bound in node.tensors().values()):
        raise UnsupportedLayerError("The Fisher-Rao penalty needs trainable parameters, and all are frozen.")
    form = partial(_mean_form, y=y, loss=loss, distribution=distribution, sample_weight=sample_weight)
    if _with_rules(graph):
        return form(*parameter_tangent(graph, X))
    return _by_double_backward(graph, X, form)


def _with_rules(graph: NetworkGraph) -> bool:
    """Whether every operator has a tangent rule that can be differentiated."""
    return all(node.op != "opaque" for node in graph.nodes)


def _mean_form(
    f: Tensor, u: Tensor, *, y: Tensor | None, loss: str, distribution: str, sample_weight: Tensor | None
) -> Tensor:
    f, u = f.flatten(1), u.flatten(1)  # (n, C) each
    if distribution == "empirical":
        y = _targets(y, f, loss)
    return weighted_mean(fisher_form(f, u, y, loss, distribution), sample_weight)


def _targets(y: Tensor | None, f: Tensor, loss: str) -> Tensor:
    """Labels (n,), or targets (n, C)."""
    numbers = loss in ("squared", "absolute")
    y = checked_targets(y.flatten(1) if isinstance(y, Tensor) and y.dim() > 2 else y, f, numbers=numbers)
    if not numbers and (y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool):
        raise ValueError(f"`y` must hold an integer label for each sample, got shape {shape_text(y)} and {y.dtype}.")
    return y


def _loss_name(criterion: Callable[..., Tensor] | None, y: Tensor | None) -> str:
    if criterion is None:
        return "squared" if isinstance(y, Tensor) and y.is_floating_point() else "cross_entropy"
    for kind, name in _LOSSES.items():
        if isinstance(criterion, kind):
            return name
    raise ValueError(
        f"`criterion` must be one of {', '.join(kind.__name__ for kind in _LOSSES)}, whose Fisher matrices are known, "
        f"got {type(criterion).__name__}."
    )


def _by_double_backward(graph: NetworkGraph, X: Tensor, form: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""``form(f, u)`` for the logits f and u = J_theta f . theta, with its gradient in closed form.

    With w the derivative of R with respect to u, held fixed, the derivative of R is

        J^T dR/df + d<w, J theta> = J^T dR/df + J^T w + H theta,    H the Hessian of <w, f>.

    So nothing is differentiated three times, for which torch's fused normalisations silently give wrong results: the
    second backward pass of a layer norm treats mean and variance as constants.
    """
    bound = {id(w.tensor): w.tensor for node in graph.nodes for w in node.tensors().values() if w.trainable}
    points = list(bound.values())
    with twice_differentiable():
        f = evaluate(graph, X)  # (n, C)
        pushed = pushed_forward(f, points, [p.detach() for p in points])
        u = (torch.zeros_like(f) if pushed is None else pushed).requires_grad_(True)  # (n, C)
        value = form(f, u)
        (w,) = torch.autograd.grad(value, u, retain_graph=True)  # (n, C)
        pulled = torch.autograd.grad(f, points, w, create_graph=True, allow_unused=True)  # J^T w
        # <J^T w, theta>, in parts
        inner = [(g * p).sum() for g, p in zip(pulled, points, strict=True) if g is not None]
        derivatives = torch.autograd.grad(torch.stack([value, *inner]).sum(), points, allow_unused=True)
    gradients = Gradients()
    for point, gradient in zip(points, derivatives, strict=True):
        if gradient is not None:
            gradients.add(point, gradient)
    return gradients.attach(value.detach())
