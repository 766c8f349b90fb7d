"""An optimiser's step without what torch puts around it for profilers and hooks, which a small step would notice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["unobserved_step"]

_WRAPPER = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # of the wrapper around every `step`


def unobserved_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The optimiser's `step`, without torch's wrapper if neither a hook nor a profiler would notice."""
    step: Any = getattr(type(optimizer), "step", None)
    is_wrapped = getattr(step, "__code__", None) is _WRAPPER and "step" not in vars(optimizer)  # as schedulers set it
    if not is_wrapped or _is_observed(optimizer):
        return optimizer.step
    return functools.partial(step.__wrapped__, optimizer)


def _is_observed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook or a profiler would notice a step."""
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    return any(hooks) or torch.autograd._profiler_enabled()
