"""Runs the measures of one call: their values or errors, those left out because of their cost, and the progress."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from .._validation import NotDefinedError, check_interval, warn
from ..measures import Measured
from ..process_state import computing
from .measurement import Session
from .requests import Request

__all__ = [
    "LeftOutError",
    "by_reason",
    "check_max_seconds",
    "estimated_passes",
    "is_left_out",
    "outcomes",
    "reason_of",
    "seconds_per_pass",
    "warn_of_left_out",
    "warn_of_missing",
]

#: Above this many forward passes over the data a measure is not cheap, such as norms of Jacobians with 1,000 outputs.
CHEAP_PASSES = 200
#: Samples on which a forward pass is timed.
TIMED_SAMPLES = 128


class LeftOutError(NotDefinedError):
    """A measure was not run, since there was no time for it."""


def check_max_seconds(max_seconds: Any) -> None:
    """Raise unless it is None or a positive number."""
    if max_seconds is not None:
        check_interval("max_seconds", max_seconds, 0, math.inf, closed="neither")


def outcomes(
    session: Session,
    requests: Sequence[Request],
    *,
    group: str | None = None,
    log: bool = False,
    max_seconds: float | None = None,
    verbose: int = 0,
) -> Iterator[tuple[Request, Measured | Exception]]:
    """Each request with its value, or with the error that it raised.

    Parameters
    ----------
    session : Session
    requests : sequence of Request
    group : str or None
        "cheap" leaves out measures that are expensive for this network.
    log : bool
        Whether values must have a logarithm.
    max_seconds : float or None
        Limit since the creation of the session. The cheapest measures then run first, and measures that would exceed
        the limit by their estimated cost are left out.
    verbose : int
        1 shows the progress and the current measure.
    """
    passes = {id(request): estimated_passes(session, request) for request in requests}
    per_pass = 0.0
    if max_seconds is not None:
        requests = sorted(requests, key=lambda request: passes[id(request)])
        per_pass = seconds_per_pass(session)
    with tqdm(total=len(requests), unit="measure", disable=not verbose) as bar:
        for request in requests:
            bar.set_description_str(request.label)
            needed = passes[id(request)]
            try:
                if is_left_out(group, needed):
                    raise NotDefinedError(
                        f"It would take some {needed:.0f} forward passes over the data, which is not cheap. Ask for "
                        "it by name."
                    )
                if max_seconds is not None:
                    _check_time(session, needed * per_pass, max_seconds)
                outcome: Measured | Exception = session.run(request, log)
            except Exception as error:
                outcome = error
            bar.update()
            yield request, outcome


def is_left_out(group: str | None, passes: float) -> bool:
    """Whether a group of measures does without one that takes this many passes over the data."""
    return group == "cheap" and passes > CHEAP_PASSES


def estimated_passes(session: Session, request: Request) -> float:
    """Roughly how many forward passes over the data a request takes."""
    batch = session.batch
    n_samples = batch.n_samples if batch.has_samples else 1
    try:
        return request.measure.estimated_passes(session.network.n_outputs, n_samples, session.parameters(request))
    except (TypeError, ValueError):  # parameters that the measure itself refuses
        return 0.0


def seconds_per_pass(session: Session) -> float:
    """The time of one forward pass over all samples, from one over a few."""
    batch, network = session.batch, session.network
    if not batch.has_samples:
        return 0.0
    X = batch.X[: min(TIMED_SAMPLES, batch.chunk_size)]
    with computing(), torch.no_grad():
        for _ in range(2):  # the first also warms up
            start = time.perf_counter()
            float(network.forward(X).sum())  # synchronises the device
            seconds = time.perf_counter() - start
    return seconds * batch.n_samples / len(X)


def _check_time(session: Session, seconds: float, max_seconds: float) -> None:
    left = max_seconds - (time.perf_counter() - session.started)
    if seconds > left:
        needed = "There is no time left for it" if left <= 0 else f"It would take some {seconds:.2g} s"
        raise LeftOutError(f"{needed}: {max(left, 0):.2g} s are left of `max_seconds={max_seconds:g}`.")


def reason_of(error: Exception) -> str:
    """Why a measure has no value, in the same words for all measures with this obstacle."""
    return error.reason if isinstance(error, NotDefinedError) else f"{type(error).__name__}: {error}"


def by_reason(report: pd.DataFrame) -> dict[str, list[str]]:
    """The measures of a report that have no value, by the reason."""
    missing = report[report["reason"] != ""]
    return {str(reason): list(rows["measure"]) for reason, rows in missing.groupby("reason", sort=False)}


def warn_of_missing(errors: Mapping[str, Exception]) -> None:
    """Warn of measures without a value, by their labels, once per reason."""
    labels: dict[str, list[str]] = {}
    for label, error in errors.items():
        labels.setdefault(reason_of(error), []).append(repr(label))
    for reason, those in labels.items():
        warn(f"No value of {', '.join(those)}: {reason}")


def warn_of_left_out(labels: Sequence[str], max_seconds: float | None) -> None:
    """Warn of measures for which there was no time."""
    if labels and max_seconds is not None:
        names = ", ".join(map(repr, labels))
        warn(f"Left out, since they would not fit into `max_seconds={max_seconds:g}`: {names}.")
