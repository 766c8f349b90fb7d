"""All that the package changes of what belongs to a whole process, and how it comes back.

`torch.export` changes much for all threads while it traces: it switches oneDNN, cuDNN and NNPACK off, says that torch
is compiling (Adam then computes its bias corrections in another precision), and replaces `Module.__call__` and even
`builtins.max`. So a trace has the process to itself, as far as this package goes: whatever computes enters
`computing()`, and a trace runs by `undisturbed`, when no thread is inside one.

It runs in a thread of its own, too. Python raises KeyboardInterrupt, and whatever else a signal handler raises, in the
main thread only, so that no trace is cut off between a change and its undoing.

A forked child has the forking thread only. A fork waits for computations and traces to end, so that none of torch's
own locks is held in the child, and this package's locks are new there. The child computes with one thread, since the
threads among which OpenMP would share a sum exist in the parent only.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import torch

__all__ = [
    "computed_once",
    "computing",
    "keeps_modes",
    "math_attention",
    "silenced",
    "surely",
    "undisturbed",
    "without_torch_warnings",
]

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

#: Seconds after which a trace, or a fork, goes on though another thread still computes: that may be waiting for a lock
#: which the caller holds. A little of the last bits is then at stake, in place of a hang.
TRACE_PATIENCE, FORK_PATIENCE = 60.0, 10.0
# How often a trace looks whether a thread that it waits for has come to wait for a trace itself, in seconds.
_GLANCE = 0.02
# Seconds that a new thread takes to begin, at most.
_START = 1.0
# How often a call is repeated since another thread has made errors of warnings.
_RENEWALS = 5


def surely(undo: Callable[..., object], *args: Any) -> None:
    """Undo a change, from the start again if an interrupt comes in between: `undo` may be called twice."""
    try:
        undo(*args)
    except BaseException:
        undo(*args)
        raise


def keeps_modes(function: Callable[P, T]) -> Callable[P, T]:
    """Give the thread back the grad mode in which it called the function.

    An interrupt that comes as ``torch.no_grad()`` or an optimiser's step ends leaves that of its inside. Here the
    undoing is one function of C code, which Python calls before it looks for interrupts again.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        gradients = torch.is_grad_enabled()
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(gradients)

    return wrapped


# ---- computations and traces ------------------------------------------------------------------------------------


class _Gate:
    """One thread's lock: the thread holds it while it computes, a trace holds all of them.

    A thread takes no lock but its own, which costs next to nothing and lets any number of threads compute at once.
    `waiting` holds the traces that the thread waits for: meanwhile it computes nothing, though it has not left.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waiting: set[object] = set()


_traces = threading.RLock()  # held by the one that traces, or forks
_gates: weakref.WeakSet[_Gate] = weakref.WeakSet()
_local = threading.local()


def _gate() -> _Gate:
    """The gate of this thread."""
    gate: _Gate | None = getattr(_local, "gate", None)
    if gate is None:
        with _traces:
            gate = _local.gate = _Gate()
            _gates.add(gate)
    return gate


def computing() -> Any:
    """A context for a computation that must not see what a trace does to the process: ``with computing(): ...``.

    A lock of C code, since an interrupt cannot come between its being taken and the block that gives it back.
    """
    return _gate().lock


def _close_gates(patience: float) -> list[Any]:
    """Take every thread's lock, of those that wait for a trace excepted; the locks taken."""
    closed, start = [], time.monotonic()
    for gate in list(_gates):
        while not gate.waiting and time.monotonic() - start <= patience:
            if gate.lock.acquire(timeout=_GLANCE):
                closed.append(gate.lock)
                break
    return closed


def undisturbed(trace: Callable[[], T]) -> T:
    """The value of a function that changes settings of the process, called while no thread is `computing`.

    It runs in a thread of its own, one such function at a time; the calling thread may be computing. On an interrupt
    the caller waits until the function has come to its end, and has undone what it changed, before the exception
    goes on.
    """
    if getattr(_local, "tracing", False):  # a forward pass that is being traced traces another
        return trace()
    _keep_device_guard()
    gate, outcome, begun, ended = _gate(), list[tuple[bool, Any]](), threading.Event(), threading.Lock()

    def alone() -> None:
        begun.set()
        _local.tracing = True
        gate.waiting.add(ended)
        try:
            with _traces:
                closed = _close_gates(TRACE_PATIENCE)
                try:
                    outcome.append((True, trace()))
                finally:
                    for lock in closed:
                        lock.release()
                    gate.waiting.discard(ended)
        except BaseException as error:
            outcome.append((False, error))
        finally:
            ended.release()

    ended.acquire()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(alone,), name="sklearn_capacity.trace")
    try:
        thread.start()
        ended.acquire()
    except BaseException:
        if thread.ident is not None or begun.wait(_START):  # it may have been started, and not have begun
            ended.acquire()
        raise
    thread.join()
    worked, value = outcome.pop()
    if worked:
        return value
    try:
        raise value
    finally:
        del value  # its traceback holds this frame


_guard_holders: list[threading.Thread] = []


def _keep_device_guard() -> None:
    """Let what torch registers in place of CUDA's devices belong to a thread that does not end.

    Where there is no GPU, a trace lets the process take a guard of those devices that does nothing. Several releases of
    torch free it with the thread that was the first to trace, and go on to call it in backward passes.
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
        _guard_holders.append(threading.current_thread())  # not before: a child forked meanwhile starts its own
        registered.set()
        threading.Event().wait()  # which nobody sets

    threading.Thread(target=hold, name="sklearn_capacity.device_guard", daemon=True).start()
    registered.wait()


class computed_once(Generic[S, T]):  # noqa: N801, as `property`
    """A property that keeps its first value: functools.cached_property as it is from Python 3.12 on.

    Before, one lock of a class guards the property of all its objects. A thread that computes one while it waits for
    a trace would stop the others within a computation, which the trace waits for; a forked child would find it held.
    """

    def __init__(self, function: Callable[[S], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: S, owner: type) -> T: ...
    def __get__(self, instance: S | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value = vars(instance)[self.name] = self.function(instance)
        return value


# ---- forks ------------------------------------------------------------------------------------------------------

_forking: list[Any] = []


def _before_fork() -> None:
    _gate().waiting.add("fork")
    _traces.acquire()
    _forking.append(_traces)
    _forking.extend(_close_gates(FORK_PATIENCE))


def _after_fork() -> None:
    _gate().waiting.discard("fork")
    while _forking:
        _forking.pop().release()


def _after_fork_in_child() -> None:
    global _traces
    mine = _gate()
    _after_fork()
    _traces = threading.RLock()
    _gates.clear()
    _gates.add(mine)
    _attention.renew()
    if torch.get_num_threads() > 1:  # else the first parallel region waits for the parent's threads, for ever
        torch.set_num_threads(1)


# ---- attention --------------------------------------------------------------------------------------------------


class _Attention:
    """The kernels that torch's fused attention may take, and who asks for the plain one.

    torch has one setting for all threads: the first to come changes it, and the last to leave puts it back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[object, int] = {}  # the thread of each
        self.before: dict[str, bool] = {}

    def enter(self, user: object) -> None:
        with self.lock:
            if not self.users:
                self.before = {kernel: read() for kernel, (read, _) in _KERNELS.items()}
            self.users[user] = threading.get_ident()
            for kernel, (_, write) in _KERNELS.items():
                write(kernel == "math")

    def leave(self, user: object) -> None:
        with self.lock:
            self.users.pop(user, None)
            if not self.users:
                for kernel, enabled in self.before.items():
                    _KERNELS[kernel][1](enabled)
                self.before = {}

    def renew(self) -> None:
        """In a forked child: a new lock, and no users but those of the one thread."""
        self.lock = threading.RLock()
        for user in [user for user, thread in self.users.items() if thread != threading.get_ident()]:
            self.leave(user)


def _kernels() -> dict[str, tuple[Callable[[], Any], Callable[[bool], Any]]]:
    """How to read and to write whether each kernel may be taken."""
    cuda = torch.backends.cuda
    kernels: dict[str, tuple[Callable[[], Any], Callable[[bool], Any]]] = {
        "flash": (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        "efficient": (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        "cudnn": (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        "math": (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    }
    # Kernels of devices that are not torch's own, for which there is no public switch.
    read = getattr(torch._C, "_get_overrideable_sdp_enabled", None)
    write = getattr(torch._C, "_set_sdp_use_overrideable", None)
    return {**kernels, "overrideable": (read, write)} if read is not None and write is not None else kernels


_KERNELS = _kernels()
_attention = _Attention()


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """While anybody is inside, torch's fused attention takes its plain kernel: the others have one derivative only.

    Threads may overlap. A generator, since one that an interrupt has left suspended runs to its end when it is freed.
    """
    user = object()
    try:
        _attention.enter(user)
        yield
    finally:
        surely(_attention.leave, user)


# ---- warnings ---------------------------------------------------------------------------------------------------


class _Pattern:
    """In place of a regular expression in a filter of warnings: matches in the thread that made it only."""

    pattern = "(?!)"  # of a copy that knows the thread no more, and matches nothing: scikit-learn makes such copies

    def __init__(self, pattern: str) -> None:
        self.expression, self.thread = re.compile(pattern, re.IGNORECASE), threading.get_ident()

    def match(self, text: str) -> Any:
        return self.expression.match(text) if threading.get_ident() == self.thread else None

    def __reduce__(self) -> tuple[Any, ...]:  # joblib sends a process's filters to its workers
        return re.compile, (self.pattern,)


@contextlib.contextmanager
def silenced(pattern: str = "") -> Iterator[None]:
    """Ignore this thread's warnings whose text begins with a pattern.

    ``warnings.catch_warnings`` puts back, at its end, what another thread may have changed since; here one entry comes
    and goes.
    """
    filters: Any = warnings.filters
    entry = ("ignore", _Pattern(pattern), Warning, None, 0)

    def leave() -> None:
        current: Any = warnings.filters
        for some in (filters, current):
            while entry in some:
                some.remove(entry)

    try:
        filters.insert(0, entry)
        yield
    finally:
        surely(leave)


def without_torch_warnings(function: Callable[[], T]) -> T:
    """The value of a function that torch warns in, none of which is heard or becomes an error.

    Another thread may put a filter in front of the one here, as ``warnings.simplefilter("error")`` does: then the
    function is called again, behind a new one.
    """
    for _ in range(_RENEWALS):
        try:
            with silenced():
                return function()
        except Exception as error:
            if not _is_warning(error):
                raise
    with silenced():
        return function()


def _is_warning(error: BaseException | None) -> bool:
    """Whether an error is a warning that a filter has turned into one, or comes of such."""
    while error is not None and not isinstance(error, Warning):
        error = error.__cause__ or error.__context__
    return error is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
