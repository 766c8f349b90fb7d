"""Hypothesis strategies for data that users have and that are not what an estimator wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from hypothesis import strategies as st

DTYPES = ("f8", "f4", "f2", "i8", "i1", "u2", "?", "c16", "O", "U3", "M8[D]")
SCALES = (1.0, 1e-300, 1e-30, 1e30, 1e300, 1e6, 0.0)
SPOILT = (None, np.nan, np.inf, -np.inf)


@st.composite
def matrices(draw: Any, n_rows: Any = None) -> Any:
    """X of some kind: numbers of any dtype, scale, layout, container and shape, sometimes with holes in it."""
    n = draw(st.sampled_from((0, 1, 2, 3, 12, 12, 12))) if n_rows is None else n_rows
    shape = (n, *draw(st.sampled_from([(4,), (4,), (4,), (4,), (1,), (0,), (3,), (2, 2), (1, 2, 2), ()])))
    rng = np.random.default_rng(draw(st.integers(0, 5)))
    with np.errstate(all="ignore"):
        numbers = rng.normal(size=shape) * draw(st.sampled_from(SCALES[:1] * 6 + SCALES))
        spoilt = draw(st.sampled_from(SPOILT[:1] * 6 + SPOILT))
        if spoilt is not None and numbers.size:
            numbers.flat[draw(st.integers(0, numbers.size - 1))] = spoilt
        X = _typed(numbers, draw(st.sampled_from(DTYPES[:1] * 6 + DTYPES)))
    return draw(st.sampled_from((_plain,) * 6 + WRAPPERS))(X)


@st.composite
def targets(draw: Any, n_rows: int) -> Any:
    """y of some kind for so many rows, sometimes for more."""
    n = max(0, n_rows + draw(st.sampled_from((0,) * 8 + (1, -1))))
    index = np.arange(n)
    kinds = [
        index % 3, index % 3, index % 2, index % 2 == 0, np.array(["a", "b", "c"])[index % 3],
        np.array(["a", "b", 3], object)[index % 3], np.zeros(n, int), index, np.sin(index), np.full(n, np.nan),
        np.stack([np.sin(index), np.cos(index)], 1), np.full((n, 1), 2.0), np.eye(3)[index % 3],
        np.array(["a", None], object)[index % 2],
        index.astype("f4") * 1e38, np.sin(index) * 1e300, np.where(index == 0, np.inf, 1.0), None, 3, "labels",
        (index % 3).tolist(), pd.Series(index % 3, index=index + 7), (index % 3).astype(complex),
    ]  # fmt: skip
    return draw(st.sampled_from(kinds))


@st.composite
def weights(draw: Any, n_rows: int) -> Any:
    """sample_weight of some kind."""
    n = max(0, n_rows + draw(st.sampled_from((0,) * 8 + (1,))))
    kinds = [None, None, np.ones(n), np.arange(n) * 1.0, np.zeros(n), -np.ones(n), np.full(n, np.nan), ["a"] * n, 2.0]
    return draw(st.sampled_from([*kinds, np.ones((n, 2)), np.full(n, 1e300), np.full(n, 1e-300), np.full(n, np.inf)]))


def _typed(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "O":
        mixed = numbers.astype(object)
        if mixed.size:
            mixed.flat[0] = "text"
        return mixed
    if dtype in ("M8[D]", "i8", "i1", "u2", "?"):
        return np.nan_to_num(numbers * 3, posinf=9, neginf=-9).clip(-100, 100).astype("i8").astype(dtype)
    return numbers.astype(dtype)


def _plain(X: np.ndarray) -> Any:
    return X


def _reversed(X: np.ndarray) -> Any:
    return np.ascontiguousarray(X[::-1])[::-1] if X.ndim else X


def _read_only(X: np.ndarray) -> Any:
    X = X.copy()
    X.flags.writeable = False
    return X


def _sparse(X: np.ndarray) -> Any:
    return scipy.sparse.csr_matrix(X) if X.ndim == 2 and X.dtype.kind in "fi" and X.dtype.itemsize > 2 else X


def _frame(X: np.ndarray) -> Any:
    return pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])]) if X.ndim == 2 else X


def _mixed_frame(X: np.ndarray) -> Any:
    frame = _frame(X)
    if isinstance(frame, pd.DataFrame) and frame.shape[1]:
        frame["c0"] = pd.Categorical(["u", "v"] * (len(frame) // 2) + ["u"] * (len(frame) % 2))
        frame["when"] = pd.Timestamp("2020-01-01")
    return frame


def _nullable_frame(X: np.ndarray) -> Any:
    frame = _frame(X)
    # pandas 2 cannot convert complex numbers
    return frame.convert_dtypes() if isinstance(frame, pd.DataFrame) and X.dtype.kind != "c" else frame


def _tensor(X: np.ndarray) -> Any:
    return torch.from_numpy(X.copy()) if X.dtype.kind in "fib" else X


def _list(X: np.ndarray) -> Any:
    return X.tolist()


def _nothing(X: np.ndarray) -> Any:
    return None


WRAPPERS = (
    _plain, _reversed, np.asfortranarray, _read_only, _sparse, _frame, _mixed_frame, _nullable_frame, _tensor, _list,
    _nothing, np.ma.masked_array,
)  # fmt: skip
