"""Conversion of a user's X and y to tensors, with checks of shapes, dtypes, labels and samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array, check_random_state
from torch import Tensor

from .._validation import NotDefinedError, all_finite, check_dense, check_integer, check_option, plain_array, shown
from ..losses import CLASSIFICATION, REGRESSION, is_classification
from .find_network import Subject

__all__ = ["LOSSES", "checked_X", "encode_targets", "refuse_hollow", "resolve_loss", "subsample", "with_classes"]

LOSSES = (*CLASSIFICATION, *REGRESSION)


def refuse_hollow(name: str, data: Any) -> None:
    """Raise for data without a dense array of values."""
    if scipy.sparse.issparse(data):
        raise TypeError(f"`{name}` must be dense, got a sparse matrix. Use `{name}.toarray()`.")
    if isinstance(data, Tensor):
        check_dense(name, data)


def checked_X(subject: Subject, X: Any) -> Any:
    """X as a finite numeric array or tensor of shape (n, *input_shape)."""
    refuse_hollow("X", X)
    try:
        X = subject.transform_X(X.detach().resolve_neg() if isinstance(X, Tensor) else X)
    except OverflowError as error:
        raise _beyond_floats(error) from error
    _check_columns(subject, X)
    if scipy.sparse.issparse(X):
        X = X.toarray()  # the pipeline may produce sparse rows, but a network needs dense ones
    if isinstance(X, Tensor):
        X = X.detach()
        refuse_hollow("X", X)
        if X.dim() < 2 or not len(X):
            raise ValueError(f"`X` must have shape (n_samples, ...) with at least one sample, got {tuple(X.shape)}.")
        if not X.is_floating_point():
            X = X.to(torch.get_default_dtype())
        if not all_finite(X):
            raise ValueError("`X` contains NaN or infinity. Impute or remove these samples first.")
    else:
        try:
            X = check_array(X, allow_nd=True, dtype="numeric", input_name="X")
            torch_has_it = X.dtype.kind == "f" and X.dtype.itemsize <= 8
            X = X.astype(X.dtype.newbyteorder("=") if torch_has_it else np.float64, copy=False)
        except OverflowError as error:
            raise _beyond_floats(error) from error
    if subject.input_shape is not None:
        n, size = X.shape[0], int(np.prod(subject.input_shape))
        if int(np.prod(X.shape[1:])) != size:
            raise ValueError(
                f"`X` must have {size} features per sample, as in `fit` (input shape {subject.input_shape}), got "
                f"{int(np.prod(X.shape[1:]))}."
            )
        X = X.reshape(n, *subject.input_shape)
    return X


def _beyond_floats(error: OverflowError) -> ValueError:
    return ValueError(f"`X` must hold numbers that are finite in float64: {error}.")


def _check_columns(subject: Subject, X: Any) -> None:
    """Check that a frame's columns have the names and the order of the fit."""
    columns = getattr(X, "columns", None)
    if subject.columns is None or columns is None:
        return
    for place, (fitted, got) in enumerate(zip(subject.columns, columns, strict=False)):
        if fitted != got:
            raise ValueError(
                f"`X` must have {fitted!r} as column {place}, as in `fit`, got {got!r}. Order the columns with "
                "`X[model.feature_names_in_]`."
            )


def resolve_loss(loss: str | None, subject: Subject, y: Any) -> tuple[str | None, str | None]:
    """The loss to measure with, and "classification" or "regression"; None where unknown.

    The loss is the one named, else the model's own (None if this package does not have it), else given by the labels.
    """
    if loss is not None:
        loss = check_option("loss", loss, LOSSES)
    elif subject.other_loss is not None:
        return None, "regression" if subject.classes is None else "classification"
    else:
        loss = _loss_of(subject, y)
    if loss is None:
        return None, None
    return loss, "classification" if is_classification(loss) else "regression"


def _loss_of(subject: Subject, y: Any) -> str | None:
    if subject.loss is not None or y is None:
        return subject.loss
    kind = y.dtype if isinstance(y, Tensor) else np.asarray(y).dtype
    if isinstance(kind, torch.dtype):
        return "squared" if kind.is_floating_point else "cross_entropy"
    return "squared" if kind.kind == "f" else "cross_entropy"


def encode_targets(subject: Subject, y: Any, task: str | None, n_samples: int, n_outputs: int) -> Any:
    """Class indices (n,) int64, or targets (n, C) float64."""
    y = np.asarray(plain_array("y", y))
    if y.shape[:1] != (n_samples,):
        raise ValueError(f"`y` must have one entry per sample, got shape {y.shape} for {n_samples} samples.")
    if task == "classification":
        if n_outputs < 2:
            raise NotDefinedError(
                "A classifier must return at least two logits, got a network with one output. For regression pass "
                'loss="squared"; for a binary model with one logit z pass a module that returns [-z/2, z/2] (models of '
                "scikit-learn and skorch's NeuralNetBinaryClassifier are converted in this way)."
            )
        return _encode_labels(subject, y, n_outputs)
    if y.dtype.kind not in "fiub":
        raise ValueError(f"`y` must be numeric for regression, got dtype {y.dtype}.")
    y = np.asarray(subject.transform_y(y), dtype=np.float64)
    y = y.reshape(n_samples, -1)
    if not np.isfinite(y).all():
        raise ValueError("`y` contains NaN or infinity.")
    if y.shape[1] != n_outputs:
        cure = ' For the labels of a classifier pass integers, or loss="cross_entropy".' * (y.shape[1] == 1)
        raise ValueError(f"`y` must have {n_outputs} columns, one per output of the network, got {y.shape[1]}.{cure}")
    return y


def _encode_labels(subject: Subject, y: np.ndarray, n_outputs: int) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise NotDefinedError(
            f"`y` must be one label per sample, got shape {y.shape}: multilabel targets are not supported. For one-hot "
            "rows pass `y.argmax(axis=1)`."
        )
    if subject.classes is None and y.dtype.kind not in "iufb":  # the outputs cannot be matched to the labels
        raise ValueError(
            f"`y` must hold class indices, since a plain module has no labels, got {y[:1].tolist()[0]!r}. Or pass the "
            "labels in the order of the outputs as `classes`, to a function with that parameter."
        )
    classes = np.arange(n_outputs) if subject.classes is None else np.asarray(subject.classes)
    if len(classes) != n_outputs:
        raise ValueError(
            f"`classes` must have one label for each of the network's {n_outputs} outputs, got {len(classes)} labels."
        )
    order = np.argsort(classes)
    place = np.searchsorted(classes[order], y).clip(max=len(classes) - 1)
    index = order[place]
    unseen = classes[index] != y
    if unseen.any():
        listed = ", ".join(repr(v) for v in np.unique(y[unseen])[:3].tolist())
        raise ValueError(
            f"`y` contains labels that the model does not know: {listed}. The model knows {classes.tolist()[:10]}"
            + (" (class indices, since a plain module has no labels)." if subject.classes is None else ".")
        )
    return index.astype(np.int64)


def with_classes(subject: Subject, classes: Any) -> Subject:
    """The subject with the caller's labels for its outputs.

    Raises
    ------
    ValueError
        If labels are repeated, or differ from those that the model knows.
    """
    labels = np.asarray(classes)
    if labels.ndim != 1 or len(labels) < 2 or len(np.unique(labels)) != len(labels):
        raise ValueError(
            f"`classes` must be distinct labels, one for each output of the network, got {shown(classes)}."
        )
    known = subject.classes
    if known is not None and not np.array_equal(np.asarray(known), labels):
        labels_known = np.asarray(known).tolist()
        raise ValueError(f"`classes` must be None or the labels of the model, {labels_known}, got {shown(classes)}.")
    return replace(subject, classes=labels, loss=subject.loss or "cross_entropy")


def subsample(X: Any, y: Any, max_samples: int | None, random_state: int) -> tuple[Any, Any]:
    """A seeded random subset of at most `max_samples` rows, in the original order."""
    if max_samples is None:
        return X, y
    check_integer("max_samples", max_samples, 1)
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    if n <= max_samples:
        return X, y
    rows = np.sort(check_random_state(random_state).choice(n, max_samples, replace=False))
    return _take(X, rows), None if y is None else _take(y, rows)


def _take(data: Any, rows: np.ndarray) -> Any:
    if hasattr(data, "iloc"):
        return data.iloc[rows]
    if isinstance(data, Tensor):
        return data[torch.as_tensor(rows, device=data.device)]
    array = data if hasattr(data, "shape") else np.asarray(data)
    if array.ndim == 0:  # a string or a set, which has a length, too
        raise ValueError(f"`X` and `y` must have one entry per sample, got {type(data).__name__}.")
    return array[rows]
