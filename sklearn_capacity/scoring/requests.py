"""Requests for measures: names, records or functions, with parameters and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer_names

from .._validation import closest, shown
from ..measures import ESSENTIAL, MEASURES, Measure, measure_named

__all__ = ["GROUPS", "Request", "directions", "in_order", "is_group", "label_of", "parse_measures", "parse_with_scores"]

_FORMS = (
    "a name, a `Measure`, a list of these, a dict {label: measure or (measure, params)}, where a measure may be a "
    'function too, "essential", "cheap" or "all"'
)


#: Names of groups of measures; those that do not apply are left out.
GROUPS = ("essential", "cheap", "all")


@dataclass(frozen=True)
class Request:
    """One requested measure with the label of its result."""

    label: str
    measure: Measure
    params: Mapping[str, Any] = field(default_factory=dict)


def is_group(measures: Any) -> bool:
    """Whether a `measures` argument names a group, of which all applicable measures are computed."""
    return isinstance(measures, str) and measures in GROUPS


def parse_measures(measures: Any) -> tuple[list[Request], bool]:
    """The requests in a `measures` argument, and whether they were named one by one.

    Parameters
    ----------
    measures : str, Measure, list of these, dict of label to measure or (measure, params), or one of GROUPS
        In a dict a measure may also be a function.

    Raises
    ------
    ValueError, TypeError
        For an unknown name (the message suggests the closest), an unknown parameter, or a wrong type.
    """
    if is_group(measures):
        group = [MEASURES[name] for name in (ESSENTIAL if measures == "essential" else MEASURES)]
        return [Request(m.name, m) for m in group if measures != "cheap" or m.cheap], False
    if isinstance(measures, str | Measure):
        measures = [measures]
    if isinstance(measures, Mapping):
        items = [(label, *_named(label, entry)) for label, entry in measures.items()]
    elif isinstance(measures, list | tuple):
        items = [(label, *_named(label, entry)) for entry in measures for label in [label_of(entry)]]
    else:
        raise TypeError(f"`measures` must be {_FORMS}, got {shown(measures)}.")
    if not items:
        raise ValueError('`measures` must name at least one measure, got none. Use "essential" for the default set.')
    labels = [label for label, _, _ in items]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"`measures` contains {twice!r} twice. Give each its own label with a dict.")
    return [_request(label, measure, params) for label, measure, params in items], True


def parse_with_scores(measures: Any) -> tuple[list[Request], dict[str, str]]:
    """The requests in a `measures` argument, and its scikit-learn scorers as a dict of label to name."""
    if isinstance(measures, str) and not is_group(measures):
        measures = [measures]
    rest: Any = measures
    scores: dict[str, str] = {}
    if isinstance(measures, list | tuple):
        scores = {entry: entry for entry in measures if _is_score(entry)}
        rest = [entry for entry in measures if not _is_score(entry)]
    elif isinstance(measures, Mapping):
        scores = {label: entry for label, entry in measures.items() if _is_score(entry)}
        rest = {label: entry for label, entry in measures.items() if label not in scores}
    return [] if scores and not rest else parse_measures(rest)[0], scores


def in_order(measures: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by label in the order of a `measures` argument that names them; a prefix ``neg_`` is ignored."""
    if isinstance(measures, str | Measure):
        return dict(values)
    labels = measures if isinstance(measures, Mapping) else map(label_of, measures)
    place = {label: i for i, label in enumerate(labels)}
    keys = sorted(values, key=lambda key: place.get(key, place.get(key.removeprefix("neg_"), len(place))))
    return {key: values[key] for key in keys}


def directions(measures: Any) -> dict[str, str]:
    """The labels of the measures in a `measures` argument, and whether "lower" or "higher" is better."""
    requests, _ = parse_with_scores(measures)
    return {request.label: "lower" if request.measure.lower_is_better else "higher" for request in requests}


def label_of(entry: Any) -> str:
    """The label of a measure in a list."""
    if isinstance(entry, Measure):
        return entry.name
    if isinstance(entry, str):
        return entry
    cure = "Use a dict to give it a label." if callable(entry) else "Use a dict to give parameters."
    raise TypeError(f"`measures` must contain names and `Measure` objects if it is a list, got {shown(entry)}. {cure}")


def _is_score(entry: Any) -> bool:
    return isinstance(entry, str) and entry in get_scorer_names()


def _named(label: Any, entry: Any) -> tuple[Measure, Mapping[str, Any]]:
    if not isinstance(label, str):
        raise TypeError(f"The labels of `measures` must be strings, got {shown(label)}.")
    params: Any = {}
    if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
        entry, params = entry
    if isinstance(entry, Measure):
        return entry, params
    if isinstance(entry, str):
        return measure_named(entry, get_scorer_names()), params
    if callable(entry):
        return Measure(label, entry), params
    raise TypeError(
        "An entry of `measures` must be a name, a `Measure`, a function, or (one of these, params), "
        f"got {shown(entry)}."
    )


def _request(label: str, measure: Measure, params: Mapping[str, Any]) -> Request:
    known = measure.parameters
    for key in params:
        if key not in known and (key in measure.fixed or not measure.takes_any):
            names = ", ".join(known) or "none"
            hint = closest(key, known)
            raise ValueError(
                f"Measure {measure.name!r} has no parameter {key!r}. {hint + ' ' if hint else ''}It has: {names}."
            )
        if isinstance(known.get(key), bool) and not isinstance(params[key], bool | np.bool_):
            raise TypeError(f"`{key}` must be True or False, got {shown(params[key])}.")
    return Request(label, measure, params)
