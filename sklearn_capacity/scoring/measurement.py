"""One measurement: a network and a batch made once, and every measure of the call run on them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .._validation import NotDefinedError, check_integer, closest
from ..graph import Network
from ..measures import MEASURES, Batch, Measure, Measured, measure_named
from ..process_state import computing
from ..training import refuse_containers, resolve_device
from .data import LOSSES, checked_X, encode_targets, resolve_loss, subsample, with_classes
from .find_network import Subject, resolve
from .initial_state import checked_initial_state
from .probe import measurable, probe, torch_refusals

__all__ = ["Request", "Session", "is_group", "parse_measures"]

#: Networks up to this many parameters are measured in float64 whatever they were trained in.
FLOAT64_PARAMETERS = 20_000


@dataclass(frozen=True)
class Request:
    """One measure that was asked for, under the label of its result."""

    label: str
    measure: Measure
    params: Mapping[str, Any] = field(default_factory=dict)


def is_group(measures: Any) -> bool:
    """Whether a `measures` argument stands for all measures of a kind that apply."""
    return isinstance(measures, str) and measures in ("cheap", "all")


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
    if is_group(measures):
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
        if isinstance(measure.parameters[key], bool) and not isinstance(params[key], bool | np.bool_):
            raise TypeError(f"`{key}` must be True or False, got {params[key]!r}.")
    return Request(label, measure, params)


class Session:
    """A model and data, ready to be measured.

    Parameters
    ----------
    model, X, y, loss, initial_state, classes, max_samples, batch_size, device, random_state
        As in `measure_capacity`.
    """

    def __init__(
        self,
        model: Any,
        X: Any = None,
        y: Any = None,
        *,
        loss: str | None = None,
        initial_state: Any = None,
        classes: Any = None,
        max_samples: int | None = None,
        batch_size: int | None = None,
        device: Any = None,
        random_state: int = 0,
        verbose: int = 0,
    ):
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        seed = "A measurement is repeatable: give it an integer seed."
        check_integer("random_state", random_state, 0, 2**63 - 1, cure=seed)
        self.subject = resolve(model)
        self.subject = replace(self.subject, module=measurable(self.subject.module))
        if initial_state is not None:
            known = checked_initial_state(initial_state, self.subject.module)
            self.subject = replace(self.subject, initial_state=known)
        if classes is not None:
            self.subject = with_classes(self.subject, classes)
        if X is None and y is not None:
            raise ValueError("`y` was given without `X`.")
        refuse_containers(X, "measured")
        for name, data in (("X", X), ("y", y)):
            if data is not None and (not hasattr(data, "__len__") or getattr(data, "shape", None) == ()):
                raise ValueError(f"`{name}` must hold one entry per sample, got {data!r}.")
        if X is not None and y is not None and _length(X) != _length(y):
            raise ValueError(f"`X` and `y` must have the same length, got {_length(X)} and {_length(y)}.")
        if X is not None:
            X, y = subsample(X, y, max_samples, random_state)
            X = checked_X(self.subject, X)
        #: The loss that the call names, the default of every measure with a loss of its own.
        self.named_loss = loss
        self.loss, self.task = resolve_loss(loss, self.subject, y)
        if classes is not None and self.task == "regression":
            raise ValueError(f"`classes` must be None for regression, and the loss is {self.loss!r}; got {classes!r}.")
        #: What to add where the loss that the dtype of y stands for is the wrong one.
        self._loss_from_y = ""
        if loss is None and self.subject.loss is None and self.loss == "squared":
            self._loss_from_y = ', since `y` holds floats. For a classifier pass integers, or loss="cross_entropy"'
        with computing(), torch.inference_mode(False):  # where nothing can be differentiated
            self.network = _network(self.subject, X, self.task, device)
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
        X = X.clone() if X.is_inference() else X
        if y is None:
            return X, None
        encoded = encode_targets(self.subject, y, self.task, len(X), network.n_outputs)
        return X, torch.from_numpy(encoded).to(network.device)

    def renewed(self) -> Session:
        """The session after the weights of its network were changed in place: the trace is kept."""
        renewed = copy.copy(self)
        renewed.network = self.network.renewed()
        renewed.batch = self.batch.renewed(renewed.network)
        return renewed

    def why_not(self, measure: Measure) -> str | None:
        """Why a measure cannot be taken here, as far as its record says."""
        other = self.subject.other_loss
        if self.task is not None and self.task not in measure.tasks:
            return f"is defined for {measure.tasks[0]} only, and the loss is {self.loss or other!r}{self._loss_from_y}"
        if "loss" in measure.needs and self.loss is None:
            but = "" if other is None else f", and is not defined for the model's own, {other!r}"
            return f"needs a loss{but}: pass loss= one of {', '.join(map(repr, LOSSES))}"
        if "initial_state" in measure.needs and self.network.initial_state is None:
            return "needs the weights before training: pass initial_state=, the module or its state dict as it was then"
        return None

    def parameters(self, request: Request) -> dict[str, Any]:
        """The parameters that a measure is called with: its own, and the loss of the call where it has none."""
        if self.named_loss is not None and "loss" in request.measure.parameters:
            return {"loss": self.named_loss, **request.params}
        return dict(request.params)

    def loss_of(self, request: Request) -> str:
        """The loss that a measure is taken under; empty for one that needs none."""
        defaults = request.measure.parameters
        if "loss" in defaults:
            return str(self.parameters(request).get("loss", defaults["loss"]))
        return self.loss or "" if "loss" in request.measure.needs else ""

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
        with computing(), torch.inference_mode(False), torch_refusals(f"The measure {request.measure.name!r}"):
            measured = request.measure(self.network, self.batch, **self.parameters(request))
        if math.isnan(measured.value):
            raise NotDefinedError(
                f"The measure {request.measure.name!r} is not a number here: weights, logits or derivatives of the "
                "network are not finite on these data."
            )
        info = {**measured.info, "seconds": time.perf_counter() - start}
        return Measured(measured.value, measured.log_value, measured.standard_error, measured.per_layer, info)


def _length(data: Any) -> int:
    return data.shape[0] if hasattr(data, "shape") and len(data.shape) else len(data)


def _network(subject: Subject, X: Any, task: str | None, device: Any) -> Network:
    device = None if device is None else resolve_device(device)
    floats = [p.dtype for p in subject.module.parameters() if p.is_floating_point()]
    small = sum(p.numel() for p in subject.module.parameters()) <= FLOAT64_PARAMETERS
    own = floats[0] if floats else torch.float64
    if own in (torch.float16, torch.bfloat16):
        own = torch.float32
    shape = _input_shape(subject, X)
    # To add a number to all logits changes nothing for a classifier, only.
    output = "log_probabilities" if subject.output == "logits" and task != "regression" else subject.output

    def made(dtype: torch.dtype) -> Network:
        network = Network(
            subject.module,
            shape,
            output=output,
            initial_state=subject.initial_state,
            dtype=dtype,
            device=device,
        )
        probe(network, X, task)
        return network

    if not small or own == torch.float64:
        return made(own)
    try:
        return made(torch.float64)
    except NotDefinedError:
        raise
    except ValueError:  # perhaps since the forward pass itself casts to another dtype
        return made(own)


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
