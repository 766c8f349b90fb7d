"""Warnings that one thread does not want, without a change that other threads see."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sklearn_capacity.process_state.interrupts import surely

__all__ = ["silenced", "without_torch_warnings"]

T = TypeVar("T")

# Number of times a call is repeated because another thread has turned warnings into errors.
_RENEWALS = 5


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
