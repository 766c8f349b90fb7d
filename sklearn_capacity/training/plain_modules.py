"""The modules that a sequence calls in turn, and whether calling one does only what its class says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_capacity.losses import CrossEntropyLoss, SquaredLoss
from sklearn_capacity.process_state import has_own_hooks

__all__ = ["ACTIVATIONS", "Activation", "is_unhooked", "parts_in_turn"]

aten = torch.ops.aten


class Activation(NamedTuple):
    """An activation that works in place, and its pullback (gradient, output) -> gradient."""

    apply: Callable[[Tensor], Tensor]
    pull_back: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(torch.relu_, lambda gradient, output: aten.threshold_backward.default(gradient, output, 0)),
    nn.Sigmoid: Activation(torch.sigmoid_, aten.sigmoid_backward.default),
    nn.Tanh: Activation(torch.tanh_, aten.tanh_backward.default),
}

#: Modules whose `forward` others of this package compute by themselves.
_KINDS: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Sequential),
    *(CrossEntropyLoss, nn.CrossEntropyLoss, SquaredLoss, nn.MSELoss),
    *ACTIVATIONS,
)
_CALL, _FORWARDS = nn.Module.__call__, {kind: kind.forward for kind in _KINDS}
#: The function of torch that their `forward` calls, with its name and where it stands, if others compute it.
_CALLED: dict[type[nn.Module], tuple[Any, str, Any]] = {
    nn.Linear: (F, "linear", F.linear),
    nn.ReLU: (F, "relu", F.relu),
    nn.Sigmoid: (torch, "sigmoid", torch.sigmoid),
    nn.Tanh: (torch, "tanh", torch.tanh),
    **dict.fromkeys((CrossEntropyLoss, nn.CrossEntropyLoss), (F, "cross_entropy", F.cross_entropy)),
    **dict.fromkeys((SquaredLoss, nn.MSELoss), (F, "mse_loss", F.mse_loss)),
}


def is_unhooked(module: nn.Module) -> bool:
    """Whether calling the module is calling the `forward` of its class, and nobody has replaced what that calls."""
    replaced: dict[str, Any] = vars(module)
    kind = type(module)
    called = _CALLED.get(kind)
    return (
        not has_own_hooks(module)
        and "forward" not in replaced
        and replaced.get("_compiled_call_impl") is None
        and kind.__call__ is _CALL
        and kind.forward is _FORWARDS.get(kind, kind.forward)
        and (called is None or getattr(*called[:2]) is called[2])
    )


def parts_in_turn(module: Any) -> list[Any]:
    """The modules that a sequence calls in turn; other modules as they are."""
    is_sequence = isinstance(module, nn.Sequential) and type(module).forward is _FORWARDS[nn.Sequential]
    if not (is_sequence and is_unhooked(module)):
        return [module]
    parts: list[Any] = []
    for part in module:
        if isinstance(part, nn.Sequential):
            parts += parts_in_turn(part)
        else:
            parts.append(part)
    return parts
