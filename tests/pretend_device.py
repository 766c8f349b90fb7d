"""An accelerator for machines that have none.

Inside ``with pretend_device() as device:`` tensors on ``device.device`` hold real numbers, computed on the CPU, so that
scores, early stopping and ``.item()`` work. Mixing them with CPU tensors raises, as on a GPU, and so does ``.numpy()``.
``device.n_transfers`` counts what came back to the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("meta")  # needs no driver, no device guard and no autograd thread
CROSSING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {  # a GPU takes indices that are on the CPU here
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class DeviceMismatchError(RuntimeError):
    """Tensors of the CPU and of the pretend device met in one operation."""


class LostTensorError(RuntimeError):
    """A fault of torch 2.8, whose engine sometimes copies a wrapper of a tensor without what it wraps."""


class Held(torch.Tensor):
    """A tensor that claims to be on the pretend device and holds a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Held:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        self.held = held
        return self

    def __repr__(self) -> str:
        return f"Held({self.held})"

    def __deepcopy__(self, memo: dict) -> Held:  # modules and state dicts
        if id(self) not in memo:
            new = Held(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                new._is_param = True
            memo[id(self)] = new
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


def _refuse_mixtures(func: Any, args: tuple, kwargs: dict) -> list[Held]:
    """The pretend device's tensors among the arguments; raises if CPU tensors are among them, too."""
    tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    held = [a for a in tensors if isinstance(a, Held)]
    strays = [a for a in tensors if not isinstance(a, Held) and a.dim() > 0]
    if any(a.is_meta for a in tensors if not isinstance(a, Held)):
        raise NotImplementedError(f"{func}: a tensor reached {DEVICE} by a way that is not pretended here")
    if held and strays and func not in CROSSING:
        indices = args[1] if func in INDEXING and isinstance(args[0], Held) else ()
        if not all(any(stray is index for index in indices) for stray in strays):
            shapes = [tuple(stray.shape) for stray in strays]
            raise DeviceMismatchError(f"{func}: tensors of shape {shapes} are on the CPU, others on the device")
    return held


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    held = _refuse_mixtures(func, args, kwargs)
    if func is aten.copy_.default:
        stays = isinstance(args[0], Held)
    elif kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]) == DEVICE
    else:
        stays = bool(held)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if any(not hasattr(tensor, "held") for tensor in held):
        raise LostTensorError(f"{func}: torch's engine copied a tensor of the device without its attributes")
    args, kwargs = tree_map(lambda a: a.held if isinstance(a, Held) else a, (args, kwargs))
    out = func(*args, **kwargs)
    if not stays:
        return out
    owner = {id(tensor.held): tensor for tensor in held}  # in-place operators return their own argument

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return owner[id(value)] if id(value) in owner else Held(value)

    return tree_map(wrap, out)


class _Constructors(TorchFunctionMode):
    """torch.tensor(data, device=...) would drop the data before it is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FROM_DATA:
            target = kwargs.get("device")
            if func is torch.Tensor.new_tensor:
                target, func, args = target or args[0].device, torch.tensor, args[1:]
            if target is not None and torch.device(target) == DEVICE:
                return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class pretend_device(TorchDispatchMode):  # noqa: N801
    """Context in which `device` is an accelerator."""

    device = DEVICE

    def __init__(self) -> None:
        super().__init__()
        self.n_transfers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        out = _run(func, args, kwargs)
        if any(isinstance(a, Held) for a in leaves):
            self.n_transfers += not any(isinstance(t, Held) for t in tree_leaves(out))
        return out

    def __enter__(self) -> pretend_device:
        self._constructors = _Constructors()
        self._constructors.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._constructors.__exit__(*exception)
