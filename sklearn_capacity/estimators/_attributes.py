"""The fitted attributes that a file may set, each with the check that its value must pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sklearn_capacity.losses import CLASSIFICATION, REGRESSION

__all__ = ["ATTRIBUTES", "CLASSIFIER", "IMAGES_LAST", "OPTIONAL", "REGRESSOR", "Check"]

#: ``check(name, value, attributes)`` raises ValueError
Check = Callable[[str, Any, Mapping[str, Any]], None]

#: an attribute of the net, not of the estimator; files store it because only a run of the network would reveal it
IMAGES_LAST = "images_last"
OPTIONAL = ("feature_names_in_",)
_MAX_DIMENSIONS = 8
_LABEL_KINDS = "biufUmMO"


def _refuse(name: str, wanted: str, value: Any) -> None:
    text = repr(value)
    raise ValueError(f"`{name}` must be {wanted}, got {text if len(text) < 80 else type(value).__name__}")


def _is_whole(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 2**63


def _whole(low: int) -> Check:
    def check(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
        if not _is_whole(value, low):
            _refuse(name, f"an integer of at least {low}", value)

    return check


def _shape(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    if not (type(value) is tuple and 0 < len(value) <= _MAX_DIMENSIONS and all(_is_whole(n, 1) for n in value)):
        _refuse(name, f"a tuple of 1 to {_MAX_DIMENSIONS} positive integers", value)


def _n_features(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    shape = attributes["input_shape_"]
    _shape("input_shape_", shape, attributes)
    if not _is_whole(value, 1) or value != math.prod(shape):
        _refuse(name, f"{math.prod(shape)}, since samples have shape {shape}", value)


def _names(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    size = math.prod(attributes["input_shape_"])
    is_array = isinstance(value, np.ndarray) and value.shape == (size,) and value.dtype.kind == "O"
    if not (is_array and all(type(item) is str for item in value)):
        _refuse(name, f"an array of {size} names", value)


def _precision(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    if not (isinstance(value, np.dtype) and value in (np.dtype("f4"), np.dtype("f8"))):
        _refuse(name, "the precision float32 or float64", value)


def _one_of(*options: str) -> Check:
    def check(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
        if type(value) is not str or value not in options:
            _refuse(name, f"one of {list(options)}", value)

    return check


def _classes(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    size = attributes["_n_outputs"]
    if not (isinstance(value, np.ndarray) and value.shape == (size,) and value.dtype.kind in _LABEL_KINDS):
        _refuse(name, f"an array of shape ({size},) of labels", value)
    if value.dtype.kind == "O" and not all(type(item) is str for item in value):
        _refuse(name, "of numbers or of text", value)
    if not (value[:-1] < value[1:]).all():
        _refuse(name, "sorted and without duplicates", value)


def _one_column(name: str, value: Any, attributes: Mapping[str, Any]) -> None:
    if type(value) is not bool or (value and attributes["_n_outputs"] != 1):
        _refuse(name, f"true or false, and false for {attributes['_n_outputs']} outputs", value)


#: attributes of every estimator
ATTRIBUTES: dict[str, Check] = {
    "input_shape_": _shape,
    "n_features_in_": _n_features,
    "feature_names_in_": _names,
    "n_iter_": _whole(0),
    "n_samples_fit_": _whole(1),
    "_dtype": _precision,
    "_seed": _whole(0),
    "_n_runs": _whole(0),
}

CLASSIFIER: dict[str, Check] = {
    **ATTRIBUTES,
    "_n_outputs": _whole(2),
    "loss_name_": _one_of(*CLASSIFICATION),
    "classes_": _classes,
}

REGRESSOR: dict[str, Check] = {
    **ATTRIBUTES,
    "_n_outputs": _whole(1),
    "loss_name_": _one_of(*REGRESSION),
    "_one_column": _one_column,
}
