"""Forks, which wait for computations and traces to end.

A forked child has only the forking thread. A fork waits, so that no other thread holds one of torch's locks, which
would stay locked in the child, and this package creates new locks there. The child computes with one thread, since the
threads among which OpenMP would split a sum exist only in the parent.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from sklearn_capacity.process_state import attention, gates
from sklearn_capacity.process_state.random_numbers import RandomNumbers

__all__: list[str] = []

#: Seconds after which a fork continues although another thread still computes, which may wait for the forking one.
FORK_PATIENCE = 10.0

_forking: list[Any] = []  # locks held by the forking thread
# torch.manual_seed takes the locks of these packages, also without such devices.
_DEVICES = ("cuda", "mtia", "xpu")


def _locks_of_torch() -> list[Any]:
    packages = [getattr(torch, name, None) for name in _DEVICES]
    locks = [getattr(package, "_initialization_lock", None) for package in packages]
    return [lock for lock in locks if lock is not None]


def _before_fork() -> None:
    gates.this_gate().waiting.add("fork")
    gates.alone.acquire()
    _forking.append(gates.alone)
    _forking.extend(gates.close_gates(FORK_PATIENCE))
    _forking.extend(lock for lock in _locks_of_torch() if lock.acquire(timeout=FORK_PATIENCE))


def _after_fork() -> None:
    gates.this_gate().waiting.discard("fork")
    while _forking:
        _forking.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    gates.renew()
    attention.renew()
    RandomNumbers.renew()
    if torch.get_num_threads() > 1:  # else the first parallel region waits forever for the parent's threads
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
