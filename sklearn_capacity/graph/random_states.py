"""The global random numbers, to be put back where a module has drawn some."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_states", "restore_random_states"]


def random_states(device: torch.device) -> list[Tensor]:
    """States of the generators that a forward pass on the device may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_random_states(device: torch.device, states: list[Tensor]) -> None:
    """Only for a module that is known to draw: another thread may be drawing numbers as well."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
