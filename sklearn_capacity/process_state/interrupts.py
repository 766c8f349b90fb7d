"""Changes that are undone whatever the moment of an interrupt.

Python raises KeyboardInterrupt, and other exceptions of signal handlers, only in the main thread and between any two
instructions there: also as a context manager begins or ends.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

__all__ = ["keeps_modes", "restored_at_the_end", "surely", "uninterrupted"]

T = TypeVar("T")
P = ParamSpec("P")

# Largest number of seconds until a new thread starts, and seconds between checks whether it has ended.
_START, _GLANCE = 1.0, 0.02

_local = threading.local()


def surely(undo: Callable[..., object], *args: Any) -> None:
    """Undo a change; after an interrupt, start again, so `undo` may be called twice."""
    try:
        undo(*args)
    except BaseException:
        undo(*args)
        raise


# What `warnings.catch_warnings` replaces, and puts back at its end.
_WARNINGS: dict[str, Any] = vars(warnings)
_CAUGHT = tuple(name for name in ("filters", "showwarning", "_showwarnmsg_impl") if name in _WARNINGS)


def keeps_modes(function: Callable[P, T]) -> Callable[P, T]:
    """Restore the grad mode in which the thread called the function and, after an interrupt, other settings.

    An interrupt at the end of ``torch.no_grad()`` or of an optimiser's step would leave its inner mode. Here the mode
    is restored by one C function, which Python calls before it handles interrupts.

    Likewise, an interrupt at the end of ``warnings.catch_warnings()`` or ``numpy.errstate()``, as in scikit-learn's
    checks of the data, or while a mode of torch begins, would leave what they have changed. These are restored after
    interrupts only: a function may return while another thread is inside ``catch_warnings()``.

    What `restored_at_the_end` was given within the call is undone, too.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        gradients, n_modes = torch.is_grad_enabled(), torch._C._len_torch_function_stack()
        n_dispatching = torch._C._len_torch_dispatch_stack()
        caught: dict[str, Any] = {name: _WARNINGS[name] for name in _CAUGHT}
        errors = np.geterr()
        outside, _local.undos = getattr(_local, "undos", None), []
        try:
            return function(*args, **kwargs)
        except Exception:
            raise
        except BaseException:
            _WARNINGS.update(caught)
            surely(functools.partial(np.seterr, **errors))
            while torch._C._len_torch_function_stack() > n_modes:
                torch._C._pop_torch_function_stack()
            while torch._C._len_torch_dispatch_stack() > n_dispatching:
                torch._C._pop_torch_dispatch_stack(None)
            raise
        finally:
            torch._C._set_grad_enabled(gradients)
            undos, _local.undos = _local.undos, outside
            for undo in reversed(undos):
                surely(undo)

    return wrapped


def restored_at_the_end(undo: Callable[[], object]) -> bool:
    """Undo a change when the innermost call of a function that `keeps_modes` ends; False outside of any."""
    undos = getattr(_local, "undos", None)
    if undos is not None:
        undos.append(undo)
    return undos is not None


def uninterrupted(function: Callable[[], T]) -> T:
    """The value of a function that runs in a separate thread, in which Python never raises KeyboardInterrupt.

    On an interrupt, the caller waits until the function has ended before the exception propagates. The function must
    not take a lock that the caller holds.
    """
    outcome, begun, ended = list[tuple[bool, Any]](), threading.Event(), threading.Lock()
    over: list[bool] = []

    def run() -> None:
        begun.set()
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))
        finally:
            over.append(True)
            ended.release()

    ended.acquire()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="sklearn_capacity.uninterrupted")
    try:
        thread.start()
        ended.acquire()
    except BaseException as error:
        if thread.ident is not None or begun.wait(_START):  # it may have been started without running yet
            while not over:  # the lock may be held here already, if the interrupt came as it was taken
                time.sleep(_GLANCE)
        before = error.__context__
        if isinstance(error, RuntimeError) and isinstance(before, BaseException) and not isinstance(before, Exception):
            raise before from None  # `start` has released a lock that the interrupt had kept it from taking
        raise
    thread.join()
    worked, value = outcome.pop()
    if worked:
        return value
    try:
        raise value
    finally:
        del value  # its traceback refers to this frame
