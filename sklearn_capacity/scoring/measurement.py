"""One measurement: a network and a batch created once, on which all measures of the call run."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .._validation import NotDefinedError, check_integer, refuse_containers, shown
from ..graph import Network
from ..measures import MEASURES, Batch, Measure, Measured
from ..measures.memory import Budget, parse_bytes
from ..process_state import computing
from ..training import resolve_device
from .data import LOSSES, checked_X, encode_targets, refuse_hollow, resolve_loss, subsample, with_classes
from .find_network import Subject, resolve
from .initial_state import checked_initial_state
from .probe import measurable, probe, torch_refusals
from .requests import Request

__all__ = ["Session"]

#: Networks up to this many parameters are measured in float64 regardless of the precision they were trained in.
FLOAT64_PARAMETERS = 20_000


class Session:
    """A model and data, ready to be measured.

    Parameters
    ----------
    model, X, y, loss, initial_state, classes, max_samples, batch_size, max_memory, device, random_state
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
        max_memory: int | str | None = None,
        device: Any = None,
        random_state: int = 0,
        verbose: int = 0,
    ):
        self.started = time.perf_counter()
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        if max_memory is not None:
            max_memory = parse_bytes(max_memory)
        seed = "Measurements must be reproducible: pass an integer seed."
        check_integer("random_state", random_state, 0, 2**63 - 1, cure=seed)
        self.subject = _subject(model, initial_state, classes)
        _check_lengths(X, y)
        if X is not None:
            X, y = subsample(X, y, max_samples, random_state)
            X = checked_X(self.subject, X)
        #: The loss named in the call, the default of every measure with a parameter `loss`.
        self.named_loss = loss
        self.loss, self.task = resolve_loss(loss, self.subject, y)
        if classes is not None and self.task == "regression":
            raise ValueError(
                f"`classes` must be None for regression (the loss is {self.loss!r}), got {shown(classes)}."
            )
        #: A hint for messages where the loss was inferred from the dtype of y.
        self._loss_from_y = ""
        if loss is None and self.subject.loss is None and self.loss == "squared":
            self._loss_from_y = ', since `y` has floats. For a classifier pass integers, or loss="cross_entropy"'
        with computing(), torch.inference_mode(False):  # inference mode would forbid differentiation
            self.network = _network(self.subject, X, self.task, device)
            budget = Budget(max_memory, self.network.device)
            X_tensor, y_tensor = self._tensors(X, y)
        self.batch = Batch(
            self.network,
            X_tensor,
            y_tensor,
            loss=self.loss,
            random_state=random_state,
            batch_size=batch_size,
            verbose=verbose,
            budget=budget,
        )

    def _tensors(self, X: Any, y: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if X is None:
            return None, None
        network = self.network
        if not isinstance(X, torch.Tensor):
            dtype = np.float64 if network.dtype == torch.float64 else None  # one copy, not two
            X = torch.from_numpy(np.array(X, dtype, order="C"))
        X = X.to(device=network.device, dtype=network.dtype)
        X = X.clone() if X.is_inference() else X
        if y is None:
            return X, None
        encoded = encode_targets(self.subject, y, self.task, len(X), network.n_outputs)
        return X, torch.from_numpy(encoded).to(network.device)

    def renewed(self) -> Session:
        """The session after an in-place change of the network's weights; the trace is reused."""
        renewed = copy.copy(self)
        renewed.network = self.network.renewed()
        renewed.batch = self.batch.renewed(renewed.network)
        return renewed

    def why_not(self, measure: Measure) -> str | None:
        """Why a measure cannot be computed here, judged by its record; None if nothing speaks against it."""
        other = self.subject.other_loss
        if self.task is not None and self.task not in measure.tasks:
            return f"is defined for {measure.tasks[0]} only, and the loss is {self.loss or other!r}{self._loss_from_y}"
        if "loss" in measure.needs and self.loss is None:
            but = "" if other is None else f" and is not defined for the model's own loss, {other!r}"
            return f"needs a loss{but}. Set `loss` to one of {', '.join(map(repr, LOSSES))}"
        if "initial_state" in measure.needs and self.network.initial_state is None:
            return "needs the weights before training: pass the untrained module or its state dict as `initial_state`"
        return None

    def unexpected(self, error: Exception, request: Request) -> bool:
        """Whether a measure of a group has no value for another reason than its task, or what the call did not give."""
        measure = request.measure
        return not isinstance(error, NotDefinedError) or not (self._lacks_data(measure) or self.why_not(measure))

    def _lacks_data(self, measure: Measure) -> bool:
        """Whether the call has not given the data or the labels that a measure needs."""
        without_data = "data" in measure.needs and not self.batch.has_samples
        return without_data or ("labels" in measure.needs and not self.batch.has_labels)

    def parameters(self, request: Request) -> dict[str, Any]:
        """The parameters of a request, with the call's loss as default of a parameter `loss`."""
        if self.named_loss is not None and "loss" in request.measure.parameters:
            return {"loss": self.named_loss, **request.params}
        return dict(request.params)

    def loss_of(self, request: Request) -> str:
        """The loss under which a measure is computed; empty if it needs none."""
        defaults = request.measure.parameters
        if "loss" in defaults:
            return str(self.parameters(request).get("loss", defaults["loss"]))
        return self.loss or "" if "loss" in request.measure.needs else ""

    def run(self, request: Request, log: bool = False) -> Measured:
        """The measured value, with its wall time in `info["seconds"]`.

        Parameters
        ----------
        request : Request
        log : bool, default=False
            Whether the logarithm of the value is required.

        Raises
        ------
        NotDefinedError
            If the measure does not apply; the message gives the reason.
        """
        start = time.perf_counter()
        measured = self.measured(request)
        if math.isnan(measured.value):
            if MEASURES.get(request.measure.name) is not request.measure:
                raise NotDefinedError(
                    f"The measure {request.measure.name!r} returned nan. Where the measure is not defined, its "
                    "function must raise a `NotDefinedError` that says why."
                )
            reason = (
                "is not a number here: the weights, logits or derivatives of the network are not finite on these data."
            )
            raise NotDefinedError(f"The measure {request.measure.name!r} {reason}", reason=reason)
        if log and measured.log_value is None and measured.value < 0:
            raise NotDefinedError(
                f"The measure {request.measure.name!r} is {measured.value:g}, and a negative number has no logarithm."
            )
        info = {**measured.info, "seconds": time.perf_counter() - start}
        return Measured(measured.value, measured.log_value, measured.standard_error, measured.per_layer, info)

    def measured(self, request: Request) -> Measured:
        """The value that a measure returns, possibly nan."""
        reason = self.why_not(request.measure)
        if reason is not None:
            raise NotDefinedError(f"The measure {request.measure.name!r} {reason}.", reason=f"{reason}.")
        with computing(), torch.inference_mode(False), torch_refusals(f"The measure {request.measure.name!r}"):
            parameters = self.parameters(request)
            self._check_room(request.measure, parameters)
            return request.measure(self.network, self.batch, **parameters)

    def most_passes(self, request: Request) -> dict[Hashable, float] | None:
        """Upper bounds of the passes over the data by part, empty for a measure that is refused; None if not known."""
        measure = request.measure
        if self._lacks_data(measure) or self.why_not(measure) is not None:
            return {}
        try:
            with computing(), torch.inference_mode(False):
                return measure.most_passes(request.label, self.network, self.batch, self.parameters(request))
        except (NotDefinedError, TypeError, ValueError):  # which the measure raises, too
            return {}

    def _check_room(self, measure: Measure, parameters: dict[str, Any]) -> None:
        """Raise beforehand where a measure would go beyond the memory that the call may take."""
        reason = self.batch.budget.refusal(self.batch.held + measure.memory.bytes(self.network, self.batch, parameters))
        if reason is not None:
            reason += ". Measure fewer samples, or allow it more."
            raise NotDefinedError(f"The measure {measure.name!r} {reason}", reason=reason)


def _subject(model: Any, initial_state: Any, classes: Any) -> Subject:
    """The model with what the call says of it."""
    subject = resolve(model)
    subject = replace(subject, module=measurable(subject.module))
    if initial_state is not None:
        subject = replace(subject, initial_state=checked_initial_state(initial_state, subject.module))
    return subject if classes is None else with_classes(subject, classes)


def _check_lengths(X: Any, y: Any) -> None:
    """Raise unless X and y have one entry for each of the same samples."""
    if X is None and y is not None:
        raise ValueError("`X` must be given together with `y`, got only `y`.")
    refuse_containers(X, "measured")
    for name, data in (("X", X), ("y", y)):
        refuse_hollow(name, data)
        if data is not None and (not hasattr(data, "__len__") or getattr(data, "shape", None) == ()):
            raise ValueError(f"`{name}` must have one entry per sample, got {shown(data)}.")
    if X is not None and y is not None and _length("X", X) != _length("y", y):
        raise ValueError(f"`X` and `y` must have the same length, got {_length('X', X)} and {_length('y', y)}.")


def _length(name: str, data: Any) -> int:
    try:
        return data.shape[0] if hasattr(data, "shape") and len(data.shape) else len(data)
    except AttributeError:  # such as the length of an ensemble that is not fitted
        raise TypeError(f"`{name}` must be an array or tensor, got a {type(data).__name__}.") from None


def _network(subject: Subject, X: Any, task: str | None, device: Any) -> Network:
    device = None if device is None else resolve_device(device)
    floats = [p.dtype for p in subject.module.parameters() if p.is_floating_point()]
    small = sum(p.numel() for p in subject.module.parameters()) <= FLOAT64_PARAMETERS
    stored = floats[0] if floats else torch.float64
    if stored in (torch.float16, torch.bfloat16):
        stored = torch.float32
    shape = _input_shape(subject, X)
    samples = None if X is None else X[:3] if isinstance(X, torch.Tensor) else torch.from_numpy(np.array(X[:3]))
    # Only for a classifier does adding a constant to all logits change nothing.
    output = "log_probabilities" if subject.output == "logits" and task != "regression" else subject.output

    def network_in(dtype: torch.dtype) -> Network:
        network = Network(
            subject.module,
            shape,
            output=output,
            initial_state=subject.initial_state,
            dtype=dtype,
            device=device,
            samples=samples,
        )
        probe(network, X, task)
        return network

    if not small or stored == torch.float64:
        return network_in(stored)
    try:
        return network_in(torch.float64)
    except NotDefinedError:
        raise
    except ValueError:  # the forward pass may itself cast to another dtype
        return network_in(stored)


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
