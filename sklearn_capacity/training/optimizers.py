"""Optimisers by name, and the estimator settings that each of them accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sklearn_capacity._validation import check_instance, check_interval, check_option
from sklearn_capacity.training.kfac import KFAC
from sklearn_capacity.training.path_sgd import PathSGD
from sklearn_capacity.training.sam import SAM

__all__ = ["OPTIMIZERS", "resolve_optimizer"]

#: name -> torch optimiser class, or any callable ``(params, lr=..., **settings)``. Add optimisers here.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "kfac": KFAC,
    "lbfgs": torch.optim.LBFGS,
    "nadam": torch.optim.NAdam,
    "path_sgd": PathSGD,
    "rmsprop": torch.optim.RMSprop,
    "sam": SAM,
    "sgd": torch.optim.SGD,
}

_FUSED_DEVICES = ("cpu", "cuda")


def resolve_optimizer(
    optimizer: str | Callable[..., torch.optim.Optimizer],
    *,
    momentum: float,
    weight_decay: float,
    params: Mapping[str, Any] | None,
    device: torch.device,
) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """Resolve the optimiser's class or factory and its keyword arguments, without the learning rate.

    ``momentum`` is passed to optimisers that have it; ``weight_decay`` only if it is not 0, and an optimiser without it
    then raises. ``params`` take precedence over both. Fused implementations are used if they exist. SAM's ``base`` may
    also be a name; it receives the settings that SAM itself does not have.
    """
    check_instance("device", device, torch.device, "a torch.device")
    weight_decay = check_interval("weight_decay", weight_decay)
    if params is not None:
        check_instance("params", params, Mapping, "a dict of the optimiser's settings")
    optimizer, params = _resolved("optimizer", optimizer), dict(params or {})
    if optimizer is SAM:
        base = _resolved("base", params.pop("base", "sgd"))
        return SAM, {**_settings(base, momentum, weight_decay, device), "base": base, **params}
    return optimizer, {**_settings(optimizer, momentum, weight_decay, device), **params}


def _resolved(name: str, optimizer: str | Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    return optimizer if callable(optimizer) else OPTIMIZERS[check_option(name, optimizer, OPTIMIZERS)]


def _settings(
    optimizer: Callable[..., torch.optim.Optimizer], momentum: float, weight_decay: float, device: torch.device
) -> dict[str, Any]:
    """The estimator settings that an optimiser accepts."""
    accepted = inspect.signature(optimizer).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    settings: dict[str, Any] = {}
    if "momentum" in accepted:
        settings["momentum"] = momentum
    if weight_decay:
        if not ("weight_decay" in accepted or takes_all):
            name = getattr(optimizer, "__name__", repr(optimizer))
            raise ValueError(f"`weight_decay` must be 0 with {name}, which has no weight decay, got {weight_decay:g}.")
        settings["weight_decay"] = weight_decay
    if "fused" in accepted and device.type in _FUSED_DEVICES:
        settings["fused"] = True
    return settings
