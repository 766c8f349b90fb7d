"""The mode and the precision in which a penalty evaluates a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..process_state import keeps_modes, math_attention, surely

__all__ = ["autocasts", "evaluating", "has_parts_in_training", "in_full_precision"]


def autocasts(X: Tensor) -> bool:
    """Whether operators on this tensor's device run in mixed precision."""
    device = X.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def has_parts_in_training(module: nn.Module) -> bool:
    """Whether the module or a submodule is in training mode; faster than with the generators of `modules`."""
    pending: list[nn.Module | None] = [module]
    while pending:
        part = pending.pop()
        if part is not None:
            if part.training:
                return True
            pending.extend(part._modules.values())
    return False


def in_full_precision(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate a penalty, ``(function, X, ...)``, in the precision of X, even within autocast."""

    @keeps_modes
    @functools.wraps(penalty)
    def wrapped(function: Any, X: Tensor, *args: Any, **options: Any) -> Tensor:
        if not autocasts(X):
            return penalty(function, X, *args, **options)
        device = X.device.type
        try:  # entered in C code, since an interrupt may come before `torch.autocast` can exit
            torch.set_autocast_enabled(device, False)
            return penalty(function, X, *args, **options)
        finally:
            torch.set_autocast_enabled(device, True)

    return wrapped


@contextmanager
def evaluating(function: Any) -> Iterator[None]:
    """Switch a module to eval mode within the context, and restore the flag of each submodule.

    With batch statistics, a sample's output depends on the other samples, so the Jacobian of one sample is not defined:
    up to 89 % of a penalty's gradient was wrong. A callable that is not a module keeps its mode. Attention uses a
    kernel that can be differentiated twice.
    """
    training = [m for m in function.modules() if m.training] if isinstance(function, nn.Module) else []
    try:
        _set_training(training, False)
        with math_attention():
            yield
    finally:
        surely(_set_training, training, True)


def _set_training(modules: list[nn.Module], training: bool) -> None:
    for module in modules:  # sets flags instead of calling train(), which a user may override for frozen parts
        module.training = training
