"""A cached property without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar, overload

__all__ = ["computed_once"]

S = TypeVar("S")
T = TypeVar("T")


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
