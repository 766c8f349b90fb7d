"""Checks on small networks of the requirements that every measure must meet, built in or a user's own."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validation import NotDefinedError, shown
from ..graph import Network
from ..measures import Batch, Measure, Measured
from .example_networks import Example, examples
from .measure_invariances import ROUNDING, check_invariances, close
from .measurement import Session
from .requests import Request, parse_measures

__all__ = ["check_measure", "check_on"]

#: Accepted relative differences between iterations from different start vectors, and between double and single
#: precision.
START, SINGLE = 1e-6, 1e-4
#: Python's global generator, as error messages name it.
PYTHON = "the random numbers of Python, in the process"


def check_measure(
    measure: Measure | Callable[..., Any] | str,
    model: Any = None,
    X: Any = None,
    y: Any = None,
    *,
    params: Mapping[str, Any] | None = None,
) -> None:
    """Check that a measure has the properties that its record declares and those required of every measure.

    It must return a number, return the same number twice for one seed, and leave the network, the data and the global
    random numbers unchanged. Unless it is stochastic, its value must not depend on the seed, on the batch size or on
    the order of the samples, and must agree in single precision up to rounding. A `Measure` must declare if values may
    be negative, and must declare its invariances exactly: those it declares hold, and the others do not.

    Parameters
    ----------
    measure : Measure, function or str
        A function declares nothing, so neither its sign nor its invariances are checked.
    model, X, y : default=None
        A network and data as in `measure_capacity`, to be tested as well. Without them, the measure is tested on a
        rectifier network without biases, a convolutional one with batch norm, a tanh network, and a regression. Where
        the measure raises a `NotDefinedError` it is not checked, but it must be defined for at least one of them.
    params : dict, default=None
        Parameters to pass to the measure.

    Raises
    ------
    TypeError or ValueError
        The message states the requirement, the result and the network.

    See Also
    --------
    Measure : The record that declares the properties checked here.
    penalties.check_penalty : The same for a penalty.

    Notes
    -----
    The cost is about ten evaluations on each network. Invariances are checked on the network without biases.

    Examples
    --------
    >>> from sklearn_capacity import Measure, check_measure
    >>> def largest_weight(network, batch):
    ...     return max(float(p.abs().max()) for p in network.parameters.values())
    >>> check_measure(Measure("largest_weight", largest_weight, invariances={"permutation"}))
    >>> check_measure(Measure("largest_weight", largest_weight))
    Traceback (most recent call last):
        ...
    ValueError: `largest_weight` must declare the invariance 'permutation', which it has: ...
    """
    function = callable(measure) and not isinstance(measure, Measure)
    label = getattr(measure, "__name__", "measure") if function else ""
    measures: Any = {label: (measure, params or {})} if function else measure
    if not function:
        measures = {getattr(measure, "name", measure): (measure, params or {})}
    (request,), _ = parse_measures(measures)
    reasons = []
    for example in [*examples(), *_of_user(model, X, y)]:
        (reason,) = check_on([request], example, declared=not function)
        reasons.append(None if reason is None else f"on {example.name}: {reason}")
    if None not in reasons:
        raise ValueError(f"`{request.label}` must be defined for at least one of the networks, but is not {reasons[0]}")
    if not function:
        check_invariances([request])


def _of_user(model: Any, X: Any, y: Any) -> Iterator[Example]:
    if model is not None:
        yield Example("your network", model, X, y)


# -- on one network ----------------------------------------------------------------------------------------------------


def check_on(requests: Sequence[Request], example: Example, *, declared: bool = True) -> list[str | None]:
    """Check several measures on one network.

    Returns
    -------
    list of str or None
        For each measure, why it is not defined for this network.
    """
    session = example.session()
    results: list[Measured | str] = []
    for request in requests:
        try:
            results.append(_untouched(session, request, example))
        except NotDefinedError as error:
            results.append(str(error))
    values = {r.label: m for r, m in zip(requests, results, strict=True) if isinstance(m, Measured)}
    defined = [request for request in requests if request.label in values]
    for request in defined:
        _check_result(request, values[request.label], example.name, declared)
    _check_same(session.renewed(), defined, values, 0.0, f"twice for one seed on {example.name}")
    steady = [request for request in defined if not request.measure.stochastic]
    seeded = f"for two seeds on {example.name}, or declare stochastic=True"
    _check_same(_with_batch(session, random_state=1), steady, values, START, seeded)
    if session.batch.has_samples:
        for batch, what in (
            (_with_batch(session, batch_size=2), "with two samples at once"),
            (_with_batch(session, order=True), "in another order of the samples"),
        ):
            _check_same(batch, steady, values, ROUNDING, f"{what} on {example.name}")
    _check_same(_in_single(session), steady, values, SINGLE, f"in single precision on {example.name}")
    return [result if isinstance(result, str) else None for result in results]


def _with_batch(
    session: Session, *, batch_size: int | None = None, random_state: int = 0, order: bool = False
) -> Session:
    """The session without cached results, with the samples batched or ordered differently."""
    other, batch = session.renewed(), session.batch
    X, y = (batch.X if batch.has_samples else None), (batch.y if batch.has_labels else None)
    if order and X is not None:
        turned = torch.randperm(len(X), generator=torch.Generator().manual_seed(0), device="cpu").to(X.device)
        X, y = X[turned], None if y is None else y[turned]
    options: dict[str, Any] = {"loss": batch.loss, "batch_size": batch_size, "random_state": random_state}
    other.batch = Batch(other.network, X, y, **options)
    return other


def _in_single(session: Session) -> Session:
    """The session in float32 (small networks are otherwise measured in float64)."""
    other, network = session.renewed(), session.network
    other.network = Network(
        network.users_module,
        network.input_shape,
        output=network.output,
        initial_state=network.initial_state,
        dtype=torch.float32,
    )
    batch = session.batch
    X, y = (batch.X.float() if batch.has_samples else None), (batch.y if batch.has_labels else None)
    other.batch = Batch(other.network, X, y, loss=batch.loss)
    return other


def _untouched(session: Session, request: Request, example: Example) -> Measured:
    before = _contents(session)
    measured = session.measured(request)
    after = _contents(session)
    for name, value in before.items():
        other = after.get(name)
        same = torch.equal(value, other) if isinstance(value, Tensor) and isinstance(other, Tensor) else value == other
        if not same and (name != PYTHON or _draws_from_python(session, request)):
            cure = "Draw from `batch.generator()`." if "random" in name else "Work on a copy."
            raise ValueError(
                f"`{request.label}` must not change its inputs or global state, but changed {name} of {example.name}. "
                f"{cure}"
            )
    return measured


def _draws_from_python(session: Session, request: Request) -> bool:
    """Whether a measure, run again, uses Python's global generator in this thread.

    Other threads, such as Dask's event loop, use it as well, and the change of its state does not show who did.
    """
    generator, used = random.random.__self__, []  # type: ignore[attr-defined]

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__self__", None) is generator:
            used.append(called.__name__)
        elif event == "call" and frame.f_globals is vars(random) and frame.f_locals.get("self") is generator:
            used.append(frame.f_code.co_name)

    outer = sys.getprofile()
    sys.setprofile(watch)
    try:
        session.renewed().measured(request)
    finally:
        sys.setprofile(outer)
    return any(name != "getstate" for name in used)


def _contents(session: Session) -> dict[str, Any]:
    """Everything that a measure could change by mistake, by its description."""
    contents: dict[str, Any] = {}
    for name, tensor in session.network.tensors().items():
        shown = session.network.shown(name)
        contents[f"`{shown}`"] = tensor.detach().clone()
        contents[f"the gradient of `{shown}`"] = None if tensor.grad is None else tensor.grad.clone()
        contents[f"`requires_grad` of `{shown}`"] = tensor.requires_grad
    for name, part in session.network.module.named_modules():
        contents[f"the mode of `{session.network.shown(name)}`"] = part.training
    batch = session.batch
    contents |= {"X": batch.X.clone()} if batch.has_samples else {}
    contents |= {"y": batch.y.clone()} if batch.has_labels else {}
    contents["the random numbers of torch, in the process"] = torch.get_rng_state()
    state = np.random.get_state(legacy=False)["state"]  # type: ignore[call-overload]
    contents["the random numbers of numpy, in the process"] = state["key"].tolist(), state["pos"]
    contents[PYTHON] = random.getstate()
    return contents


def _check_result(request: Request, measured: Measured, where: str, declared: bool) -> None:
    label, value = request.label, measured.value
    if math.isnan(value):
        raise ValueError(f"`{label}` must be a number, got nan on {where}. Raise a `NotDefinedError` that says why.")
    if declared and value < 0 and not request.measure.signed:
        raise ValueError(f"`{label}` must not be negative, got {value:g} on {where}. Or declare signed=True.")
    logged = measured.log_value is not None and math.isfinite(value)
    if logged and not close(value, math.exp(measured.log()), ROUNDING):
        raise ValueError(f"`{label}` must have the logarithm of its value, got {measured.log_value:g} for {value:g}.")
    if measured.standard_error is not None and not measured.standard_error >= 0:
        raise ValueError(f"`{label}` must have a standard error of at least 0, got {measured.standard_error}.")
    for row in measured.per_layer:
        if not isinstance(row, Mapping) or not {"layer", "value"} <= set(row):
            raise ValueError(f'`{label}` must have rows with "layer" and "value" in `per_layer`, got {shown(row)}.')


def _check_same(
    session: Session, requests: Sequence[Request], values: Mapping[str, Measured], tolerance: float, when: str
) -> None:
    for request in requests:
        expected = values[request.label].value
        try:
            got = session.measured(request).value
        except NotDefinedError as error:
            raise ValueError(f"`{request.label}` must also be defined {when}, but raised: {error}") from error
        if not close(got, expected, tolerance):
            raise ValueError(f"`{request.label}` must be the same {when}, got {expected:.9g} and {got:.9g}.")
