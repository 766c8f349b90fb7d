"""The device of a training run."""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch

from sklearn_capacity._validation import shown

__all__ = ["resolve_device", "worker_number"]


def worker_number() -> int:
    """Number of this process among its siblings: 0 for a main process, then 0, 1, 2, ... for workers.

    joblib's loky workers, and those of multiprocessing, are numbered from 1 by their parent.
    """
    identity = multiprocessing.current_process()._identity
    return identity[-1] - 1 if identity else 0


def resolve_device(device: Any) -> torch.device:
    """A torch device; "auto" is the CPU, or one of the GPUs per joblib worker if there are any.

    Parameters
    ----------
    device : "auto", str or torch.device

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch does not know the device, or it does not exist.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    n_gpus = torch.cuda.device_count()
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda", worker_number() % n_gpus) if n_gpus else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f'`device` must be "auto" or a device of torch such as "cpu", got {shown(device)}.') from error
    if resolved.type == "cpu" and resolved.index:  # torch computes on it, but cannot load its tensors from a file
        raise ValueError(f'`device` must be "cpu", got {device!r}: there is only one CPU.')
    if resolved.type == "cuda" and (resolved.index or 0) >= n_gpus:
        raise ValueError(f'`device` must be available, got {device!r}; torch sees {n_gpus} GPUs. Use device="auto".')
    if resolved.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=resolved).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ValueError(f'`device` must be available to torch, got {device!r}. Use device="auto".') from error
    return torch.device("cpu") if resolved.type == "cpu" else resolved  # torch cannot load what is on "cpu:0"
