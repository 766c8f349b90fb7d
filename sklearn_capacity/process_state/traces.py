"""Traces, which change settings of the process, run while no other thread computes.

While it traces, `torch.export` changes settings for all threads: it switches off oneDNN, cuDNN and NNPACK, declares
that torch is compiling (Adam then computes its bias corrections in another precision), and replaces `Module.__call__`
and even `builtins.max`. So a trace runs without any other computation of this package: computations enter
`computing()`, and a trace runs in `undisturbed`, when no thread is inside one.

A trace also runs in a separate thread, so it is never interrupted between a change and its undoing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from sklearn_capacity.process_state import gates
from sklearn_capacity.process_state.interrupts import uninterrupted

__all__ = ["undisturbed"]

T = TypeVar("T")

#: Seconds after which a trace continues although another thread still computes: that thread may be waiting for a lock
#: that the caller holds. Last bits may then differ, which is better than a deadlock.
TRACE_PATIENCE = 60.0

_local = threading.local()
_guard_holders: list[threading.Thread] = []


def undisturbed(trace: Callable[[], T]) -> T:
    """The value of a function that changes process-wide settings, called while no thread is `computing`.

    The function runs `uninterrupted`, one such function at a time; the calling thread may be computing.
    """
    if getattr(_local, "tracing", False):  # a forward pass under tracing traces another one
        return trace()
    _keep_device_guard()
    gate, wait = gates.this_gate(), object()

    def trace_alone() -> T:
        _local.tracing = True
        gate.waiting.add(wait)
        with gates.alone:
            closed = gates.close_gates(TRACE_PATIENCE)
            try:
                return trace()
            finally:
                for lock in closed:
                    lock.release()
                gate.waiting.discard(wait)

    return uninterrupted(trace_alone)


def _keep_device_guard() -> None:
    """Register torch's stand-in for CUDA's devices in a thread that does not end.

    Without a GPU, a trace registers a guard for these devices that does nothing. Several releases of torch free it with
    the first thread that traced, and still call it in backward passes.
    """
    register = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if register is None or torch.cuda.is_available() or _guard_holders:
        return
    if threading.current_thread() is threading.main_thread():
        register()
        return
    registered = threading.Event()

    def hold() -> None:
        register()
        _guard_holders.append(threading.current_thread())  # not earlier: a child forked in between starts its own
        registered.set()
        threading.Event().wait()  # which is never set

    threading.Thread(target=hold, name="sklearn_capacity.device_guard", daemon=True).start()
    registered.wait()
