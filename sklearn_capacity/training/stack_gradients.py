"""Loss and gradients of a stack of linear layers, without autograd's bookkeeping, which is half of a small step.

The operators are those that autograd would run, in the same order, so the numbers are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_capacity.derivatives.modes import autocasts
from sklearn_capacity.losses import CrossEntropyLoss, SquaredLoss
from sklearn_capacity.process_state import has_process_hooks
from sklearn_capacity.training.batches import TensorData
from sklearn_capacity.training.plain_modules import (
    ACTIVATIONS,
    Activation,
    is_unhooked,
    parts_in_turn,
)

__all__ = ["Layer", "StackGradients", "stack_gradients"]

aten = torch.ops.aten
_NONE, _MEAN, _IGNORED = 0, 1, -100  # the operators' codes for the reduction, and the label that the loss leaves out


LossGradient = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """A linear map and the activation behind it, or None."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    activation: Activation | None


class StackGradients:
    """Calling it sets the parameters' gradients, or adds to them, and returns the loss and the outputs.

    Parameters
    ----------
    layers : list of Layer
    loss : callable
        ``loss(outputs, y, weight)`` returns the value and its gradient with respect to the outputs.
    flattens : bool
        Whether the stack begins with a flattening.
    """

    def __init__(self, layers: list[Layer], loss: LossGradient, flattens: bool) -> None:
        self.layers = layers
        self.loss = loss
        self.flattens = flattens

    @torch.no_grad()
    def __call__(self, X: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inputs = [X.flatten(1) if self.flattens else X]  # of each layer, (n, width), and the outputs
        for layer in self.layers:
            output = F.linear(inputs[-1], layer.weight, layer.bias)
            inputs.append(output if layer.activation is None else layer.activation.apply(output))
        outputs = inputs[-1]
        loss, gradient = self.loss(outputs, y, weight)
        for layer in reversed(self.layers):
            output = inputs.pop()
            if layer.activation is not None:
                gradient = layer.activation.pull_back(gradient, output)
            add_gradient(layer.weight, gradient.t().mm(inputs[-1]))
            if layer.bias is not None:
                add_gradient(layer.bias, gradient.sum(0))
            if len(inputs) > 1:  # nobody needs the gradient at X
                gradient = gradient.mm(layer.weight)
        return loss, outputs


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's gradient in place, as a backward pass does: the user may hold that tensor."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


def cross_entropy(outputs: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy and its gradient."""
    log_p = torch.log_softmax(outputs, 1)  # (n, C)
    reduction = _MEAN if weight is None else _NONE
    loss, total = aten.nll_loss_forward.default(log_p, y, None, reduction, _IGNORED)  # of each sample, if weighted
    if weight is None:
        factor = torch.ones_like(loss)
    else:
        loss, factor = (loss * weight).mean(), weight * (1 / len(weight))
    gradient = aten.nll_loss_backward.default(factor, log_p, y, None, reduction, _IGNORED, total)
    return loss, aten._log_softmax_backward_data.default(gradient, log_p, 1, outputs.dtype)


def squared_error(outputs: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean squared error and its gradient."""
    if weight is not None:
        difference = outputs - y
        loss = (difference.square().mean(1) * weight).mean()
        factor = weight * (1 / len(weight)) / y.shape[1]  # (n,)
        return loss, factor[:, None] * (2 * difference)
    loss = aten.mse_loss.default(outputs, y, _MEAN)
    return loss, aten.mse_loss_backward.default(torch.ones_like(loss), outputs, y, _MEAN)


LOSSES: dict[type[nn.Module], LossGradient] = {
    CrossEntropyLoss: cross_entropy,
    nn.CrossEntropyLoss: cross_entropy,
    SquaredLoss: squared_error,
    nn.MSELoss: squared_error,
}


def stack_gradients(module: nn.Module, criterion: nn.Module, data: TensorData) -> StackGradients | None:
    """The gradients of a module on some data, or None where only autograd serves.

    That is a module with other layers, or one where somebody listens: hooks, or a parameter that is shared, frozen or
    of a class of its own. Only hooks on nodes of autograd's graph go unnoticed, since torch does not list them. The
    answer holds until something changes the module.
    """
    stack = None if _is_watched() else _stack(module)
    if stack is None:
        return None
    layers, flattens = stack
    loss = _loss_on(criterion, data, layers[-1].weight.shape[0])
    parameters = [p for layer in layers for p in layer[:2] if p is not None]
    X = data.X
    is_usual = len({id(p) for p in parameters}) == len(parameters) and all(_is_plain(p, X) for p in parameters)
    if loss is None or not is_usual or X.requires_grad or autocasts(X) or X.dim() < 2 or (X.dim() > 2 and not flattens):
        return None
    return StackGradients(layers, loss, flattens)


def _is_watched() -> bool:
    """Whether a context or a global hook changes what torch computes, or looks at it."""
    return (
        not torch.is_grad_enabled()
        or torch.is_anomaly_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or has_process_hooks()
    )


def _loss_on(criterion: Any, data: TensorData, n_outputs: int) -> LossGradient | None:
    """The loss with its gradient, if it is a plain mean over targets of the usual form."""
    y, kind = data.y, type(criterion)
    if y is None or kind not in LOSSES or not is_unhooked(criterion):
        return None
    if data.sample_weight is not None and kind not in (CrossEntropyLoss, SquaredLoss):  # torch's ignore them
        return None
    if criterion.reduction != "mean":
        return None
    if LOSSES[kind] is squared_error:
        return squared_error if y.dtype == data.X.dtype and y.shape == (len(data), n_outputs) else None
    is_plain = (criterion.weight, criterion.ignore_index, criterion.label_smoothing) == (None, _IGNORED, 0.0)
    return cross_entropy if is_plain and y.dtype == torch.int64 and y.dim() == 1 else None


def _stack(module: nn.Module) -> tuple[list[Layer], bool] | None:
    """The layers, and whether a flattening precedes them, if a module is nothing else."""
    layers: list[Layer] = []
    flattens = False
    for part in parts_in_turn(module):
        kind = type(part)
        if not is_unhooked(part):
            return None
        if kind is nn.Linear:
            layers.append(Layer(part.weight, part.bias, None))
        elif kind in ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1] = layers[-1]._replace(activation=ACTIVATIONS[kind])
        elif kind is nn.Flatten and not layers and (part.start_dim, part.end_dim) == (1, -1):
            flattens = True
        elif kind is not nn.Identity:
            return None
    return (layers, flattens) if layers else None


def _is_plain(parameter: Any, X: Tensor) -> bool:
    """Whether a parameter is trained, in the precision of X, and no hook awaits its gradient.

    autograd gives the gradient the strides of its parameter, on which torch's fused optimisers rely.
    """
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.layout == torch.strided
        and parameter.is_contiguous()
        and parameter.dtype == X.dtype
        and parameter.device == X.device
        and not parameter._backward_hooks
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
    )
