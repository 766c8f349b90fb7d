"""The programs of this process by structure, so that equal networks are exported once.

Two modules have one structure if everything is equal that an export fixes: classes and their code, settings, hooks,
shapes, and the values that the code reads from closures and globals. Weights do not count. Packages count by their
version, too, instead of what they read from files. A module with other code that may read more has no structure and is
exported each time.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..process_state import FORWARD_HOOKS, has_process_hooks
from ..storage import complete_fingerprint, is_shared, snapshot
from .recording import is_known

__all__ = ["Programs", "structure_of"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: types whose text tells the value
_PLAIN = frozenset({bool, int, float, str, type(None)})

#: where torch's functions are defined, and the decorators of some
_OF_TORCH = ("torch", "typing", "contextlib", "functools", "warnings")


class _Scan(NamedTuple):
    """The number of a snapshot, and the functions and methods in it that another library or the user has put there."""

    number: int
    replaced: list[tuple[str, Any]]


#: of torch's modules and classes
_scans: dict[Any, _Scan] = {}


class Programs:
    """The `most` values that were used last, by key, without those that cost more than `largest_cost`.

    Every access is one operation on a dict, so threads need no lock, which a forked child could find closed.
    """

    def __init__(self, most: int, largest_cost: int):
        self.most, self.largest_cost = most, largest_cost
        self._kept: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        value = self._kept.pop(key, None)
        if value is not None:
            self._kept[key] = value  # as the last
        return value

    def keep(self, key: Hashable, value: Any, cost: int) -> None:
        """Keep a value in place of those used longest ago, unless it alone costs too much."""
        if cost > self.largest_cost:
            return
        self._kept[key] = value
        while len(self._kept) > self.most:
            self.forget(next(iter(list(self._kept)), key))

    def forget(self, key: Hashable) -> None:
        """Remove a value, if it is there."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        """Remove all values."""
        self._kept.clear()


def structure_of(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype, *, training: bool) -> Hashable:
    """Everything that an export of the module fixes, or a hash of it; None if that cannot be determined.

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
    parts = list(module.named_modules(remove_duplicate=False))
    classes = list(dict.fromkeys(type(part) for _, part in parts))
    numbers = {cls: number for number, cls in enumerate(classes)}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    text = [
        [list(input_shape), str(dtype), str(torch.get_default_dtype()), str(torch.get_default_device())],
        [[path, numbers[type(part)], _settings(part, plain=True), training and part.training] for path, part in parts],
        _layouts(tensors),
    ]
    names = {id(tensor): name for name, tensor in tensors}
    rest = [(path, _by_name(_settings(part, plain=False), names), _hooks(part)) for path, part in parts]
    rest = [part for part in rest if part[1] or part[2]]
    tensor_classes = [type(tensor) for _, tensor in tensors]
    scans = _scanned(classes)
    replaced = [function for scan in scans for function in scan.replaced]
    if not rest and all(isinstance(f, types.BuiltinFunctionType) for _, f in replaced) and is_known(module):
        # No user's code that may be edited, so the objects tell enough, and take a third of the hash's time.
        forwards = (cls.forward for cls in classes)
        return repr(text), *tensor_classes, *classes, *forwards, *(scan.number for scan in scans)
    try:
        return complete_fingerprint(
            text=repr(text),
            classes=[[cls, _code_of(cls.forward)] for cls in classes],
            tensor_classes=tensor_classes,
            rest=rest,
            replaced=replaced,
        )
    except (TypeError, ValueError, RuntimeError, RecursionError):  # something has no content to be hashed
        return None


def _settings(part: nn.Module, *, plain: bool) -> list[tuple[str, Any]]:
    """The attributes of a submodule whose text tells everything, or the others."""
    settings = vars(part)
    return [(n, settings[n]) for n in sorted(settings.keys() - _OF_EVERY_MODULE) if _is_plain(settings[n]) is plain]


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _by_name(value: Any, names: dict[int, str]) -> Any:
    """A setting with the module's own tensors by their names, as in a recurrent layer's list: they are no constants."""
    if isinstance(value, Tensor):
        return ("tensor", names[id(value)]) if id(value) in names else value
    return type(value)(_by_name(item, names) for item in value) if type(value) in (list, tuple) else value


def _hooks(part: nn.Module) -> list[tuple[str, list[Any]]]:
    return [(table, list(vars(part)[table].values())) for table in FORWARD_HOOKS if vars(part)[table]]


def _code_of(forward: Any) -> Any:
    return forward.__code__ if isinstance(forward, types.FunctionType) else forward


def _scanned(classes: list[type]) -> list[_Scan]:
    """Torch's large modules and classes, and the bases of a module, as they are now."""
    bases = dict.fromkeys(base for cls in classes for base in cls.__mro__ if base.__module__.startswith("torch."))
    return [_scan(home) for home in (torch, functional, Tensor, *bases)]


def _scan(home: Any) -> _Scan:
    """The last scan, while all its objects are the same."""
    now = snapshot(home)
    known = _scans.get(home)
    if known is None or known.number != now.number:
        pairs = zip(now.names, now.items, strict=True)
        replaced = [(f"{home.__name__}.{name}", item) for name, item in pairs if _is_replaced(name, item)]
        known = _Scan(now.number, replaced)
        if is_shared(home):
            _scans[home] = known
    return known


def _is_replaced(name: str, item: Any) -> bool:
    """Whether a function in one of torch's modules or classes may be another's, or one of torch's of another name."""
    kind = type(item)
    if kind is types.FunctionType:
        return not item.__globals__.get("__name__", "").startswith(_OF_TORCH)
    if kind is types.BuiltinFunctionType:
        return item.__name__ != name
    if kind is functools.partial:
        return True
    return callable(item) and not isinstance(item, type) and not kind.__module__.startswith((*_OF_TORCH, "builtins"))


def _layouts(tensors: list[tuple[str, Tensor]]) -> list[Any]:
    """Names, ties, shapes and kinds of parameters and buffers."""
    first_names: dict[int, str] = {}
    return [
        [
            *(name, first_names.setdefault(id(tensor), name), tuple(tensor.shape), str(tensor.dtype)),
            *(str(tensor.layout), tensor.requires_grad, tensor.stride()),
        ]
        for name, tensor in tensors
    ]
