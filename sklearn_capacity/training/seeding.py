"""One seed for all random numbers of a training run, without an effect on the global generators."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..process_state import keeps_random_numbers

__all__ = ["seeded"]

# Dropout can only draw from torch's default generator, which all threads of a process share:
# without a lock two concurrent fits in joblib's threading backend consume each other's numbers.
# Reentrant, since a callback may itself fit a network.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # a forked child must not inherit a lock that is never released
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch's default generators within the context, and restore them afterwards.

    Yields a private CPU generator for draws whose order must not depend on what a module draws
    (batches, projections). Fits in several threads of one process take turns.
    """
    with _lock, keeps_random_numbers(device):
        # torch.manual_seed would also seed, and initialise, every accelerator
        torch.random.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
