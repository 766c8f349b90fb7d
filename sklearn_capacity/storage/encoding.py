"""Values as JSON that preserves types, with tensors stored separately."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["decode", "encode"]

_PLAIN = (type(None), bool, int, str)
_AS_IT_IS = (bool, float, str)  # in lists, which may be long; integers have an upper limit
_FLOAT_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_ARRAY_KINDS = "biufUSmM"
_LARGEST = 2**63
_MAX_DEPTH = 50
_MAX_DIMENSIONS = 32
_MAX_BYTES = 2**28  # for the arrays in one document: a line of text may require gigabytes of padded strings


def encode(value: Any, tensors: dict[str, Tensor] | None = None, *, name: str = "value") -> Any:
    """Convert a value to JSON types, such that `decode` returns an equal value of the same type.

    Parameters
    ----------
    value : None, bool, int, float, str, list, tuple, dict, numpy scalar or array, dtype or torch.device
        Arrays may contain numbers, strings, dates or, as objects, any of the other values.
    tensors : dict of str to Tensor, default=None
        Receives the tensors of the value without a copy: write them before they change. None refuses tensors.
    name : str
        The name of the value, for messages.

    Raises
    ------
    TypeError
        If a part of the value has another type; the message names it.
    """
    if type(value) is int and not -_LARGEST <= value < _LARGEST:
        raise TypeError(f"`{name}` is {_shown(value)}, outside the range of 64-bit integers.")
    if type(value) in _PLAIN:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list | tuple) and type(value) in (list, tuple, torch.Size):
        items = [encode(item, tensors, name=f"{name}[{i}]") for i, item in enumerate(value)]
        return {"list" if type(value) is list else "tuple": items}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [encode(key, name=f"a key of {name}"), encode(item, tensors, name=f"{name}[{key!r}]")]
                for key, item in value.items()
            ]
        }
    if isinstance(value, np.generic):
        return {"scalar": encode(np.asarray(value), name=name)}
    if isinstance(value, np.ndarray):
        return _encode_array(value, name)
    if isinstance(value, Tensor) and tensors is not None:
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": np.dtype(value).str}
    if isinstance(value, torch.dtype):
        return {"torch_dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return str(value)
    raise TypeError(f"`{name}` is {_shown(value)}, which JSON cannot represent.")


def _shown(value: Any) -> str:
    text = reprlib.repr(value)  # abbreviated, since the value may be as large as a file
    return f"{text[:80]}..." if len(text) > 80 else text


def _encode_array(array: np.ndarray, name: str) -> dict[str, Any]:
    kind = array.dtype.kind
    if kind == "O":
        items = [encode(item, name=f"{name}[...]") for item in array.ravel().tolist()]
    elif kind not in _ARRAY_KINDS or array.dtype.fields is not None:
        raise TypeError(f"`{name}` is an array of {array.dtype}, which JSON cannot represent.")
    elif kind == "f":
        # float() of a half or single is exact, and repr() of a double is read back exactly
        items = [encode(float(item)) for item in array.ravel()]
    elif kind in "mM":
        items = array.ravel().view("i8").tolist()
    elif kind == "S":
        items = [item.decode("latin-1") for item in array.ravel().tolist()]
    else:
        items = array.ravel().tolist()
    return {"array": items, "dtype": array.dtype.str, "shape": list(array.shape)}


def decode(data: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return the value that was passed to `encode`.

    Raises
    ------
    ValueError
        If `data` is not a result of `encode`, or would take far more memory than its text.
    """
    return _decode(data, tensors or {}, _Budget(_MAX_BYTES), 0)


class _Budget:
    """Number of bytes that the arrays of a document may still take."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def take(self, n_bytes: int) -> None:
        self.n_bytes -= n_bytes
        if self.n_bytes < 0:
            raise ValueError(f"its arrays take more than {_MAX_BYTES >> 20} MiB of memory")


def _decode(data: Any, tensors: Mapping[str, Tensor], budget: _Budget, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"values are nested more than {_MAX_DEPTH} deep")
    if type(data) is int and not -_LARGEST <= data < _LARGEST:
        raise ValueError(f"{_shown(data)} is outside the range of 64-bit integers")
    if type(data) in (*_PLAIN, float):
        return data
    if not isinstance(data, dict) or len(data) not in (1, 3):
        raise ValueError(f"{_shown(data)} is not an encoded value")

    def inner(item: Any) -> Any:
        return _decode(item, tensors, budget, depth + 1)

    match data:
        case {"float": str(text)} if text in _FLOAT_NAMES:
            return _FLOAT_NAMES[text]
        case {"list": list(items)}:
            return [item if type(item) in _AS_IT_IS else inner(item) for item in items]
        case {"tuple": list(items)}:
            return tuple([item if type(item) in _AS_IT_IS else inner(item) for item in items])
        case {"dict": list(pairs)}:
            return _decode_dict(pairs, inner)
        case {"scalar": array}:
            return inner(array)[()]
        case {"array": list(items), "dtype": str(dtype), "shape": list(shape)}:
            values = [item if type(item) in _AS_IT_IS else inner(item) for item in items]
            return _decode_array(values, dtype, shape, budget)
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"dtype": str(text)}:
            return _dtype(text)
        case {"torch_dtype": str(text)} if isinstance(getattr(torch, text, None), torch.dtype):
            return getattr(torch, text)
    raise ValueError(f"{_shown(data)} is not an encoded value")


def _decode_dict(pairs: list[Any], inner: Any) -> dict[Any, Any]:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("a dict contains something other than pairs")
    try:
        return {inner(key): inner(item) for key, item in pairs}
    except TypeError as error:  # an unhashable key
        raise ValueError(f"a dict has a bad key: {error}") from error


def _dtype(text: str) -> np.dtype:
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{text!r} is not a dtype") from error
    if dtype.kind not in _ARRAY_KINDS + "O" or dtype.itemsize > 2**20:
        raise ValueError(f"{text!r} is not a dtype of labels or numbers")
    return dtype


def _decode_array(items: list[Any], dtype_name: str, shape: list[Any], budget: _Budget) -> np.ndarray:
    dtype = _dtype(dtype_name)
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"an array has {len(shape)} dimensions")
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(items):
        raise ValueError(f"an array of shape {shape} has {len(items)} entries")
    budget.take(dtype.itemsize * len(items))
    try:
        if dtype.kind == "O":
            array = np.empty(len(items), object)
            array[:] = items
        elif dtype.kind in "mM":
            array = np.array(items, "i8").view(dtype)
        elif dtype.kind == "S":
            array = np.array([item.encode("latin-1") for item in items], dtype)
        else:
            array = np.array(items, dtype)
        return array.reshape(shape)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"an array is not of dtype {dtype}: {error}") from error
