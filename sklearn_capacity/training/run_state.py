"""The state that determines the next epoch of a training, as values that a file can store."""

from __future__ import annotations

import types
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sklearn_capacity.storage import encode

__all__ = ["PARTS", "capture", "restore", "stateful_attributes"]

#: the parts of a captured state
PARTS = {
    "module",
    "buffers",
    "frozen",
    "optimizer",
    "inner_optimizers",
    "callbacks",
    "default_rng",
    "generator",
    "cuda_rng",
}
_SET = "elements of a set"
_CHOSEN_BY_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def capture(net: NeuralNet, generator: torch.Generator, early: set[tuple[str, str]] | None = None) -> dict[str, Any]:
    """The state of a run, besides the data and the parameters.

    Parameters
    ----------
    net : NeuralNet
    generator : torch.Generator
        Source of the order of batches.
    early : set of (str, str), default=None
        The `stateful_attributes` that existed when training started, into which `restore` can load. None: all.
    """
    return {
        "module": dict(net.module_.state_dict()),
        "buffers": _unsaved_buffers(net.module_),
        "frozen": [name for name, parameter in net.module_.named_parameters() if not parameter.requires_grad],
        "optimizer": net.optimizer_.state_dict(),
        "inner_optimizers": {key: inner.state_dict() for key, inner in _inner_optimizers(net.optimizer_).items()},
        "callbacks": {name: _callback_state(name, callback, early) for name, callback in net.callbacks_},
        "default_rng": torch.random.default_generator.get_state(),
        "generator": generator.get_state(),
        "cuda_rng": torch.cuda.get_rng_state(net.device) if torch.device(net.device).type == "cuda" else None,
    }


def restore(net: NeuralNet, state: dict[str, Any], generator: torch.Generator) -> None:
    """Restore a captured state, after callbacks have prepared themselves as for a new fit."""
    _check_weights(state["module"], net.module_)
    net.module_.load_state_dict(state["module"])
    buffers = dict(net.module_.named_buffers())
    with torch.no_grad():
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
    frozen = set(state["frozen"])
    for name, parameter in net.module_.named_parameters():
        parameter.requires_grad_(name not in frozen)
    inner_optimizers = _inner_optimizers(net.optimizer_)
    sharing = {key for key, inner in inner_optimizers.items() if inner.param_groups is net.optimizer_.param_groups}
    _restore_optimizer(net.optimizer_, state["optimizer"])
    for key, inner in inner_optimizers.items():
        _restore_optimizer(inner, state["inner_optimizers"][key])
        if key in sharing:  # loading has created separate groups
            inner.param_groups = net.optimizer_.param_groups
    for name, callback in net.callbacks_:
        _restore_callback(callback, state["callbacks"].get(name, {}), net.module_)
    torch.random.default_generator.set_state(state["default_rng"])
    generator.set_state(state["generator"])
    if state["cuda_rng"] is not None and torch.device(net.device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], net.device)


# ---- optimisers and modules ------------------------------------------------------------------------------------------


def _inner_optimizers(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """The inner optimisers that an optimiser steps with, whose state its own `state_dict` omits."""
    inner = {key: value for key, value in vars(optimizer).items() if isinstance(value, torch.optim.Optimizer)}
    return {key: value for key, value in inner.items() if value.state is not optimizer.state}


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Like ``load_state_dict``, but without rounding every state to its parameter's precision."""
    optimizer.load_state_dict(saved)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = [index for group in saved["param_groups"] for index in group["params"]]
    for index, parameter in zip(order, parameters, strict=True):
        for key, value in saved["state"].get(index, {}).items():
            if isinstance(value, torch.Tensor):
                optimizer.state[parameter][key] = value.to(optimizer.state[parameter][key].device, copy=True)


def _check_weights(weights: dict[str, torch.Tensor], module: nn.Module) -> None:
    """Refuse weights that are not those of a trained network like the module."""
    expected = module.state_dict()
    if weights.keys() != expected.keys() or any(weights[name].shape != expected[name].shape for name in expected):
        raise ValueError("its weights are those of another network")
    for name, _ in module.named_parameters():
        if not weights[name].isfinite().all():
            raise ValueError(f"its weights {name!r} are not finite")


def _unsaved_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


# ---- callbacks -------------------------------------------------------------------------------------------------------


def stateful_attributes(net: NeuralNet) -> set[tuple[str, str]]:
    """(name of the callback, attribute) of the schedulers, averaged models and similar objects of callbacks."""
    return {(name, key) for name, callback in net.callbacks_ for key, value in vars(callback).items() if _loads(value)}


def _loads(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _callback_state(name: str, callback: Callback, early: set[tuple[str, str]] | None) -> dict[str, Any]:
    """A callback's attributes that are not parameters: its state.

    Functions and classes are left out, since the callback's code sets them again, and so are attributes that its
    ``__getstate__`` leaves out.
    """
    parameters = callback.get_params(deep=False)
    pickled = callback.__getstate__() or {}
    state = {}
    for key, value in vars(callback).items():
        if key in parameters or key not in pickled or isinstance(value, _CHOSEN_BY_CODE):
            continue
        if value is not None and any(value is given for given in parameters.values()):  # a logger's client, for example
            continue
        if isinstance(value, Callback):
            state[key] = _callback_state(name, value, None)
            continue
        if _loads(value):
            if early is not None and (name, key) not in early:
                _check_rebuilds(callback, key, value)
            value = _without_functions(value.state_dict())
        elif isinstance(value, set | frozenset):
            value = {_SET: sorted(value, key=repr)}
        try:
            encode(value, {}, name=f"{type(callback).__name__}.{key}")
        except TypeError as error:
            raise TypeError(
                f"{error} Therefore `checkpoint_dir` cannot resume the callback: let its `__getstate__` leave out "
                f"{key!r}, or fit with checkpoint_dir=None."
            ) from error
        state[key] = value
    return state


def _check_rebuilds(callback: Callback, key: str, value: Any) -> None:
    """Refuse objects that a resumed fit would not have; an average of the network can be rebuilt from the network."""
    if type(value) is AveragedModel and value.avg_fn is None and value.multi_avg_fn is None and not value.use_buffers:
        return
    raise TypeError(
        f"`{type(callback).__name__}.{key}` is a {type(value).__name__} that was created after training started, "
        "so `checkpoint_dir` cannot resume the callback: create it in `on_train_begin`, or fit with "
        "checkpoint_dir=None."
    )


def _without_functions(state: Any) -> Any:
    """A state dict without its functions, which the object's constructor sets again."""
    if isinstance(state, dict):
        return {key: _without_functions(v) for key, v in state.items() if not isinstance(v, _CHOSEN_BY_CODE)}
    return [_without_functions(item) for item in state] if type(state) is list else state


def _restore_callback(callback: Callback, state: dict[str, Any], module: nn.Module) -> None:
    for key, value in state.items():
        if key in callback.get_params(deep=False) or callable(getattr(type(callback), key, None)):
            raise ValueError(f"{key!r} of {type(callback).__name__} is not an attribute that a checkpoint may set")
        current = getattr(callback, key, None)
        if isinstance(current, Callback):
            _restore_callback(current, value, module)
        elif current is not None and _loads(current):
            current.load_state_dict(value)
        elif isinstance(value, dict) and "n_averaged" in value:
            average = AveragedModel(module)
            average.load_state_dict(value)
            setattr(callback, key, average)
        elif isinstance(value, dict) and _SET in value:
            setattr(callback, key, set(value[_SET]))
        else:
            if key == "best_model_weights_" and value is not None:  # skorch loads them when training ends
                _check_weights(value, module)
            setattr(callback, key, value)
