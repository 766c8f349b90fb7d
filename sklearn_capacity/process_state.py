"""Everything that the package changes in the state of the process, and how it is restored.

While it traces, `torch.export` changes settings for all threads: it switches off oneDNN, cuDNN and NNPACK, declares
that torch is compiling (Adam then computes its bias corrections in another precision), and replaces `Module.__call__`
and even `builtins.max`. So a trace runs without any other computation of this package: computations enter
`computing()`, and a trace runs in `undisturbed`, when no thread is inside one.

A trace also runs in a separate thread. Python raises KeyboardInterrupt, and other exceptions of signal handlers, only
in the main thread, so a trace is never interrupted between a change and its undoing.

A forked child has only the forking thread. A fork waits for computations and traces to end, so that the child holds
none of torch's locks, and this package creates new locks there. The child computes with one thread, since the threads
among which OpenMP would split a sum exist only in the parent.
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, ParamSpec, Self, TypeVar, overload

import numpy as np
import torch

__all__ = [
    "computed_once",
    "RandomNumbers",
    "computing",
    "keeps_modes",
    "keeps_random_numbers",
    "restored_at_the_end",
    "math_attention",
    "silenced",
    "surely",
    "undisturbed",
    "uninterrupted",
    "without_torch_warnings",
]

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

#: Seconds after which a trace or a fork continues although another thread still computes: that thread may be waiting
#: for a lock that the caller holds. Last bits may then differ, which is better than a deadlock.
TRACE_PATIENCE, FORK_PATIENCE = 60.0, 10.0
# Seconds between checks whether a thread that a trace waits for is itself waiting for a trace.
_GLANCE = 0.02
# Largest number of seconds until a new thread starts.
_START = 1.0
# Number of times a call is repeated because another thread has turned warnings into errors.
_RENEWALS = 5


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


# ---- random numbers ---------------------------------------------------------------------------------------------


def _generator_states(devices: Sequence[torch.device]) -> dict[torch.device, torch.Tensor]:
    """The states of torch's default generators: of the CPU, and of the CUDA devices among those given."""
    states = {torch.device("cpu"): torch.random.default_generator.get_state()}
    return states | {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}


def _set_generator_states(states: dict[torch.device, torch.Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.random.default_generator.set_state(state)


class RandomNumbers:
    """The states of torch's default generators, which all threads share, from `enter` to `leave`.

    Of threads that overlap, the first saves the states and the last restores them: one that restored what it has met
    would bring back the numbers that another one draws in between. A thread that is already inside restores what it
    has met, for what it does next.
    """

    _lock: ClassVar[Any] = threading.RLock()
    _threads: ClassVar[dict[RandomNumbers, int]] = {}  # of those that are outermost in their threads
    _before: ClassVar[dict[torch.device, torch.Tensor]] = {}
    _restores: ClassVar[bool] = False

    def __init__(self, *devices: torch.device) -> None:
        self.devices, self.outermost = devices, True
        self.states: dict[torch.device, torch.Tensor] = {}  # as this one has met them

    def enter(self) -> None:
        shared = RandomNumbers
        with shared._lock:
            self.outermost = threading.get_ident() not in shared._threads.values()
            self.states = _generator_states(self.devices)
            if not self.outermost:
                return
            if not shared._threads:
                shared._before, shared._restores = {}, False
            shared._before = self.states | shared._before
            shared._threads[self] = threading.get_ident()

    def leave(self, *, restore: bool = True) -> None:
        """End it, once; without `restore`, the states are kept unless an overlapping thread restores them."""
        shared = RandomNumbers
        with shared._lock:
            if not self.outermost and restore:
                _set_generator_states(self.states)
            if self in shared._threads:
                shared._restores = shared._restores or restore
                if len(shared._threads) == 1 and shared._restores:
                    _set_generator_states(shared._before)
                del shared._threads[self]

    def changed(self) -> bool:
        """Whether numbers have been drawn since `enter`, by any thread."""
        return not all(
            torch.equal(state, self.states[device]) for device, state in _generator_states(self.devices).items()
        )

    @classmethod
    def renew(cls) -> None:
        """In a forked child, create a new lock and keep only what its one thread has entered."""
        cls._lock = threading.RLock()
        cls._threads = {user: thread for user, thread in cls._threads.items() if thread == threading.get_ident()}


@contextlib.contextmanager
def keeps_random_numbers(*devices: torch.device) -> Iterator[None]:
    """Restore torch's default generators, of the CPU and of the CUDA devices given, after the context.

    Unlike ``torch.random.fork_rng``, it also restores them when an interrupt comes as the context ends, and when
    threads overlap.
    """
    numbers = RandomNumbers(*devices)
    try:
        numbers.enter()
        yield
    finally:
        surely(numbers.leave)


# ---- computations and traces ------------------------------------------------------------------------------------


class _Gate:
    """One thread's lock: the thread holds it while it computes, and a trace holds the locks of all threads.

    A thread takes only its own lock, which is cheap and lets any number of threads compute at once. `waiting` contains
    the traces that the thread waits for: meanwhile it computes nothing, although it still holds its lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waiting: set[object] = set()


_traces = threading.RLock()  # held by the thread that traces or forks
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
    """A context for a computation that must not see a trace's changes to the process: ``with computing(): ...``.

    The lock is implemented in C, so no interrupt can come between taking it and entering the block that releases it.
    """
    return _gate().lock


def _close_gates(patience: float) -> list[Any]:
    """Take the locks of all threads except those that wait for a trace; returns the locks taken."""
    closed, start = [], time.monotonic()
    for gate in list(_gates):
        while not gate.waiting and time.monotonic() - start <= patience:
            if gate.lock.acquire(timeout=_GLANCE):
                closed.append(gate.lock)
                break
    return closed


def undisturbed(trace: Callable[[], T]) -> T:
    """The value of a function that changes process-wide settings, called while no thread is `computing`.

    The function runs `uninterrupted`, one such function at a time; the calling thread may be computing.
    """
    if getattr(_local, "tracing", False):  # a forward pass under tracing traces another one
        return trace()
    _keep_device_guard()
    gate, wait = _gate(), object()

    def alone() -> T:
        _local.tracing = True
        gate.waiting.add(wait)
        with _traces:
            closed = _close_gates(TRACE_PATIENCE)
            try:
                return trace()
            finally:
                for lock in closed:
                    lock.release()
                gate.waiting.discard(wait)

    return uninterrupted(alone)


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


_guard_holders: list[threading.Thread] = []


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


class computed_once(Generic[S, T]):  # noqa: N801, as `property`
    """A property that caches its first value, like functools.cached_property from Python 3.12 on.

    Before, one lock per class guarded the property for all objects. A thread that computes one while it waits for a
    trace would block the others within a computation, which the trace waits for; a forked child would find the lock
    held.
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
    RandomNumbers.renew()
    if torch.get_num_threads() > 1:  # else the first parallel region waits forever for the parent's threads
        torch.set_num_threads(1)


# ---- attention --------------------------------------------------------------------------------------------------


class _Attention:
    """The enabled kernels of torch's fused attention, and the users of the plain one.

    torch has one setting for all threads: the first user changes it, and the last one restores it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[object, int] = {}  # the thread of each user
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
        """In a forked child, create a new lock and keep only the users of its one thread."""
        self.lock = threading.RLock()
        for user in [user for user, thread in self.users.items() if thread != threading.get_ident()]:
            self.leave(user)


def _kernels() -> dict[str, tuple[Callable[[], Any], Callable[[bool], Any]]]:
    """The functions that read and set whether each kernel is enabled."""
    cuda = torch.backends.cuda
    kernels: dict[str, tuple[Callable[[], Any], Callable[[bool], Any]]] = {
        "flash": (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        "efficient": (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        "cudnn": (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        "math": (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    }
    # Kernels of third-party devices, for which there is no public switch.
    read = getattr(torch._C, "_get_overrideable_sdp_enabled", None)
    write = getattr(torch._C, "_set_sdp_use_overrideable", None)
    return {**kernels, "overrideable": (read, write)} if read is not None and write is not None else kernels


_KERNELS = _kernels()
_attention = _Attention()


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Make torch's fused attention use its plain kernel within the context: the others can be differentiated only once.

    Threads may overlap. It is a generator, since one suspended by an interrupt still runs to its end when it is freed.
    """
    user = object()
    try:
        _attention.enter(user)
        yield
    finally:
        surely(_attention.leave, user)


# ---- warnings ---------------------------------------------------------------------------------------------------


class _Pattern:
    """A replacement for a regular expression in a warnings filter that matches only in its own thread."""

    pattern = "(?!)"  # for copies without the thread, such as scikit-learn makes; it matches nothing

    def __init__(self, pattern: str) -> None:
        self.expression, self.thread = re.compile(pattern, re.IGNORECASE), threading.get_ident()

    def match(self, text: str) -> Any:
        return self.expression.match(text) if threading.get_ident() == self.thread else None

    def __reduce__(self) -> tuple[Any, ...]:  # joblib sends the filters of a process to its workers
        return re.compile, (self.pattern,)


@contextlib.contextmanager
def silenced(pattern: str = "") -> Iterator[None]:
    """Ignore this thread's warnings whose text starts with a pattern.

    ``warnings.catch_warnings`` restores, at its end, filters that another thread may have changed since; here only one
    entry is added and removed.
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
    """The value of a function, with torch's warnings in it neither shown nor turned into errors.

    If another thread puts a filter in front of this one, as ``warnings.simplefilter("error")`` does, the function is
    called again, with a new filter.
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
    """Whether an error is, or was caused by, a warning that a filter has turned into an error."""
    while error is not None and not isinstance(error, Warning):
        error = error.__cause__ or error.__context__
    return error is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
