"""Every setting of the process that the package, or torch on its behalf, may change for a while: one table of them."""

from __future__ import annotations

import builtins
import contextlib
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import sklearn_capacity

#: Seconds for threads that are still running to end.
PATIENCE = 60
_CUDA = torch.backends.cuda
_PACKAGE = os.path.dirname(sklearn_capacity.__file__)
_LOGGERS = ("", "torch", "torch.fx.experimental.symbolic_shapes", "torch.export", "torch._dynamo", "skorch", "dask")


def _logs() -> Any:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    return [(log.level, log.disabled, log.propagate, list(log.filters), list(log.handlers)) for log in loggers]


def _signals() -> Any:
    return {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGALRM}}


#: What it is, and how to read it.
SETTINGS: dict[str, Callable[[], Any]] = {
    # scikit-learn puts the expressions of texts there
    "warning filters": lambda: [[getattr(part, "pattern", part) for part in entry] for entry in warnings.filters],
    "how warnings are shown": lambda: (warnings.showwarning, warnings.formatwarning, warnings.warn),
    "what export patches": lambda: [
        vars(nn.Module).get(name)
        for name in ("__call__", "__getattr__", "__setattr__", "_call_impl", "register_buffer")
    ],
    "functions of tensors": lambda: (torch.Tensor.__getattribute__, torch.Tensor.detach, torch.tensor, torch.randn),
    "builtins": lambda: dict(vars(builtins), _=None),
    "global hooks": lambda: len(nn.modules.module._global_forward_hooks),
    "oneDNN": lambda: (torch._C._get_mkldnn_enabled(), torch.backends.mkldnn.allow_tf32),
    "NNPACK": torch._C._get_nnpack_enabled,
    "cuDNN": lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    "TF32": lambda: (torch.get_float32_matmul_precision(), _CUDA.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    "attention": lambda: [
        *(_CUDA.flash_sdp_enabled(), _CUDA.mem_efficient_sdp_enabled(), _CUDA.cudnn_sdp_enabled()),
        *(
            _CUDA.math_sdp_enabled(),
            torch._C._get_overrideable_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        ),
    ],
    "defaults": lambda: (torch.get_default_dtype(), torch.get_default_device()),
    "deterministic": lambda: (
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        torch.utils.deterministic.fill_uninitialized_memory,
    ),
    "grad mode": lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    "anomalies": lambda: (torch.is_anomaly_enabled(), torch.autograd.graph._engine_run_backward),
    "autocast": lambda: (
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        *(torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
    ),
    "compiler": lambda: (torch.compiler.is_compiling(), torch.compiler.is_exporting(), torch.jit.is_tracing()),
    "modes of dispatch": lambda: (
        *(torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        torch._C._is_torch_function_enabled(),
    ),
    "torch's random numbers": lambda: torch.get_rng_state().tolist(),
    "numpy's random numbers": lambda: str(np.random.get_state()),  # noqa: NPY002
    "Python's random numbers": random.getstate,
    "numpy's errors": lambda: (np.geterr(), np.get_printoptions()),
    "threads of torch": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "logs": _logs,
    "streams": lambda: (sys.stdin, sys.stdout, sys.stderr),
    "hooks of Python": lambda: (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
    "signals": _signals,
    "threads": lambda: sorted(thread.name for thread in threading.enumerate()),
    "recursion": sys.getrecursionlimit,
    "surroundings": lambda: (os.getcwd(), dict(os.environ), list(sys.path), locale.setlocale(locale.LC_ALL)),
    "garbage": lambda: (gc.isenabled(), gc.get_threshold()),
}


def settings() -> dict[str, Any]:
    """All of them now, once the closing pools of joblib's threading backend have ended."""
    for thread in threading.enumerate():
        if thread.name.endswith("(worker)"):
            thread.join(PATIENCE)
    return {name: read() for name, read in SETTINGS.items()}


def changes(before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What has changed since, and stays so: before and now, by its name.

    An interrupt may leave objects behind that undo a change as they are freed; joblib's threading backend does not wait
    for its other threads where one of them fails.
    """
    for thread in threading.enumerate():
        if thread.name not in before["threads"]:
            thread.join(PATIENCE)
    if settings() != before:
        gc.collect()
    now = settings()
    return {name: (before[name], now[name]) for name in SETTINGS if before[name] != now[name]}


#: The settings that an interrupt most easily leaves changed, in forms that are cheap to read.
_OFTEN: tuple[Callable[[], Any], ...] = (
    torch.is_grad_enabled,
    torch._C._len_torch_function_stack,
    torch._C._len_torch_dispatch_stack,
    lambda: (id(warnings.filters), len(warnings.filters)),
    lambda: sorted(np.geterr().items()),
    lambda: torch.random.default_generator.get_state().numpy().tobytes(),
    _CUDA.flash_sdp_enabled,
)


@dataclass(frozen=True)
class Moment:
    """A moment at which Python looks for signals: where it is in the code, and in which functions of the package."""

    event: str
    code: Any
    line: int
    callers: tuple[tuple[str, int], ...]

    @classmethod
    def at(cls, frame: Any, event: str) -> Moment:
        callers, outer = [], frame
        while outer is not None and len(callers) < 4:
            if outer.f_code.co_filename.startswith(_PACKAGE):
                callers.append((outer.f_code.co_name, outer.f_lineno))
            outer = outer.f_back
        return cls(event, frame.f_code, frame.f_lineno, tuple(callers))


def _is_moment(frame: Any, event: str) -> bool:
    return event in ("call", "c_return") and "process_state" not in frame.f_code.co_filename


def delicate_moments(call: Callable[[], object]) -> list[Moment]:
    """The first moment after each change of a setting and the last one before, where the setting is not as at first.

    An interrupt there is the likeliest to leave it so: a context manager has been entered, and its block has not, or it
    is about to undo the change. Changes at one place, reached by one way, count once; those outside of the package,
    as in a search of scikit-learn, do not count.
    """
    before = last = [read() for read in _OFTEN]
    delicate: dict[Moment, None] = {}
    previous: list[Moment] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal last
        if not _is_moment(frame, event):
            return
        now, moment = [read() for read in _OFTEN], Moment.at(frame, event)
        if now != last:
            delicate.update(dict.fromkeys(previous if last != before else []))
            delicate.update(dict.fromkeys([moment] if now != before else []))
        last, previous[:] = now, [moment]

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [moment for moment in delicate if moment.callers]


@contextlib.contextmanager
def interrupt_when(moment: Moment) -> Iterator[None]:
    """KeyboardInterrupt when this moment comes for the first time."""

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == moment.event and frame.f_code is moment.code and Moment.at(frame, event) == moment:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def interrupt_at(number: int) -> Iterator[list[int]]:
    """KeyboardInterrupt at one of the moments at which Python looks for signals in this thread; yields their count.

    Those are the beginning of every function and the end of every function of C code, but for the file that undoes the
    changes. No clock is involved.
    """
    passed = [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        if _is_moment(frame, event):
            passed[0] += 1
            if passed[0] == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        yield passed
    finally:
        sys.setprofile(None)
