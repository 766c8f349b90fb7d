"""Calls of a penalty: arguments are checked, precision is full, and torch's errors name the function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sklearn_capacity._validation import check_instance, failure_text
from sklearn_capacity.derivatives.modes import in_full_precision

__all__ = ["checked_penalty", "naming_function"]


def checked_penalty(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A penalty ``(function, X, ..., sample_weight=None)`` with its arguments checked."""
    evaluate = in_full_precision(penalty)

    @functools.wraps(penalty)
    def checked(function: Any, X: Tensor, *args: Any, **options: Any) -> Tensor:
        _check_batch(X, options.get("sample_weight"))
        with naming_function(function, X):
            return evaluate(function, X, *args, **options)

    return checked


@contextmanager
def naming_function(function: Any, X: Tensor) -> Iterator[None]:
    """Add the function and the batch to the error of a failed evaluation."""
    try:
        yield
    except Exception as error:
        text = failure_text(error)
        if text is None:
            raise
        batch = f"`X` of shape {tuple(X.shape)} and {X.dtype}"
        raise ValueError(
            f"`{type(function).__name__}` cannot be evaluated or differentiated at {batch}: {text}"
        ) from error


def _check_batch(X: Any, sample_weight: Any) -> None:
    check_instance("X", X, Tensor, "a tensor of shape (n, ...)")
    if X.is_nested or X.dim() < 2 or not X.is_floating_point() or X.is_sparse:
        whole = not X.is_floating_point() and not X.is_complex()
        cure = " For token ids pass the part of the network after the embedding, and its input." if whole else ""
        raise ValueError(
            f"`X` must be a dense real tensor of shape (n, ...) with floating point numbers, got shape "
            f"{'nested' if X.is_nested else tuple(X.shape)}, {X.dtype}, {X.layout}.{cure}"
        )
    if sample_weight is None:
        return
    check_instance("sample_weight", sample_weight, Tensor, "None or a tensor of shape (n,)")
    if sample_weight.shape != X.shape[:1]:
        raise ValueError(f"`sample_weight` must have shape ({len(X)},), got {tuple(sample_weight.shape)}.")
