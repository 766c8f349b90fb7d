"""Hooks of a module and of all modules are found, whatever their kind."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.modules import module as of_all

from sklearn_capacity.process_state import FORWARD_HOOKS, has_own_hooks, has_process_hooks

KINDS = ["forward_pre", "forward", "full_backward_pre", "full_backward"]


def hook(*args):
    """Changes nothing."""


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_a_module(kind):
    part = nn.Linear(2, 2)
    whole = nn.Sequential(part)
    assert not has_own_hooks(part)
    handle = getattr(part, f"register_{kind}_hook")(hook)
    assert has_own_hooks(part) and not has_own_hooks(whole) and not has_process_hooks()
    handle.remove()
    assert not has_own_hooks(part)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_all_modules(kind):
    handle = getattr(of_all, f"register_module_{kind}_hook")(hook)
    try:
        assert has_process_hooks() and has_process_hooks(FORWARD_HOOKS) == kind.startswith("forward")
    finally:
        handle.remove()
    assert not has_process_hooks()
