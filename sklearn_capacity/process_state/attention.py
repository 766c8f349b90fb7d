"""The kernel of torch's fused attention, chosen for a context and restored after threads that overlap."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sklearn_capacity.process_state.interrupts import surely

__all__ = ["math_attention", "renew"]


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


def renew() -> None:
    """In a forked child, create a new lock and keep only the users of its one thread."""
    _attention.renew()
