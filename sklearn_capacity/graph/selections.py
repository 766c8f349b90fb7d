"""Tensors that take entries of one parameter, such as position embeddings: which entries these are.

An entry may be taken several times, as those of a table of relative positions are. Views do not count: torch records
them itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["entries_of", "is_selection", "note_selection", "root"]

#: Operators that take entries, and those that move or repeat the entries that were taken.
_TAKING = frozenset("index index_select embedding gather".split())
_MOVING = frozenset(
    "clone contiguous reshape _unsafe_view flatten unflatten repeat repeat_interleave flip roll".split()
)
_NOTE = "_taken_from"


def root(tensor: Tensor) -> Tensor:
    """The tensor that a view or a selection is one of, or the tensor itself."""
    base = _base(tensor)
    return root(getattr(base, _NOTE)[0]) if is_selection(tensor) else base


def is_selection(tensor: Tensor) -> bool:
    """Whether a tensor is known to take entries of another one, or is a view of one that does."""
    return hasattr(_base(tensor), _NOTE)


def note_selection(name: str, source: Tensor, result: Tensor, apply: Callable[[Tensor], Tensor]) -> None:
    """Note of the result of an operator that it takes entries of another tensor, if it does.

    Parameters
    ----------
    name : str
        Of the operator, without its overload.
    source, result : Tensor
    apply : callable(Tensor) -> Tensor
        The operator, with another tensor in the place of the source.
    """
    if result._base is None and (name in _TAKING or (name in _MOVING and is_selection(source))):
        setattr(result, _NOTE, (source, apply))


def entries_of(tensor: Tensor) -> Tensor:
    """The place of every entry in the memory of the root, as one vector."""
    places, base = _offsets(tensor), _base(tensor)
    if not is_selection(tensor):
        return places
    source, apply = getattr(base, _NOTE)
    taken = apply(entries_of(source).double().reshape(source.shape)).long().flatten()  # (numel of the base,)
    memory = torch.zeros(int(_offsets(base).max()) + 1, dtype=torch.long, device=taken.device)
    memory[_offsets(base)] = taken
    return memory[places]


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _offsets(tensor: Tensor) -> Tensor:
    """The memory offset of every entry, as one vector: the same view of an array of offsets."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((int(n) - 1) * int(step) for n, step in steps)
    memory = torch.arange(last + 1, device=tensor.device)  # (last + 1,): each offset holds itself
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten()
