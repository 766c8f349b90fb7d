"""X, y and sample_weight of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch._subclasses import FakeTensorMode

from .case import Case
from .modules import CLASSES, FEATURES

N = 12


def normal(*shape: int) -> np.ndarray:
    """Numbers that are always the same."""
    return np.random.default_rng(0).normal(size=shape)


def _with(value: float) -> np.ndarray:
    X = normal(N, FEATURES)
    X[3, 1] = value
    return X


def _polars(X: np.ndarray) -> Any:
    try:
        import polars
    except ImportError:
        return pd.DataFrame(X)
    return polars.DataFrame(X)


def _read_only(X: np.ndarray) -> np.ndarray:
    X.flags.writeable = False
    return X


def _fake(*shape: int) -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(*shape)


class ArrayLike:
    """An object that can only be converted to an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return normal(N, FEATURES).astype(dtype or float)


#: X as it mostly is
USUAL_X: dict[str, Callable[[], Any]] = {
    "float64": lambda: normal(N, FEATURES),
    "float32": lambda: normal(N, FEATURES).astype("f4"),
    "integers": lambda: normal(N, FEATURES).round().astype(int),
    "frame": lambda: pd.DataFrame(normal(N, FEATURES), columns=list("abcd")),
    "images": lambda: normal(N, 1, 2, 2),
}

HOSTILE_X: dict[str, Callable[[], Any]] = {
    "float16": lambda: normal(N, FEATURES).astype("f2"),
    "long double": lambda: normal(N, FEATURES).astype(np.longdouble),
    "big endian": lambda: normal(N, FEATURES).astype(">f8"),
    "booleans": lambda: normal(N, FEATURES) > 0,
    "bytes": lambda: normal(N, FEATURES).astype("S4"),
    "text": lambda: np.full((N, FEATURES), "text"),
    "digits": lambda: np.full((N, FEATURES), "3.5"),
    "objects": lambda: normal(N, FEATURES).astype(object),
    "mixed": lambda: np.array([[1, "a", None, object()]] * N, dtype=object),
    "large integers": lambda: np.full((N, FEATURES), 2**62),
    "python integers": lambda: [[10**400] * FEATURES] * N,
    "complex": lambda: normal(N, FEATURES) + 1j,
    "dates": lambda: np.full((N, FEATURES), np.datetime64("2020-01-01")),
    "durations": lambda: np.full((N, FEATURES), np.timedelta64(3, "D")),
    "structured": lambda: np.zeros(N, dtype=[("a", "f8"), ("b", "i4")]),
    "sparse": lambda: scipy.sparse.csr_matrix(normal(N, FEATURES)),
    "sparse array": lambda: scipy.sparse.coo_array(normal(N, FEATURES)),
    "masked": lambda: np.ma.masked_array(normal(N, FEATURES), normal(N, FEATURES) > 1),
    "matrix": lambda: np.asmatrix(normal(N, FEATURES)),
    "polars": lambda: _polars(normal(N, FEATURES)),
    "nullable frame": lambda: pd.DataFrame(normal(N, FEATURES)).convert_dtypes(),
    "frame with holes": lambda: pd.DataFrame(_with(np.nan)).convert_dtypes(),
    "categories": lambda: pd.DataFrame({"a": pd.Categorical(["u", "v"] * (N // 2)), "b": range(N)}),
    "doubled columns": lambda: pd.DataFrame(normal(N, FEATURES), columns=list("aabb")),
    "series": lambda: pd.Series(normal(N)),
    "tensor": lambda: torch.from_numpy(normal(N, FEATURES)),
    "tensor with gradient": lambda: torch.from_numpy(normal(N, FEATURES)).requires_grad_(),
    "bfloat16 tensor": lambda: torch.zeros(N, FEATURES, dtype=torch.bfloat16),
    "meta tensor": lambda: torch.zeros(N, FEATURES, device="meta"),
    "sparse tensor": lambda: torch.eye(N, FEATURES).to_sparse(),
    "complex tensor": lambda: torch.zeros(N, FEATURES, dtype=torch.complex64),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(FEATURES)] * N),
    "fake tensor": lambda: _fake(N, FEATURES),
    "one-byte tensor": lambda: torch.zeros(N, FEATURES, dtype=torch.float8_e5m2),
    "quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(N, FEATURES), 0.1, 0, torch.quint8),
    "negated tensor": lambda: torch.ones(N, FEATURES)._neg_view(),
    "wide integer tensor": lambda: torch.ones(N, FEATURES, dtype=torch.uint64),
    "lazy frame": lambda: _polars(normal(N, FEATURES)).lazy() if hasattr(_polars(normal(1, 1)), "lazy") else None,
    "sparse frame": lambda: pd.DataFrame.sparse.from_spmatrix(scipy.sparse.eye(N, FEATURES)),
    "frame of dates": lambda: pd.DataFrame(normal(N, 2)).assign(day=pd.Timestamp("2020-01-01"), n=1),
    "two kinds of names": lambda: pd.DataFrame(normal(N, FEATURES), columns=["a", 1, "b", 2]),
    "memory": lambda: memoryview(normal(N, FEATURES)),
    "read-only": lambda: _read_only(normal(N, FEATURES)),
    "repeated": lambda: np.broadcast_to(normal(1, FEATURES), (N, FEATURES)),
    "records": lambda: np.rec.fromarrays(normal(FEATURES, N)),
    "accents": lambda: np.full((N, FEATURES), "é"),
    "list": lambda: normal(N, FEATURES).tolist(),
    "ragged list": lambda: [[1.0, 2.0], [3.0]] * (N // 2),
    "list of tensors": lambda: list(torch.zeros(N, FEATURES)),
    "list of images": lambda: list(normal(N, 1, 2, 2)),
    "generator": lambda: (row for row in normal(N, FEATURES)),
    "range": lambda: range(N),
    "dict": lambda: {"a": normal(N)},
    "string": lambda: "data.csv",
    "none": lambda: None,
    "number": lambda: 3.0,
    "array-like": ArrayLike,
    "memory order": lambda: np.asfortranarray(normal(N, FEATURES)),
    "reversed": lambda: normal(N, FEATURES)[::-1, ::-1],
    "overlapping": lambda: np.lib.stride_tricks.as_strided(normal(N), (N, FEATURES), (0, 8)),
    "no rows": lambda: normal(0, FEATURES),
    "no columns": lambda: normal(N, 0),
    "nothing": lambda: np.empty((0, 0)),
    "empty list": lambda: [],
    "list of empty lists": lambda: [[]] * N,
    "empty image": lambda: normal(N, 1, 0, 2),
    "one sample": lambda: normal(1, FEATURES),
    "two samples": lambda: normal(2, FEATURES),
    "one feature": lambda: normal(N, 1),
    "one row without its axis": lambda: normal(FEATURES),
    "a scalar array": lambda: np.array(3.0),
    "sequences": lambda: normal(N, 2, 2),
    "many axes": lambda: normal(N, 1, 2, 1, 2, 1),
    "nan": lambda: _with(np.nan),
    "inf": lambda: _with(np.inf),
    "minus inf": lambda: _with(-np.inf),
    "large": lambda: normal(N, FEATURES) * 1e300,
    "large in float32": lambda: normal(N, FEATURES) * 1e38,
    "beyond float32": lambda: normal(N, FEATURES) * 1e39,
    "tiny": lambda: normal(N, FEATURES) * 1e-310,
    "constant": lambda: np.ones((N, FEATURES)),
    "zero": lambda: np.zeros((N, FEATURES)),
}

INDEX = np.arange(N)

USUAL_Y: dict[str, Callable[[], Any]] = {
    "classes": lambda: INDEX % CLASSES,
    "names": lambda: np.array(["a", "b", "c"])[INDEX % CLASSES],
    "reals": lambda: np.sin(INDEX),
    "two columns": lambda: np.stack([np.sin(INDEX), np.cos(INDEX)], 1),
}

HOSTILE_Y: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "too long": lambda: np.arange(N + 1) % CLASSES,
    "too short": lambda: np.arange(N - 1) % CLASSES,
    "empty": lambda: np.empty(0),
    "number": lambda: 1,
    "text": lambda: "labels",
    "scalar array": lambda: np.array(1),
    "one class": lambda: np.zeros(N, int),
    "two classes": lambda: INDEX % 2,
    "booleans": lambda: INDEX % 2 == 0,
    "all different": lambda: INDEX,
    "negative": lambda: INDEX % CLASSES - 1,
    "large labels": lambda: (INDEX % CLASSES) * 2**61,
    "unsigned": lambda: (INDEX % CLASSES).astype("u8") + np.uint64(2**63),
    "objects": lambda: np.array([1, "b", None], object)[INDEX % CLASSES],
    "object names": lambda: np.array(["a", "b", "c"], object)[INDEX % CLASSES],
    "bytes": lambda: np.array([b"a", b"b", b"c"])[INDEX % CLASSES],
    "dates": lambda: np.datetime64("2020-01-01") + INDEX % CLASSES,
    "complex": lambda: INDEX % CLASSES + 1j,
    "nan": lambda: np.where(INDEX == 3, np.nan, INDEX % CLASSES),
    "inf": lambda: np.where(INDEX == 3, np.inf, 1.0),
    "large": lambda: np.sin(INDEX) * 1e300,
    "large in float32": lambda: np.sin(INDEX) * 1e19,
    "whole floats": lambda: (INDEX % CLASSES).astype(float),
    "float32": lambda: np.sin(INDEX).astype("f4"),
    "list": lambda: (INDEX % CLASSES).tolist(),
    "list of names": lambda: ["a", "b", "c"] * (N // CLASSES),
    "ragged": lambda: [[1], [1, 2]] * (N // 2),
    "series": lambda: pd.Series(INDEX % CLASSES, index=INDEX + 7),
    "categories": lambda: pd.Series(pd.Categorical(["a", "b", "c"] * (N // CLASSES))),
    "nullable": lambda: pd.Series([1, 2, None] * (N // 3), dtype="Int64"),
    "frame": lambda: pd.DataFrame({"y": INDEX % CLASSES}),
    "column": lambda: (INDEX % CLASSES)[:, None],
    "one hot": lambda: np.eye(CLASSES)[INDEX % CLASSES],
    "indicator": lambda: np.eye(CLASSES, dtype=int)[INDEX % CLASSES],
    "three axes": lambda: np.zeros((N, 1, 1)),
    "no columns": lambda: np.zeros((N, 0)),
    "tensor": lambda: torch.arange(N) % CLASSES,
    "sparse": lambda: scipy.sparse.csr_matrix(np.eye(CLASSES)[INDEX % CLASSES]),
    "masked": lambda: np.ma.masked_array(INDEX % CLASSES, INDEX == 2),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(1)] * N),
    "fake tensor": lambda: _fake(N),
    "one-byte tensor": lambda: torch.zeros(N, dtype=torch.float8_e5m2),
    "half tensor": lambda: (torch.arange(N) % CLASSES).bfloat16(),
    "tensor with gradient": lambda: torch.sin(torch.arange(N)).requires_grad_(),
    "float16": lambda: np.sin(INDEX).astype("f2"),
    "big endian": lambda: (INDEX % CLASSES).astype(">i4"),
    "durations": lambda: (INDEX % CLASSES).astype("m8[D]"),
    "read-only": lambda: _read_only(np.sin(INDEX)),
    "strings": lambda: pd.Series((INDEX % CLASSES).astype(str), dtype="string"),
    "names with holes": lambda: np.array([np.nan, "a", "b"], object)[INDEX % CLASSES],
    "tuples": lambda: pd.Series([(i % CLASSES,) for i in range(N)]).to_numpy(),
    "dict": lambda: {"y": INDEX},
    "generator": lambda: (i % 3 for i in range(N)),
    "constant": lambda: np.full(N, 2.5),
}

WEIGHTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "ones": lambda: np.ones(N),
    "some zero": lambda: INDEX % 2 * 1.0,
    "one sample": lambda: (INDEX == 0) * 1.0,
    "zero": lambda: np.zeros(N),
    "negative": lambda: -np.ones(N),
    "nan": lambda: np.full(N, np.nan),
    "inf": lambda: np.full(N, np.inf),
    "one inf": lambda: np.where(INDEX == 0, np.inf, 1.0),
    "large": lambda: np.full(N, 1e300),
    "tiny": lambda: np.full(N, 1e-310),
    "uneven": lambda: np.where(INDEX == 0, 1e300, 1e-300),
    "number": lambda: 2.0,
    "zero number": lambda: 0,
    "text": lambda: "balanced",
    "names": lambda: ["a"] * N,
    "objects": lambda: np.array([object()] * N),
    "list": lambda: [1] * N,
    "too long": lambda: np.ones(N + 1),
    "column": lambda: np.ones((N, 1)),
    "booleans": lambda: INDEX % 2 == 0,
    "complex": lambda: np.ones(N) + 1j,
    "series": lambda: pd.Series(np.ones(N), index=INDEX[::-1]),
    "sparse": lambda: scipy.sparse.csr_matrix(np.ones((N, 1))),
    "tensor": lambda: torch.ones(N),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(1)] * N),
    "fake tensor": lambda: _fake(N),
    "float16": lambda: np.ones(N, "f2"),
    "diagonal": lambda: np.eye(N),
    "nothing in it": lambda: [None] * N,
    "dict": lambda: {0: 1.0},
}


def pick_X(case: Case, hostile: float = 0.4) -> Any:
    """X, mostly the usual."""
    return case.pick(HOSTILE_X if case.happens(hostile) else USUAL_X, "X")()


def pick_y(case: Case, hostile: float = 0.3) -> Any:
    """y, mostly the usual."""
    return case.pick(HOSTILE_Y if case.happens(hostile) else USUAL_Y, "y")()


def pick_weights(case: Case) -> Any:
    """sample_weight, mostly None."""
    return case.pick(WEIGHTS, "sample_weight")() if case.happens(0.2) else None
