"""One measurement: a network and a batch made once, and every measure of the call run on them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .._validation import NotDefinedError, check_integer, closest
from ..graph import Network
from ..measures import MEASURES, Batch, Measure, Measured, measure_named
from .data import checked_X, encode_targets, resolve_loss, subsample
from .subject import Subject, resolve

__all__ = ["Request", "Session", "parse_measures"]

#: Networks up to this many parameters are measured in float64 whatever they were trained in.
FLOAT64_PARAMETERS = 20_000


@dataclass(frozen=True)
class Request:
    """One measure that was asked for, under the label of its result."""

    label: str
    measure: Measure
    params: Mapping[str, Any] = field(default_factory=dict)


def parse_measures(measures: Any) -> tuple[list[Request], bool]:
    """The requests in a `measures` argument, and whether they were named one by one.

    Parameters
    ----------
    measures : str, list of str, dict of label to name or (name, params), "cheap" or "all"

    Raises
    ------
    ValueError, TypeError
        For an unknown name (the closest is offered), an unknown parameter, or another type.
    """
    if isinstance(measures, str) and measures in ("cheap", "all"):
        chosen = [m for m in MEASURES.values() if measures == "all" or m.cheap]
        return [Request(m.name, m) for m in chosen], False
    if isinstance(measures, str):
        measures = [measures]
    if isinstance(measures, Mapping):
        items = [(label, *_named(entry)) for label, entry in measures.items()]
    elif isinstance(measures, list | tuple):
        items = [(_label(entry), *_named(entry)) for entry in measures]
    else:
        raise TypeError(
            '`measures` must be a name, a list of names, a dict {label: name or (name, params)}, "cheap" or "all", got '
            f"{measures!r}."
        )
    if not items:
        raise ValueError('`measures` must name at least one measure, got none. Use "cheap" for the default set.')
    labels = [label for label, _, _ in items]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"`measures` holds {twice!r} twice. Give each its own label with a dict.")
    return [_request(label, name, params) for label, name, params in items], True


def _label(entry: Any) -> str:
    if not isinstance(entry, str):
        raise TypeError(f"`measures` as a list must hold names, got {entry!r}. Use a dict to give parameters.")
    return entry


def _named(entry: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str):
        if isinstance(entry[1], Mapping):
            return entry[0], entry[1]
    raise TypeError(f"An entry of `measures` must be a name or (name, params), got {entry!r}.")


def _request(label: str, name: str, params: Mapping[str, Any]) -> Request:
    measure = measure_named(name)
    for key in params:
        if key not in measure.parameters:
            known = ", ".join(measure.parameters) or "none"
            hint = closest(key, measure.parameters)
            raise ValueError(f"Measure {name!r} has no parameter {key!r}. {hint + ' ' if hint else ''}It has: {known}.")
    return Request(label, measure, params)


class Session:
    """A model and data, ready to be measured.

    Parameters
    ----------
    model, X, y, loss, max_samples, batch_size, device, random_state
        As in `measure_capacity`.
    """

    def __init__(
        self,
        model: Any,
        X: Any = None,
        y: Any = None,
        *,
        loss: str | None = None,
        max_samples: int | None = None,
        batch_size: int | None = None,
        device: Any = None,
        random_state: int = 0,
        verbose: int = 0,
    ):
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        check_integer("random_state", random_state, 0, cure="A measurement is repeatable: give it an integer seed.")
        self.subject: Subject = resolve(model)
        if X is None and y is not None:
            raise ValueError("`y` was given without `X`.")
        if X is not None and y is not None and _length(X) != _length(y):
            raise ValueError(f"`X` and `y` must have the same length, got {_length(X)} and {_length(y)}.")
        if X is not None:
            X, y = subsample(X, y, max_samples, random_state)
            X = checked_X(self.subject, X)
        self.loss = resolve_loss(loss, self.subject, y)
        self.network = _network(self.subject, X, device)
        X_tensor, y_tensor = self._tensors(X, y)
        self.batch = Batch(
            self.network,
            X_tensor,
            y_tensor,
            loss=self.loss,
            random_state=random_state,
            batch_size=batch_size,
            verbose=verbose,
        )

    def _tensors(self, X: Any, y: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if X is None:
            return None, None
        network = self.network
        if not isinstance(X, torch.Tensor):
            X = torch.from_numpy(np.array(X, order="C"))
        X = X.to(device=network.device, dtype=network.dtype)
        if y is None:
            return X, None
        encoded = encode_targets(self.subject, y, self.loss, len(X), network.n_outputs)
        return X, torch.from_numpy(encoded).to(network.device)

    def renewed(self) -> Session:
        """This session after the weights of its network were changed in place: the trace is kept."""
        twin = copy.copy(self)
        twin.network = self.network.renewed()
        twin.batch = self.batch.renewed(twin.network)
        return twin

    def why_not(self, measure: Measure) -> str | None:
        """Why a measure cannot be taken here, as far as its record says."""
        task = "classification" if self.loss == "cross_entropy" else "regression"
        if self.loss is not None and task not in measure.tasks:
            return f"is defined for {measure.tasks[0]} only, and the loss is {self.loss!r}"
        if "loss" in measure.needs and self.loss is None:
            return f"needs a loss: pass loss= one of {', '.join(map(repr, ('cross_entropy', 'squared', 'absolute')))}"
        if "initial_state" in measure.needs and self.network.initial_state is None:
            return "needs the weights before training, which only estimators of this package keep"
        return None

    def run(self, request: Request) -> Measured:
        """The measured value, with its wall time in `info["seconds"]`.

        Raises
        ------
        NotDefinedError
            If the measure does not apply; the message names the reason.
        """
        reason = self.why_not(request.measure)
        if reason is not None:
            raise NotDefinedError(f"The measure {request.measure.name!r} {reason}.")
        start = time.perf_counter()
        measured = request.measure(self.network, self.batch, **request.params)
        if math.isnan(measured.value):
            raise NotDefinedError(
                f"The measure {request.measure.name!r} came out as nan. Check the weights and X for nan and inf. "
                "Did the training diverge?"
            )
        info = {**measured.info, "seconds": time.perf_counter() - start}
        return Measured(measured.value, measured.log_value, measured.standard_error, measured.per_layer, info)


def _length(data: Any) -> int:
    return data.shape[0] if hasattr(data, "shape") and len(data.shape) else len(data)


def _network(subject: Subject, X: Any, device: Any) -> Network:
    parameters = list(subject.module.parameters())
    floats = [p.dtype for p in parameters if p.is_floating_point()]
    small = sum(p.numel() for p in parameters) <= FLOAT64_PARAMETERS
    dtype = torch.float64 if small or not floats else floats[0]
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    shape = _input_shape(subject, X)
    network = Network(
        subject.module,
        shape,
        output=subject.output,
        initial_state=subject.initial_state,
        dtype=dtype,
        device=_checked_device(device),
    )
    _check_forward(network, shape)
    return network


def _checked_device(device: Any) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'`device` must be None or a device of torch such as "cpu", got {device!r}.') from error


def _check_forward(network: Network, shape: tuple[int, ...]) -> None:
    """One small pass now, so that data of a wrong shape are told as such and not by some operator inside."""
    try:
        n_outputs = network.n_outputs
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"The network failed on samples of shape {shape}, those of `X`: {error}") from error
    if n_outputs < 1:
        raise NotDefinedError("The network has no outputs.")


def _input_shape(subject: Subject, X: Any) -> tuple[int, ...]:
    if subject.input_shape is not None:
        return subject.input_shape
    if X is not None:
        return tuple(int(s) for s in X.shape[1:])
    for submodule in subject.module.modules():
        if isinstance(submodule, torch.nn.Linear):
            return (submodule.in_features,)
        if any(True for _ in submodule.parameters(recurse=False)):
            break
    raise NotDefinedError(
        f"The shape of one input of `{type(subject.module).__name__}` is not known without data. Pass X (one sample is "
        "enough for measures of the weights)."
    )
