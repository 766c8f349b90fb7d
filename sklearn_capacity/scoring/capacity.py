"""The functions that measure a model: as numbers or as a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from .._validation import NotDefinedError, all_finite, check_boolean, warn
from ..measures import Measured
from ..measures.margins import sample_margins
from ..process_state import keeps_modes
from .measurement import Session
from .module_estimator import score, scored_estimator
from .outcomes import LeftOutError, check_max_seconds, outcomes, reason_of, warn_of_left_out, warn_of_missing
from .pass_totals import announce, pass_total
from .requests import Request, in_order, is_group, parse_with_scores

__all__ = ["capacity_report", "measure_capacity", "refuse_signed"]

COLUMNS = [
    "measure",
    "layer",
    "value",
    "standard_error",
    "unit",
    "better",
    "cost",
    "loss",
    "seconds",
    "computed",
    "same_as",
    "reason",
]


@keeps_modes
def measure_capacity(
    model: Any,
    X: Any = None,
    y: Any = None,
    measures: Any = "essential",
    *,
    loss: str | None = None,
    initial_state: Any = None,
    classes: Any = None,
    log: bool = False,
    max_samples: int | None = None,
    batch_size: int | None = None,
    max_memory: int | str | None = None,
    device: Any = None,
    random_state: int = 0,
    max_seconds: float | None = None,
    verbose: int = 0,
) -> dict[str, float]:
    """Measure the capacity of a trained network.

    Parameters
    ----------
    model : estimator, skorch net, nn.Module, or a Pipeline, target transformer or fitted search around one
        Also scikit-learn's MLPs and those of its linear models that are one linear map; they are converted exactly.
        The model is never changed: measures work on a private copy in eval mode.
    X : array-like or Tensor of shape (n_samples, ...), default=None
        With None, only measures of the weights are available.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Labels of the kind that the model was fitted on; for a plain module class indices, or elements of `classes`.
    measures : str, Measure, list of these, dict, "essential", "cheap" or "all", default="essential"
        A dict is ``{label: measure or (measure, params)}``, where a measure is a name, a `Measure` or a function
        ``f(network, batch, **params)`` or ``f(module, X, y, **params)`` that returns a number. Names of
        scikit-learn's scorers ("accuracy") are also allowed. "essential" comprises six measures of different kinds,
        "cheap" the measures without ascent, random draws, a spectrum or gradients of single samples. These and "all"
        omit measures for another task and those for which the call lacks data, labels, a loss or an initial state. If
        others have no value, a `CapacityWarning` names them, one for each reason. `list_measures` lists all measures.
    loss : "cross_entropy", "hinge", "squared", "absolute" or None, default=None
        None: the model's own loss; for a plain module, cross-entropy if `classes` are given or y is integer or boolean,
        and squared if y is float. If the model was trained with another loss, such as the squared hinge loss, measures
        that need a loss are not defined. A loss given here is also the default of measures with a parameter ``loss``.
    initial_state : nn.Module or dict of str to Tensor, default=None
        The module or its state dict before training, for measures of the distance from there. Estimators of this
        package, and skorch nets with an `InitialStateCallback`, store it themselves.
    classes : array-like of shape (n_outputs,), default=None
        Labels of a plain module's outputs, in their order, if `y` does not contain class indices.
    log : bool, default=False
        Return natural logarithms. They are finite even where a product over many layers overflows.
    max_samples : int, default=None
        Measure on a seeded random subset of at most this many samples.
    batch_size : int, default=None
        Number of samples processed at once; None chooses it by memory. It is halved when memory runs out.
    max_memory : int or str, default=None
        Memory that the call may use: a number of bytes, or text such as "500MB" or "2GiB". None is 80 % of the memory
        that is free on the device, within the limits of the control group (container). The number of samples processed
        at once is chosen accordingly. A measure that needs more memory is not started: it is treated like one that is
        not defined, and the reason states how much it needs.
    device : str or torch.device, default=None
        Where to compute; None is the model's device.
    random_state : int, default=0
        Seed of the stochastic measures.
    max_seconds : float, default=None
        The cheapest measures come first then, and those that would not fit into what is left of this time, by their
        estimated cost, are left out, with a `CapacityWarning`. A measure that has begun is not broken off.
    verbose : int, default=0
        1 shows the largest number of passes over the data, the progress and which measure runs.

    Returns
    -------
    dict of str to float
        The values, not negated for maximisation.

    Raises
    ------
    ValueError
        For unknown names or parameters, data that do not match the model, named measures that do not apply, and
        ``log=True`` with a measure that may be negative.

    See Also
    --------
    capacity_report : Values with their units, errors, times, and reasons where there is no value.
    compare_capacity : Several models in one table.
    list_measures : All measures with what they need and cost.
    CapacityScorer : The same measures in searches and cross-validation.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_capacity import measure_capacity
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier((8,), max_iter=5, random_state=0)
    >>> import warnings; warnings.simplefilter("ignore")
    >>> measure_capacity(model.fit(X / 16, y), X / 16, y, "parameter_count")
    {'parameter_count': 610.0}
    """
    requests, scores = parse_with_scores(measures)
    group = measures if is_group(measures) else None
    if check_boolean("log", log) and group is None:
        refuse_signed(requests)
    check_max_seconds(max_seconds)
    session = Session(
        model,
        X,
        y,
        loss=loss,
        initial_state=initial_state,
        classes=classes,
        max_samples=max_samples,
        batch_size=batch_size,
        max_memory=max_memory,
        device=device,
        random_state=random_state,
        verbose=verbose,
    )
    values = _scored(session, model, X, y, scores, batch_size=batch_size, device=device)
    left_out, missing = [], {}
    requests = [request for request in requests if not (log and request.measure.signed)]
    if verbose:
        announce(pass_total(session, requests, group=group, timed=True))
    for request, outcome in outcomes(session, requests, group=group, log=log, max_seconds=max_seconds, verbose=verbose):
        if isinstance(outcome, Measured):
            values[request.label] = outcome.log() if log else outcome.value
        elif isinstance(outcome, LeftOutError):
            left_out.append(request.label)
        elif group is None:
            raise outcome
        elif session.unexpected(outcome, request):
            missing[request.label] = outcome
    warn_of_left_out(left_out, max_seconds)
    warn_of_missing(missing)
    if group is not None:
        _warn_of_nonfinite_weights(session)
        return {request.label: values[request.label] for request in requests if request.label in values}
    return in_order(measures, values)


def _scored(session: Session, model: Any, X: Any, y: Any, scores: Mapping[str, str], **options: Any) -> dict[str, Any]:
    """scikit-learn's scores by their labels, on all samples."""
    if scores and (X is None or y is None):
        raise ValueError(f"`X` and `y` must be given for the scores {', '.join(map(repr, scores))}.")
    estimator = scored_estimator(model, session, **options) if scores else None
    return {label: score(name, estimator, X, y) for label, name in scores.items()}


def _warn_of_nonfinite_weights(session: Session) -> None:
    """Warn of weights that are not finite, since "cheap" and "all" then omit nearly every measure."""
    for name, parameter in session.network.parameters.items():
        if not all_finite(parameter):
            warn(f"`{name}` of the network is not finite: few measures are defined. Has its training diverged?")
            return


def refuse_signed(requests: list[Request]) -> None:
    """Raise if a requested measure has no logarithm."""
    signed = [r.label for r in requests if r.measure.signed]
    if signed:
        raise ValueError(f"`log` must be False for measures that may be negative, got log=True with {signed}.")


@keeps_modes
def capacity_report(
    model: Any,
    X: Any = None,
    y: Any = None,
    measures: Any = "essential",
    *,
    loss: str | None = None,
    initial_state: Any = None,
    classes: Any = None,
    log: bool = False,
    per_layer: bool = False,
    per_class: bool = False,
    max_samples: int | None = None,
    batch_size: int | None = None,
    max_memory: int | str | None = None,
    device: Any = None,
    random_state: int = 0,
    max_seconds: float | None = None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Measure the capacity of a trained network and report how each value was computed.

    Parameters
    ----------
    model, X, y, measures, loss, initial_state, classes, log, max_seconds
        As in `measure_capacity`. A measure that does not apply, fails or is left out gets a row with the reason.
    per_layer : bool, default=False
        Add one row per weight layer for measures that have values per layer.
    per_class : bool, default=False
        Add one row per class with the median margin of its samples.
    max_samples, batch_size, max_memory, device, random_state
        As in `measure_capacity`.
    verbose : int, default=0
        1 shows the largest number of passes over the data, the progress and the measure that runs.

    Returns
    -------
    DataFrame
        One row per measure, with columns ``measure``, ``layer`` (or class), ``value``, ``standard_error``, ``unit``,
        ``better`` ("lower" or "higher"), ``cost``, ``loss`` (under which the measure was computed), ``seconds``,
        ``computed`` (method, iterations, residual), ``same_as`` (another row that is equal by definition) and
        ``reason`` (why there is no value). The reason has the same words for all measures with the same obstacle, so
        ``report.groupby("reason")["measure"].agg(list)`` gives the measures by reason. ``report.attrs["passes"]`` says
        how many passes over the data the measures can take at most (see Notes).

    See Also
    --------
    measure_capacity : Only the values.
    compare_capacity : Several models in one table.
    list_measures : All measures with what they need and cost.

    Notes
    -----
    ``attrs["passes"]`` is a dict: "at_most", an upper bound of the passes of the network over the data, which holds
    before anything is measured; "seconds", about their time by that of one forward pass (for "all", or with `verbose`,
    which prints this line before the first measure); and "without_limit", the measures that state no bound. A pass is
    the work of a forward pass over all samples; a backward pass that yields the gradients of inputs and weights is two.
    Most iterations end long before their limit. Norms of single layers and other linear algebra are not counted, nor
    chunks that are tried again because memory ran out.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import capacity_report
    >>> report = capacity_report(nn.Linear(4, 2), measures=["parameter_count"])
    >>> float(report.loc[0, "value"]), report.loc[0, "unit"]
    (10.0, 'parameters')
    """
    requests, scores = parse_with_scores(measures)
    check_boolean("per_layer", per_layer)
    check_boolean("per_class", per_class)
    check_boolean("log", log)
    check_max_seconds(max_seconds)
    session = Session(
        model,
        X,
        y,
        loss=loss,
        initial_state=initial_state,
        classes=classes,
        max_samples=max_samples,
        batch_size=batch_size,
        max_memory=max_memory,
        device=device,
        random_state=random_state,
        verbose=verbose,
    )
    scored = _scored(session, model, X, y, scores, batch_size=batch_size, device=device)
    rows = {label: [{**_PLAIN_ROW, "measure": label, "value": v, "unit": "score"}] for label, v in scored.items()}
    group = measures if is_group(measures) else None
    no_log = {r.label: [_no_logarithm(session, r)] for r in requests if log and r.measure.signed}
    selected = [r for r in requests if r.label not in no_log]
    total = pass_total(session, selected, group=group, timed=bool(verbose) or group == "all")
    if verbose:
        announce(total)
    ran = outcomes(session, selected, group=group, log=log, max_seconds=max_seconds, verbose=verbose)
    rows |= no_log | {r.label: _report_rows(session, r, outcome, log, per_layer) for r, outcome in ran}
    for request in requests:
        rows[request.label][0]["same_as"] = _same_as(request, requests)
    labels = [request.label for request in requests] if group else list(in_order(measures, rows))
    listed = [row for label in labels for row in rows[label]]
    report = pd.DataFrame(listed + (_class_rows(session) if per_class else []), columns=COLUMNS)
    report.attrs["passes"] = asdict(total)
    return report


#: What the rows of no measure have in common.
_PLAIN_ROW = {"layer": "", "better": "higher", "cost": "forward"} | dict.fromkeys(
    ("loss", "computed", "same_as", "reason"), ""
)


def _same_as(request: Request, requests: Sequence[Request]) -> str:
    """The label of another row with the same value by definition, or nothing."""
    first = request.measure.same_as
    same = (r.label for r in requests if first and not request.params and r.measure.name == first and not r.params)
    return next(same, "")


def _row(session: Session, request: Request, **others: Any) -> dict[str, Any]:
    measure = request.measure
    return {
        **_PLAIN_ROW,
        "measure": request.label,
        "value": math.nan,
        "standard_error": math.nan,
        "unit": measure.unit,
        "better": "lower" if measure.lower_is_better else "higher",
        "cost": measure.cost,
        "loss": session.loss_of(request),
        **others,
    }


def _no_logarithm(session: Session, request: Request) -> dict[str, Any]:
    unit = f"log({request.measure.unit})"
    return _row(session, request, unit=unit, reason="may be negative, so its logarithm is not defined")


def _report_rows(
    session: Session, request: Request, measured: Measured | Exception, log: bool, per_layer: bool
) -> list[dict[str, Any]]:
    row = _row(session, request, unit=f"log({request.measure.unit})" if log else request.measure.unit)
    if isinstance(measured, Exception):
        mistake = isinstance(measured, TypeError | ValueError) and not isinstance(measured, NotDefinedError)
        if mistake and request.params:  # a parameter given by the caller
            raise measured
        return [{**row, "reason": reason_of(measured)}]
    spread = measured.standard_error
    if spread is not None:
        row["standard_error"] = spread / measured.value if log and measured.value else spread
    row["value"] = measured.log() if log else measured.value
    row["seconds"] = measured.info["seconds"]
    row["computed"] = _shown({k: v for k, v in measured.info.items() if k != "seconds"})
    return [row, *(_layer_rows(row, measured, log) if per_layer else [])]


def _layer_rows(row: dict[str, Any], measured: Measured, log: bool) -> list[dict[str, Any]]:
    out = []
    for entry in measured.per_layer:
        value = entry["value"]
        value = (math.log(value) if value > 0 else -math.inf) if log else value
        others = {k: v for k, v in entry.items() if k not in ("layer", "value")}
        extra = {"standard_error": math.nan, "seconds": math.nan, "computed": _shown(others)}
        out.append({**row, "layer": entry["layer"], "value": value, **extra})
    return out


def _shown(info: dict[str, Any]) -> str:
    texts = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in info.values())
    return ", ".join(f"{key}={text}" for key, text in zip(info, texts, strict=True))


def _class_rows(session: Session) -> list[dict[str, Any]]:
    margins, index = sample_margins(session.batch), session.batch.classes.cpu().numpy()
    known = session.subject.classes
    rows = []
    for c in np.unique(index):
        label = c if known is None else known[c]
        value = float(np.median(margins[index == c]))
        row = {**_PLAIN_ROW, "measure": "median_margin", "unit": "logit"}
        rows.append({**row, "layer": f"class {label}", "value": value})
    return rows
