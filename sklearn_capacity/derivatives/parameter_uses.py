"""How a network uses each parameter: in a matrix product, or to scale and shift entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .parameter_vector import ParameterVector

__all__ = ["which_are_weights"]

#: matrix products that add their first argument
_ADDING = ("addmm", "addmv", "baddbmm", "addbmm", "addr")
#: Products with a vector.
_VECTORS = ("mv", "addmv", "dot")
#: Operators that scale, shift or place entries, although torch does not tag them as pointwise: parts of their names.
_ENTRYWISE = ("norm", "prelu", "cat", "stack", "copy", "index_put", "scatter")


def which_are_weights(vector: ParameterVector, X: Tensor) -> list[bool]:
    """For every tensor of theta, whether it is combined with data in a matrix product, a convolution or a look-up.

    All others scale or shift, whatever their shapes: a scale of shape (C, 1, 1) looks like a kernel, and only its use
    shows the difference. A tensor used in both ways is a weight.

    Parameters
    ----------
    vector : ParameterVector
    X : Tensor of shape (n, ...)
        One sample is enough; operators run on all samples.
    """
    theta = [tensor.detach() for tensor in vector.tensors]
    uses = _Uses(theta, X)
    with torch.no_grad(), uses:
        vector.bind(theta)(X)
    return [i in uses.weights for i in range(len(theta))]


class _Uses(TorchDispatchMode):
    """Tracks values computed only from parameters, up to the operators that combine them with data."""

    def __init__(self, theta: Sequence[Tensor], X: Tensor):
        super().__init__()
        self.weights: set[int] = set()
        self._alive: list[Any] = []  # so that no storage is freed and its address reused
        self._sources: dict[int, frozenset[int]] = {}  # the parameters behind a storage without data
        self._data: set[int] = {_storage(X)}
        for i, tensor in enumerate(theta):
            self._sources[_storage(tensor)] = self._sources.get(_storage(tensor), frozenset()) | {i}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = list(_tensors((args, kwargs or {})))
        results = list(_tensors(output))
        self._alive += results
        if any(_storage(tensor) in self._data for tensor in inputs):
            self._meet(func, args, inputs)
            for tensor in results:
                self._data.add(_storage(tensor))
                self._sources.pop(_storage(tensor), None)  # data were added in place
        else:
            sources = frozenset().union(*(self._sources.get(_storage(tensor), frozenset()) for tensor in inputs))
            for tensor in results:
                self._sources[_storage(tensor)] = self._sources.get(_storage(tensor), frozenset()) | sources
        return output

    def _meet(self, func: Any, args: Any, inputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if torch.Tag.pointwise in func.tags or any(word in name for word in _ENTRYWISE):
            return
        added = args[0] if name in _ADDING else None
        for tensor in inputs:  # a vector is the bias of a convolution or of a recurrent layer
            if tensor is not added and (tensor.dim() > 1 or name in _VECTORS):
                self.weights |= self._sources.get(_storage(tensor), frozenset())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
