"""Memory that a step frees stays with the process, for the next step."""

from __future__ import annotations

import functools

import torch

__all__ = ["keep_freed_memory"]

#: Just below the largest block (32 MB) from which glibc learns what is worth keeping.
BLOCK_BYTES = (32 << 20) - (64 << 10)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MB of freed memory, once per process; other allocators are not affected.

    glibc returns memory at the top of the heap as soon as twice the largest block that was ever freed is free there,
    and the next step pays a page fault for each 4 kB of its gradients and cotangents: an eighth to a fifth of a step
    with a penalty on layers of 784 x 784, a tenth on small convolutional networks. After a block of 32 MB was freed,
    which is not touched here, it keeps twice that.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8, device="cpu")
