"""The states of torch's default generators, restored after threads that overlap."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

from sklearn_capacity.process_state.interrupts import surely

__all__ = ["RandomNumbers", "keeps_random_numbers"]


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
