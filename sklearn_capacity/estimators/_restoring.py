"""A fitted estimator from its parameters, attributes and tensors, without training and without trusting the file."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.history import History
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sklearn_capacity._validation import check_seed, warn
from sklearn_capacity.estimators._attributes import IMAGES_LAST, OPTIONAL
from sklearn_capacity.process_state import uninterrupted
from sklearn_capacity.training import resolve_device, seeded

if TYPE_CHECKING:
    from sklearn_capacity.estimators._base import BaseNetwork

__all__ = ["as_history", "restore"]

#: largest sample (in values) for a run that only reveals the network's structure; a larger one is suspect
MAX_DUMMY_SAMPLE = 2**20
#: entries of the history that callbacks and reports compute with
LOSSES = ("train_loss", "train_penalty", "valid_loss", "dur", "train_batch_count", "valid_batch_count")
#: allowance for parameters that a module creates and discards
_SLACK, _SMALL, _FEW = 4, 1_000_000, 1000


def restore(
    estimator: BaseNetwork,
    attributes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    initial_state: Mapping[str, Tensor],
    history: list[dict[str, Any]],
) -> None:
    """Set these fitted attributes and weights on an estimator whose parameters are already set.

    Raises
    ------
    ValueError
        If something is missing, does not match the parameters, or is not finite.
    """
    check_seed("random_state", estimator.random_state)
    images_last: bool | None = _restore_attributes(estimator, attributes)
    _check_history(history, estimator.n_iter_)
    device = _usable_device(estimator.device)
    module = _module_like(estimator, state)
    _load(module, state)
    _check_state(initial_state, state, "initial state")
    _check_finite(initial_state, module, "initial weights")
    estimator.initial_state_ = {name: tensor.clone() for name, tensor in initial_state.items()}
    if _is_built_in(estimator) or math.prod(estimator.input_shape_) > MAX_DUMMY_SAMPLE:
        images_last = images_last and device.type == "cpu" and len(estimator.input_shape_) == 3
    else:
        images_last = None  # only a run of the user's module shows it
    net = estimator._net_around(module.to(device), device, images_last)
    net.history = as_history(history)
    estimator._renew_callbacks(net)
    estimator.net_ = net


def _restore_attributes(estimator: BaseNetwork, attributes: Mapping[str, Any]) -> bool:
    """Set the attributes that pass their checks; returns whether images were stored with channels last."""
    allowed = estimator._fitted_attributes
    foreign = [name for name in attributes if name not in (*allowed, IMAGES_LAST)]
    if foreign:
        raise ValueError(f"the fitted attribute {foreign[0]!r} does not belong to {type(estimator).__name__}")
    missing = [name for name in allowed if name not in attributes and name not in OPTIONAL]
    if missing:
        raise ValueError(f"the fitted attributes {missing} are missing")
    images_last = attributes.get(IMAGES_LAST, False)
    if type(images_last) is not bool:
        raise ValueError(f"`{IMAGES_LAST}` must be true or false, got {images_last!r}")
    for name, check in allowed.items():
        if name in attributes:
            check(name, attributes[name], attributes)
            setattr(estimator, name, attributes[name])
    return images_last


def _is_built_in(estimator: BaseNetwork) -> bool:
    return estimator.module is None or isinstance(estimator.module, str)


def _module_like(estimator: BaseNetwork, state: Mapping[str, Tensor]) -> nn.Module:
    """The network, before its weights are put back.

    A built-in one is first built on the meta device, so that finding the place of a generalization layer does not
    run a sample through real layers.
    """
    dtype = torch.from_numpy(np.empty(0, estimator._dtype)).dtype
    saved = len(state), sum(t.numel() for t in state.values())
    if _is_built_in(estimator):

        def on_meta() -> nn.Module:
            with _at_most(*saved), torch.device("meta"):
                return estimator._make_module(estimator.input_shape_, estimator._n_outputs).to(dtype=dtype)

        # In another thread, since an interrupt would keep the context of a device from ending.
        with seeded(0, torch.device("cpu")):
            module = uninterrupted(on_meta)
        _check_state(state, module.state_dict(), "network")
        return module.to_empty(device="cpu")
    if getattr(estimator, "position", None) is not None and math.prod(estimator.input_shape_) > MAX_DUMMY_SAMPLE:
        raise ValueError(
            f"`input_shape_` is {estimator.input_shape_}, and inserting a layer at a `position` of your module would "
            f"require running it on a sample of more than {MAX_DUMMY_SAMPLE} values"
        )
    with seeded(0, torch.device("cpu")), _at_most(*saved):
        return estimator._make_module(estimator.input_shape_, estimator._n_outputs).to(dtype=dtype)


def _usable_device(wanted: Any) -> torch.device:
    try:
        return resolve_device(wanted)
    except ValueError as error:
        warn(f"{error} The network is loaded on the CPU.")
        return torch.device("cpu")


def _check_history(rows: list[dict[str, Any]], n_epochs: int) -> None:
    """Check that there is one entry per trained epoch, numbered in order, with numeric losses."""
    if len(rows) != n_epochs:
        raise ValueError(f"the history has {len(rows)} epochs, but `n_iter_` is {n_epochs}")
    for number, row in enumerate(rows, 1):
        if type(row.get("epoch")) is not int or row["epoch"] != number:
            raise ValueError(f"epoch {number} of the history has the number {row.get('epoch')!r}")
        for key, value in row.items():
            if not isinstance(key, str):
                raise ValueError(f"epoch {number} of the history has an entry {key!r}, which is not a name")
            if key in LOSSES and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"`{key}` of epoch {number} in the history must be a number, got {value!r}")


def as_history(rows: list[dict[str, Any]]) -> History:
    """The epochs as a skorch History without entries per batch."""
    history = History()
    history.extend({**row, "batches": []} for row in rows)  # `record` slows down as the history grows
    return history


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = {name: t for name, t in module.state_dict().items() if not nn.parameter.is_lazy(t)}
    lazy = set(module.state_dict()) - set(expected)
    _check_state({name: t for name, t in state.items() if name not in lazy}, expected, "network")
    _check_finite(state, module, "weights")
    module.load_state_dict(dict(state))
    module.eval()


def _check_finite(state: Mapping[str, Tensor], module: nn.Module, what: str) -> None:
    """Refuse NaN everywhere, and infinities except in buffers, where a mask may contain them."""
    buffers = dict(module.named_buffers())
    for name, tensor in state.items():
        if (torch.isnan(tensor) if name in buffers else ~torch.isfinite(tensor)).any():
            raise ValueError(f"the {what} {name!r} are not finite")


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Names, shapes and precisions of a state must equal those of another."""
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing:
        raise ValueError(f"the {what} lacks the tensors {missing[:3]}{'...' * (len(missing) > 3)}")
    if extra:
        raise ValueError(f"the {what} has the unexpected tensors {extra[:3]}{'...' * (len(extra) > 3)}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            raise ValueError(f"the {what}'s tensor {name!r} has shape {shapes}")
        if state[name].dtype != tensor.dtype:
            raise ValueError(f"the {what}'s tensor {name!r} is {state[name].dtype} instead of {tensor.dtype}")


@contextlib.contextmanager
def _at_most(n_tensors: int, n_saved: int) -> Iterator[None]:
    """Stop the construction of a module that becomes larger than the weights saved for it.

    A short file that asks for a network of a billion weights, or of a million layers, then costs nothing: parameters
    are refused as they are registered, before anything writes to their memory.
    """
    thread, n_created, n_values = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal n_created, n_values
        if threading.get_ident() != thread or parameter is None or nn.parameter.is_lazy(parameter):
            return
        n_created += 1
        n_values += parameter.numel()
        if n_values > _SLACK * n_saved + _SMALL or n_created > _SLACK * n_tensors + _FEW:
            raise ValueError(f"the parameters describe a network larger than the {n_saved} saved weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a single allocation that is too large
        raise ValueError(f"the parameters describe a network that cannot be built: {error}") from error
    finally:
        handle.remove()
