"""The hooks that torch runs around the forward and the backward passes of modules."""

from __future__ import annotations

from torch import nn

__all__ = ["FORWARD_HOOKS", "HOOKS", "has_own_hooks", "has_process_hooks"]

#: Attributes of a module that hold its hooks.
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
HOOKS = (*FORWARD_HOOKS, "_backward_pre_hooks", "_backward_hooks")


def has_own_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks itself; those of its parts do not count."""
    state = vars(module)
    return any([state.get(table) for table in HOOKS])  # a list is faster here than a generator


def has_process_hooks(tables: tuple[str, ...] = HOOKS) -> bool:
    """Whether there are hooks on all modules of the process."""
    state = vars(nn.modules.module)
    return any([state.get(f"_global{table}") for table in tables])
