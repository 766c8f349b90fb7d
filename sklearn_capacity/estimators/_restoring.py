"""A fitted estimator from its parameters, attributes and tensors, without training and without trust in them."""

from __future__ import annotations

import contextlib
import math
import numbers
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from skorch.history import History
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sklearn_capacity._validation import warn
from sklearn_capacity.training import PenalizedNet, resolve_device, seeded

__all__ = ["Restoring", "as_history"]

#: what every fitted estimator has beside its network
REQUIRED = ("input_shape_", "n_features_in_", "n_iter_", "n_samples_fit_", "loss_name_", "_dtype", "_n_outputs")
#: among all attributes, those that count something
WHOLE = ("n_features_in_", "n_iter_", "n_samples_fit_", "_n_outputs", "_seed", "_n_runs")
#: a module may make some parameters only to throw them away
_SLACK, _SMALL, _FEW = 4, 1_000_000, 1000


class Restoring:
    """The half of the estimators that puts a saved network back."""

    net_: PenalizedNet
    device: Any
    input_shape_: tuple[int, ...]
    _dtype: np.dtype
    _n_outputs: int
    _make_module: Any
    _net_around: Any
    _update_callbacks: Any

    def _restore(
        self,
        attributes: Mapping[str, Any],
        state: Mapping[str, Tensor],
        initial_state: Mapping[str, Tensor],
        history: list[dict[str, Any]],
    ) -> None:
        """Become the fitted estimator with these attributes and weights.

        Raises
        ------
        ValueError
            If something is missing, does not fit the parameters, or is not finite.
        """
        self._restore_attributes(attributes)
        device = self._usable_device()
        dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype
        with seeded(0, torch.device("cpu")), _at_most(len(state), sum(t.numel() for t in state.values())):
            module = self._make_module(self.input_shape_, self._n_outputs).to(dtype=dtype)
        _load(module, state)
        _check_state(initial_state, state, "initial state")
        self.initial_state_ = {name: tensor.clone() for name, tensor in initial_state.items()}
        net = self._net_around(module.to(device), device)
        net.history = as_history(history)
        self._update_callbacks(net)
        self.net_ = net

    def _restore_attributes(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            if not name.isidentifier() or hasattr(type(self), name):
                raise ValueError(f"the fitted attribute {name!r} is none of {type(self).__name__}")
            setattr(self, name, value)
        wanted = [*REQUIRED, *(["classes_"] if hasattr(self, "predict_proba") else [])]
        missing = [name for name in wanted if name not in attributes]
        if missing:
            raise ValueError(f"the fitted attributes {missing} are missing")
        for name in WHOLE:
            value = attributes.get(name, 0)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 0:
                raise ValueError(f"`{name}` is {value!r}, no whole number")
        shape = self.input_shape_
        if not (isinstance(shape, tuple) and shape and all(type(n) is int and n > 0 for n in shape)):
            raise ValueError(f"`input_shape_` is {shape!r}, not a tuple of positive integers")
        if attributes["n_features_in_"] != math.prod(shape):
            raise ValueError(f"`n_features_in_` is {attributes['n_features_in_']!r}, but samples have shape {shape}")
        if self._dtype not in (np.float32, np.float64):
            raise ValueError(f"the precision is {self._dtype!r}, neither float32 nor float64")
        for name, size in (("classes_", self._n_outputs), ("feature_names_in_", math.prod(shape))):
            value = attributes.get(name)
            if name in attributes and not (isinstance(value, np.ndarray) and value.shape == (size,)):
                got = getattr(value, "shape", type(value).__name__)
                raise ValueError(f"`{name}` must be an array of shape ({size},), got {got}")

    def _usable_device(self) -> torch.device:
        try:
            return resolve_device(self.device)
        except ValueError as error:
            warn(f"{error} The network is put on the CPU.")
            return torch.device("cpu")


def as_history(rows: list[dict[str, Any]]) -> History:
    """skorch's History of epochs, without entries per batch."""
    history = History()
    history.extend({**row, "batches": []} for row in rows)  # `record` takes time that grows with the history
    return history


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = {name: t for name, t in module.state_dict().items() if not nn.parameter.is_lazy(t)}
    lazy = set(module.state_dict()) - set(own)
    _check_state({name: t for name, t in state.items() if name not in lazy}, own, "network")
    for name, tensor in state.items():
        limit = torch.isnan(tensor) if name in dict(module.named_buffers()) else ~torch.isfinite(tensor)
        if limit.any():
            raise ValueError(f"the weights {name!r} are not finite")
    module.load_state_dict(dict(state))
    module.eval()


def _check_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Names, shapes and precisions of a state against those of another."""
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing:
        raise ValueError(f"the {what} lacks the tensors {missing[:3]}{'...' * (len(missing) > 3)}")
    if extra:
        raise ValueError(f"the {what} has no place for the tensors {extra[:3]}{'...' * (len(extra) > 3)}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} in place of {tuple(tensor.shape)}"
            raise ValueError(f"the {what}'s tensor {name!r} has shape {shapes}")
        if state[name].dtype != tensor.dtype:
            raise ValueError(f"the {what}'s tensor {name!r} is {state[name].dtype} in place of {tensor.dtype}")


@contextlib.contextmanager
def _at_most(n_tensors: int, n_saved: int) -> Iterator[None]:
    """Stop a module under construction that outgrows the weights which it is made for.

    So a short file that asks for a network of a billion weights, or of a million layers, costs nothing: parameters
    are refused as they are registered, before anything writes to their memory.
    """
    thread, n_made, made = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal n_made, made
        if threading.get_ident() != thread or parameter is None or nn.parameter.is_lazy(parameter):
            return
        n_made += 1
        made += parameter.numel()
        if made > _SLACK * n_saved + _SMALL or n_made > _SLACK * n_tensors + _FEW:
            raise ValueError(f"the parameters describe a network larger than the {n_saved} saved weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a single allocation that cannot be met
        raise ValueError(f"the parameters describe a network that cannot be made: {error}") from error
    finally:
        handle.remove()
