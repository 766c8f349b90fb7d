"""Frees what `torch.export` would keep of every trace for the rest of the process.

A shape environment holds fake tensors, whose symbolic sizes hold the environment from C++, out of reach of the garbage
collector; class-wide caches of its methods hold it too. The source text of every intermediate graph stays in
`linecache`, and the shapes of every operator with every constant in an unbounded table of all fake tensors. Older
releases keep a hook on all buffers of the process, and the module with it, where an export failed.
Together that is about 75 kB per trace: a search over hundreds of networks would grow by tens of megabytes.
"""

from __future__ import annotations

import io
import linecache
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.fx.graph_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import _global_buffer_registration_hooks

__all__ = ["no_leftovers"]

_SOURCE = "<eval_with_key>"
_LOGGER = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_SHAPE_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")  # logs the traceback of the error that it raises


@contextmanager
def no_leftovers() -> Iterator[list[Any]]:
    """Free what tracing within the context leaves behind; the caller adds the exported programs to the yielded list.

    A failed export prints nothing: its error contains what matters in the pages of torch's log.
    """
    sources, shapes = set(linecache.cache), set(FakeTensorMode.cache)
    hooks = set(_global_buffer_registration_hooks)
    programs: list[Any] = []
    modes: list[FakeTensorMode] = []
    try:
        with _quietly():
            yield programs
        modes += [mode for program in programs for mode in _modes_of(program)]
    except Exception as error:
        modes += _modes_behind(error)
        raise
    finally:
        _free_environments(modes)
        for key in set(FakeTensorMode.cache) - shapes:
            FakeTensorMode.cache.pop(key, None)
        for number in set(_global_buffer_registration_hooks) - hooks:
            if _global_buffer_registration_hooks[number].__module__.startswith("torch."):
                _global_buffer_registration_hooks.pop(number, None)
        for name in set(linecache.cache) - sources:
            if name.startswith(_SOURCE):
                linecache.cache.pop(name, None)
                torch.fx.graph_module._loader.eval_cache.pop(name, None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Within the context, this thread writes nothing to stderr, and torch's logs of shapes show no warnings of it."""
    stream, thread = sys.stderr, threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    def of_other_threads(record: logging.LogRecord) -> bool:
        return record.thread != thread

    _LOGGER.addFilter(of_others)
    _SHAPE_LOGGER.addFilter(of_other_threads)
    quiet = sys.stderr = _Quiet(stream)  # a failed export prints its graph to stderr
    try:
        yield
    finally:
        if sys.stderr is quiet:  # and no other thread has replaced it
            sys.stderr = stream
        _LOGGER.removeFilter(of_others)
        _SHAPE_LOGGER.removeFilter(of_other_threads)


def _free_environments(modes: Sequence[FakeTensorMode]) -> None:
    """Let go of the shape environments of some modes, and of what the caches of their class hold."""
    for mode in modes:
        if mode.shape_env is not None:
            mode.shape_env.tracked_fakes = None
            mode.shape_env.fake_tensor_cache.clear()
    # Imported here, since it imports sympy, which would slow the package's import by a second.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    for method in vars(ShapeEnv).values():  # the cache keys hold the environment
        if hasattr(method, "cache_clear"):
            method.cache_clear()


class _Quiet(io.TextIOBase):
    """A stream that discards what this thread writes and passes on what other threads write."""

    def __init__(self, stream: Any):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread and self._stream is not None:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


def _modes_of(program: Any) -> list[FakeTensorMode]:
    """The fake-tensor modes of an exported program's values."""
    values = [node.meta.get("val") for node in program.graph_module.graph.nodes]
    return [value.fake_mode for value in values if hasattr(value, "fake_mode")]


def _modes_behind(error: BaseException | None) -> list[FakeTensorMode]:
    """The modes among the local variables of the frames in which tracing failed."""
    modes_of_frames: list[FakeTensorMode] = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            modes_of_frames += [value for value in frame.f_locals.values() if isinstance(value, FakeTensorMode)]
        error = error.__cause__ or error.__context__
    return modes_of_frames
