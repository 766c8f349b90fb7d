"""The programs of this process by structure, so that equal networks are exported once.

Two modules have one structure if everything is equal that an export fixes: classes and their code, settings, hooks,
shapes, and the values that the code reads from closures and globals. Weights are no part of it. A module whose code may
read more than that, such as a file, has none and is exported each time.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

from ..process_state import FORWARD_HOOKS, has_process_hooks
from ..storage import complete_fingerprint

__all__ = ["Programs", "structure_of"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Programs:
    """The `most` values that were used last, by key, without those that cost more than `largest_cost`.

    Every access is one operation on a dict, so threads need no lock, which a forked child could find closed.
    """

    def __init__(self, most: int, largest_cost: int):
        self.most, self.largest_cost = most, largest_cost
        self._kept: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Any:
        """The value, or None."""
        value = self._kept.pop(key, None)
        if value is not None:
            self._kept[key] = value  # as the last
        return value

    def keep(self, key: str, value: Any, cost: int) -> None:
        """Keep a value in place of those used longest ago, unless it alone costs too much."""
        if cost > self.largest_cost:
            return
        self._kept[key] = value
        while len(self._kept) > self.most:
            self.forget(next(iter(list(self._kept)), key))

    def forget(self, key: str) -> None:
        """Remove a value, if it is there."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        """Remove all values."""
        self._kept.clear()


def structure_of(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype, *, training: bool) -> str | None:
    """A hash of everything that an export of the module fixes; None if that cannot be determined.

    Parameters
    ----------
    module : nn.Module
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype
        Dtype of the sample.
    training : bool
        Whether the training flags of the submodules matter.
    """
    if has_process_hooks(FORWARD_HOOKS):
        return None
    try:
        return complete_fingerprint(
            input=[list(input_shape), str(dtype), str(torch.get_default_dtype()), str(torch.get_default_device())],
            tensors=_tensors(module),
            parts=[_part(path, part, training) for path, part in module.named_modules(remove_duplicate=False)],
        )
    except (TypeError, ValueError, RuntimeError, RecursionError):  # something has no content to be hashed
        return None


def _tensors(module: nn.Module) -> list[Any]:
    """Names, ties, shapes and kinds of parameters and buffers."""
    first_names: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [
        [
            *(name, first_names.setdefault(id(tensor), name), list(tensor.shape), str(tensor.dtype)),
            *(str(tensor.layout), tensor.requires_grad, type(tensor), list(tensor.stride())),
        ]
        for name, tensor in tensors
    ]


def _part(path: str, part: nn.Module, training: bool) -> list[Any]:
    """What a submodule adds to the structure."""
    settings = {name: value for name, value in sorted(vars(part).items()) if name not in _OF_EVERY_MODULE}
    hooks = [list(vars(part)[table].values()) for table in FORWARD_HOOKS]
    forward = type(part).forward
    code = forward.__code__ if isinstance(forward, types.FunctionType) else forward
    return [path, type(part), code, settings, hooks, training and part.training]
