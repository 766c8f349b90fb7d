"""Inputs for mean-field theory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_capacity._validation import float_array, plain_array

__all__ = ["as_samples", "input_correlation", "normalize_samples"]


def input_correlation(X: Any) -> float:
    """Compute the mean of x_s . x_t / n_features over pairs s != t of normalised samples, for `mean_field`.

    Each sample is first scaled to mean 0 and variance 1 over its features, as Karakida et al. do for images.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...), at least 2 samples

    Returns
    -------
    float in [0, 1]
        0 for independent inputs; a negative mean, which is only possible for few samples, is returned as 0.

    Raises
    ------
    ValueError
        For fewer than two samples, a constant sample, NaN or infinity.

    Examples
    --------
    >>> from sklearn_capacity.theory import input_correlation
    >>> round(input_correlation([[1.0, -1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]), 6)
    1.0
    """
    X = normalize_samples(as_samples(X).astype(np.float64))
    n_samples, n_features = X.shape
    if n_samples < 2:
        raise ValueError("`X` must have at least 2 samples, got 1.")
    total = np.square(X.sum(axis=0)).sum() - np.square(X).sum()  # all pairs s != t
    return float(np.clip(total / (n_samples * (n_samples - 1) * n_features), 0.0, 1.0))


def as_samples(X: Any) -> NDArray[Any]:
    """A finite 2-D floating array: float32 stays, everything else becomes float64."""
    X = np.asarray(plain_array("X", X))
    X = X if X.dtype == np.float32 else float_array("X", X)
    if X.ndim < 2 or X.size == 0:
        raise ValueError(f"`X` must have shape (n_samples, ...) with at least one sample, got shape {X.shape}.")
    if not np.isfinite(X).all():
        raise ValueError("`X` must be finite, got NaN or infinity.")
    return X.reshape(len(X), -1)


def normalize_samples(X: NDArray[Any]) -> NDArray[Any]:
    """Scale each row to mean 0 and variance 1."""
    centred = X - X.mean(axis=1, keepdims=True)
    scale = centred.std(axis=1, keepdims=True)
    if not (scale > 0).all():
        raise ValueError(f"`X` must not contain constant samples, but sample {int(np.argmin(scale))} is constant.")
    return centred / scale
