"""Checks on small networks of the requirements that every measure must meet, built in or a user's own."""

from __future__ import annotations

import copy
import functools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._validation import NotDefinedError, shown
from ..graph import Network
from ..measures import Batch, Measure, Measured
from ..process_state import keeps_random_numbers
from .measurement import Session
from .requests import Request, parse_measures

__all__ = ["Example", "check_invariances", "check_measure", "check_on", "examples"]

#: Accepted relative differences: between the same arithmetic in another order, between iterations from different start
#: vectors, and between double and single precision.
ROUNDING, START, SINGLE = 1e-9, 1e-6, 1e-4
#: Python's global generator, as error messages name it.
PYTHON = "the random numbers of Python, in the process"


@dataclass(frozen=True)
class Example:
    """A small network in double precision with data, and its state before training."""

    name: str
    module: nn.Module
    X: Tensor
    y: Tensor
    initial_state: Mapping[str, Tensor] = field(default_factory=dict)


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
    session = _session(example)
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


def _session(example: Example) -> Session:
    return Session(example.module, example.X, example.y, initial_state=example.initial_state or None)


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
    if logged and not _close(value, math.exp(measured.log()), ROUNDING):
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
        if not _close(got, expected, tolerance):
            raise ValueError(f"`{request.label}` must be the same {when}, got {expected:.9g} and {got:.9g}.")


def _close(a: float, b: float, tolerance: float) -> bool:
    return a == b or abs(a - b) <= max(tolerance * abs(b), 1e-12 * bool(tolerance))


# -- invariances -------------------------------------------------------------------------------------------------------


def check_invariances(requests: Sequence[Request]) -> None:
    """Raise if a measure lacks a declared invariance, or has one that it does not declare."""
    tried = set()
    for example in examples()[:2]:
        changed = {change: _session_of(example, function(example.module)) for change, function in CHANGES.items()}
        session = _session(example)
        for request in requests:
            if request.measure.stochastic or request.label in tried:
                continue
            try:
                before = session.measured(request).value
            except NotDefinedError:
                continue
            if math.isinf(before):  # the measure is uninformative here
                continue
            tried.add(request.label)
            for change, other in changed.items():
                _check_invariance(request, change, before, other.measured(request).value, example.name)
    for request in requests:
        if request.measure.invariances and request.label not in tried and not request.measure.stochastic:
            raise ValueError(
                f"`{request.label}` must be defined and finite for {examples()[0].name} or {examples()[1].name}, where "
                "declared invariances are checked."
            )


def _session_of(example: Example, module: nn.Module) -> Session:
    return Session(module, example.X, example.y, initial_state=example.initial_state)


def _check_invariance(request: Request, change: str, before: float, after: float, example: str) -> None:
    same, declared = _close(after, before, ROUNDING), change in request.measure.invariances
    if declared and not same:
        raise ValueError(
            f"`{request.label}` must not change under its declared invariance {change!r}, got {before:.9g} "
            f"before and {after:.9g} after."
        )
    if same and not declared:
        raise ValueError(
            f"`{request.label}` must declare the invariance {change!r}, which it has: {before:.9g} before and after "
            f"this change of the weights of {example}."
        )


def _rescaled(module: nn.Module, order: Sequence[int], factors: Sequence[float]) -> nn.Module:
    """The same function: hidden units permuted, incoming weights scaled up and outgoing weights scaled down."""
    changed: Any = copy.deepcopy(module)
    scale = torch.tensor(factors, dtype=torch.float64, device="cpu")
    changed[0].weight.data = module[0].weight.data[list(order)] * scale[:, None]  # type: ignore[index]
    changed[2].weight.data = module[2].weight.data[:, list(order)] / scale  # type: ignore[index]
    return changed


#: Changes of weights that preserve the function of a rectifier network with one hidden layer of six units; so large
#: that a coarse measure, such as a share of small weights, does not seem to be invariant.
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "permutation": lambda module: _rescaled(module, [3, 0, 5, 1, 4, 2], [1.0] * 6),
    "layer_rescaling": lambda module: _rescaled(module, range(6), [128.0] * 6),
    "node_rescaling": lambda module: _rescaled(module, range(6), [128.0, 0.5, 1.0, 0.01, 0.25, 20.0]),
}


# -- networks ----------------------------------------------------------------------------------------------------------


def _drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module with weights and statistics drawn from a seed, independent of torch's initialisation."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    module = module.to(device="cpu", dtype=torch.float64)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            positive = name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight"))
            tensor.data.copy_(values.abs() + 0.5 if positive else values)
    return module


def _example(
    name: str, make: Callable[[], nn.Module], shape: Sequence[int], seed: int, *, regression: bool = False
) -> Example:
    with keeps_random_numbers():
        module, before = _drawn(make(), seed), _drawn(make(), seed + 1)
    generator = torch.Generator(device="cpu").manual_seed(seed + 2)
    X = torch.randn(40, *shape, generator=generator, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        outputs = module.eval()(X)
    decided = (outputs != 0).any(1)  # if all units are off, all classes tie
    y = outputs + 1.0 if regression else outputs.argmax(1)  # classes are separated, so that margins are positive
    return Example(name, module.train(), X[decided], y[decided], before.state_dict())


def _chain(n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, n_outputs, bias=False))


def _convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(3, 3))


@functools.cache
def examples() -> tuple[Example, ...]:
    """The networks on which every measure is checked; the first two have one hidden layer of six rectifiers."""
    return (
        _example("a rectifier network without biases", lambda: _chain(3), (4,), 5),
        _example("a regression by a rectifier network", lambda: _chain(1), (4,), 6, regression=True),
        _example("a convolutional network with batch norm", _convolutional, (2, 7, 7), 7),
        _example("a tanh network", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), 8),
    )
