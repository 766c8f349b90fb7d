"""Between scikit-learn's two-dimensional X and the shape that a module wants."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_capacity._validation import plain_array

__all__ = ["flatten_samples", "resolve_input_shape", "split_validation"]


def flatten_samples(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """X with samples of more dimensions as rows, and their shape, or None where X had rows.

    scikit-learn's checks, and ``n_features_in_``, know two dimensions only.
    """
    X = plain_array("X", X)
    if isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) > 1:
        X = np.asarray(X)
    shape = getattr(X, "shape", ())
    if len(shape) <= 2:
        return X, None
    X = np.asarray(X)
    return X.reshape(len(X), int(np.prod(shape[1:]))), tuple(shape[1:])


def resolve_input_shape(
    asked: tuple[int, ...] | None, seen: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    """Shape of one sample as the module gets it."""
    if asked is None:
        return (n_features,) if seen is None else seen
    asked = tuple(asked)
    if seen is not None and seen != asked:
        raise ValueError(f"`input_shape` must equal the shape {seen} of the samples in X, got {asked}.")
    if int(np.prod(asked)) != n_features:
        raise ValueError(
            f"`input_shape` must describe the {n_features} features of X, got {asked}, "
            f"which has {int(np.prod(asked))} elements."
        )
    return asked


def split_validation(
    arrays: list[np.ndarray], stratify: np.ndarray | None, fraction: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and validation parts of the arrays; stratified unless a class or a part is too small for it."""
    index = np.arange(len(arrays[0]))
    options = {"test_size": fraction, "random_state": seed % 2**32}
    try:
        train, valid = train_test_split(index, stratify=stratify, **options)
    except ValueError:
        if stratify is None:
            raise
        train, valid = train_test_split(index, **options)
    return [array[train] for array in arrays], [array[valid] for array in arrays]
