"""Training data: from scikit-learn's two-dimensional X to samples in the module's input shape, and splitting them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import validate_data

from sklearn_capacity._validation import plain_array, refuse_containers
from sklearn_capacity.estimators import _constraints

if TYPE_CHECKING:
    from sklearn_capacity.estimators._fitted import FittedNetwork

__all__ = ["Samples", "check_data", "flatten_samples", "resolve_input_shape", "sound_samples", "weighted_samples"]


class Samples(NamedTuple):
    """What a network is trained on.

    Attributes
    ----------
    X : ndarray of shape (n, *input_shape)
    y : ndarray of shape (n,) of class indices or (n, n_outputs)
    weight : ndarray of shape (n,), or None where all are 1
    """

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None

    def take(self, index: Any) -> Samples:
        """The samples of an index array or slice."""
        return Samples(self.X[index], self.y[index], None if self.weight is None else self.weight[index])

    def split(self, fraction: float, strata: np.ndarray | None, seed: int) -> tuple[Samples, Samples]:
        """Training and validation parts; stratified unless a class or a part is too small for it."""
        index = np.arange(len(self.X))
        options = {"test_size": fraction, "random_state": seed % 2**32}
        try:
            train, valid = train_test_split(index, stratify=strata, **options)
        except ValueError:
            if strata is None:
                raise
            train, valid = train_test_split(index, **options)
        return self.take(train), self.take(valid)

    def arrays(self) -> list[np.ndarray]:
        """X, y, and the weights unless they are None."""
        return [array for array in self if array is not None]


def weighted_samples(X: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> Samples:
    """Samples with weights of mean 1; samples of zero weight are dropped, so that they do not count in a batch."""
    if weights is None:
        return Samples(X, y)
    kept = weights > 0
    return Samples(X[kept], y[kept], weights[kept] / weights[kept].mean())


def flatten_samples(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """X with each sample flattened to a row, and the samples' shape, or None if X had rows already.

    scikit-learn's checks, and ``n_features_in_``, support only two dimensions.
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
    input_shape: tuple[int, ...] | None, seen: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    """Shape of one sample as the module receives it."""
    if input_shape is None:
        return (n_features,) if seen is None else seen
    input_shape = tuple(input_shape)
    if seen is not None and seen != input_shape:
        raise ValueError(f"`input_shape` must equal the shape {seen} of the samples in X, got {input_shape}.")
    if int(np.prod(input_shape)) != n_features:
        raise ValueError(
            f"`input_shape` must describe the {n_features} features of X, got {input_shape}, "
            f"which has {int(np.prod(input_shape))} elements."
        )
    return input_shape


def check_data(estimator: FittedNetwork, X: Any, y: Any = "no_validation", *, reset: bool, **options: Any) -> Any:
    """X as an array of shape (n, *input_shape_), and y if given; with `reset`, the estimator learns shape and dtype."""
    alone = isinstance(y, str) and y == "no_validation"
    if isinstance(y, str | bytes) and not alone:
        raise ValueError(f"y must have one entry per sample, got {y!r}.")
    refuse_containers(X, "trained")
    X, seen = flatten_samples(X)
    dtype = _constraints.dtype("dtype", estimator.dtype)
    if not reset:
        allowed: Any = estimator._dtype
    elif dtype is None:
        allowed = [np.float64, np.float32]
    else:
        allowed = str(dtype).removeprefix("torch.")
    y = plain_array("y", y)
    try:
        checked = validate_data(estimator, X, y, dtype=allowed, order="C", reset=reset, **options)
    except OverflowError as error:
        raise ValueError(f"X and y must contain numbers that are finite in float64: {error}.") from error
    X, y = (checked, None) if alone else checked
    if reset:
        estimator.input_shape_ = resolve_input_shape(estimator.input_shape, seen, X.shape[1])
        estimator._dtype = X.dtype
    elif seen is not None and seen != estimator.input_shape_:
        raise ValueError(f"X must contain samples of shape {estimator.input_shape_}, got {seen}.")
    X = X.reshape(len(X), *estimator.input_shape_)
    return X if alone else (X, y)


def sound_samples(estimator: FittedNetwork, X: Any) -> np.ndarray | None:
    """X as samples to predict, or None where scikit-learn's checks have more to say than whether values are finite.

    Those checks take as long as the forward pass of a small network; of a DataFrame, as several of them.
    """
    if type(X) is not np.ndarray:
        X = _known_columns(estimator, X)
    elif hasattr(estimator, "feature_names_in_"):  # a warning is due
        return None
    if X is None or X.dtype.kind not in "fiub" or not (X.ndim and len(X)):
        return None
    shape = X.shape[1:]
    if shape != (estimator.n_features_in_,) and (X.ndim == 2 or shape != estimator.input_shape_):
        return None
    return X.reshape(len(X), *estimator.input_shape_)


def _known_columns(estimator: FittedNetwork, X: Any) -> np.ndarray | None:
    """The values of a DataFrame of pandas with the columns of `fit`, if NumPy's own types hold them."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or type(X).__name__ != "DataFrame" or type(X).__module__.partition(".")[0] != "pandas":
        return None
    if not np.array_equal(np.asarray(X.columns, dtype=object), names):
        return None
    return X.to_numpy() if all(isinstance(dtype, np.dtype) for dtype in X.dtypes) else None
