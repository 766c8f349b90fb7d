"""The weights before training: passed with a model, or stored by a callback of a skorch net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from .probe import is_hollow, measurable

__all__ = ["InitialStateCallback", "checked_initial_state"]


class InitialStateCallback(Callback):
    """Store the initial weights of a skorch net's training.

    Measures of the distance from them, such as `distance_from_initialization`, are then defined for the net. The
    estimators of this package store these weights without the callback, as ``initial_state_``.

    Attributes
    ----------
    initial_state_ : dict of str to Tensor
        A copy of the module's state before the first epoch since the net was initialized; `partial_fit` keeps
        the same copy.

    See Also
    --------
    CapacityCallback : Measures after each epoch.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetClassifier
    >>> from sklearn_capacity import InitialStateCallback, measure_capacity
    >>> X, y = np.eye(4, dtype="float32").repeat(5, 0), np.arange(4).repeat(5)
    >>> net = NeuralNetClassifier(torch.nn.Linear, module__in_features=4, module__out_features=4, verbose=0,
    ...                           criterion=torch.nn.CrossEntropyLoss, callbacks=[InitialStateCallback()])
    >>> measure_capacity(net.fit(X, y), measures="distance_from_initialization")["distance_from_initialization"] > 0
    True
    """

    def initialize(self) -> InitialStateCallback:
        self.__dict__.pop("initial_state_", None)
        return self

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if not hasattr(self, "initial_state_"):
            state = measurable(net.module_).state_dict()
            self.initial_state_ = {name: tensor.detach().clone() for name, tensor in state.items()}


def checked_initial_state(initial_state: Any, module: nn.Module) -> dict[str, Tensor]:
    """The initial tensors by their names in `module`.

    Parameters
    ----------
    initial_state : nn.Module or mapping of str to Tensor
    module : nn.Module
        The trained module.

    Raises
    ------
    TypeError, ValueError
        If it is not a state, or that of another module: the message names a tensor that is missing, unexpected or
        of another shape.
    """
    if isinstance(initial_state, nn.Module):
        initial_state = measurable(initial_state).state_dict()
    if not isinstance(initial_state, Mapping):
        raise TypeError(
            f"`initial_state` must be the module before training or its state dict, got {type(initial_state).__name__}."
        )
    known = _tensors(module.state_dict())
    state = {name: value.detach() if isinstance(value, Tensor) else value for name, value in initial_state.items()}
    foreign = [name for name in state if name not in known and isinstance(state[name], Tensor)]
    for name, tensor in known.items():
        initial = state.get(name)
        if not isinstance(initial, Tensor):
            got = "has no such tensor" if initial is None else f"has a {type(initial).__name__} there"
            hint = f"; it has `{foreign[0]}`" if foreign else ""
            raise ValueError(f"`initial_state` must contain `{name}` of the trained module, but {got}{hint}.")
        if is_hollow(initial):
            raise ValueError(f"`initial_state` must have values, and its `{name}` is on the meta device, without any.")
        if initial.shape != tensor.shape:
            raise ValueError(
                f"`initial_state` must match the trained module: its `{name}` has shape {tuple(initial.shape)}, that "
                f"of the module {tuple(tensor.shape)}."
            )
    if foreign:
        raise ValueError(f"`initial_state` must not contain `{foreign[0]}`, which the trained module does not have.")
    return {name: state[name] for name in known}


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
