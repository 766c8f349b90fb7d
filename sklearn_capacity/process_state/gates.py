"""A lock per thread, so that any number of threads compute at once, but none while another one traces or forks."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

__all__ = ["Gate", "alone", "close_gates", "computing", "renew", "this_gate"]

# Seconds between checks whether a thread that a trace waits for is itself waiting for a trace.
_GLANCE = 0.02


class Gate:
    """One thread's lock: the thread holds it while it computes, and a trace holds the locks of all threads.

    A thread takes only its own lock, which is cheap and lets any number of threads compute at once. `waiting` contains
    the traces that the thread waits for: meanwhile it computes nothing, although it still holds its lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waiting: set[object] = set()


alone = threading.RLock()  # held by the thread that traces or forks
_gates: weakref.WeakSet[Gate] = weakref.WeakSet()
_local = threading.local()


def this_gate() -> Gate:
    """The gate of this thread."""
    gate: Gate | None = getattr(_local, "gate", None)
    if gate is None:
        with alone:
            gate = _local.gate = Gate()
            _gates.add(gate)
    return gate


def computing() -> Any:
    """A context for a computation that must not see a trace's changes to the process: ``with computing(): ...``.

    The lock is implemented in C, so no interrupt can come between taking it and entering the block that releases it.
    """
    return this_gate().lock


def close_gates(patience: float) -> list[Any]:
    """Take the locks of all threads except those that wait for a trace; returns the locks taken."""
    closed, start = [], time.monotonic()
    for gate in list(_gates):
        while not gate.waiting and time.monotonic() - start <= patience:
            if gate.lock.acquire(timeout=_GLANCE):
                closed.append(gate.lock)
                break
    return closed


def renew() -> None:
    """In a forked child, create a new lock and keep only the gate of its one thread."""
    global alone
    mine = this_gate()
    alone = threading.RLock()
    _gates.clear()
    _gates.add(mine)
