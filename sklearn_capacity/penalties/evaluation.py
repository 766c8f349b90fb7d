"""Calls of a penalty: arguments are checked, precision is full, and torch's errors name the function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity._validation import check_instance, failure_text, shape_text, shown
from sklearn_capacity.derivatives.modes import in_full_precision

__all__ = ["checked_penalty", "checked_targets", "naming_function"]


def checked_penalty(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A penalty ``(function, X, ..., sample_weight=None)``, by position or by name, with its arguments checked."""
    evaluate, names = in_full_precision(penalty), tuple(inspect.signature(penalty).parameters)[:2]

    @functools.wraps(penalty)
    def checked(*args: Any, **options: Any) -> Tensor:
        unset = names[len(args) :]
        if not options.keys() >= {*unset}:
            return penalty(*args, **options)  # raises Python's error
        function, X, *more = *args, *(options.pop(name) for name in unset)
        if not callable(function):
            raise TypeError(f"`{names[0]}` must be a module or a function of `X`, got {shown(function)}.")
        if torch.is_inference_mode_enabled() and options.get("shared") is None:
            return _outside_of_inference_mode(checked, function, X, more, options)
        weight = options.get("sample_weight")
        _check_batch(X, weight)
        with naming_function(function, X):
            # A user's criterion counts samples in its own way, and weights that are learned need their derivatives.
            if weight is None or weight.requires_grad or options.get("criterion") is not None or bool(weight.all()):
                return evaluate(function, X, *more, **options)
            return _without_zeros(evaluate, function, X, more, options)

    return checked


def _outside_of_inference_mode(
    penalty: Callable[..., Tensor], function: Any, X: Tensor, args: list[Any], options: dict[str, Any]
) -> Tensor:
    """The value of a penalty, whose derivatives at its inputs inference mode would forbid."""

    def usual(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    with torch.inference_mode(False):
        options = {name: usual(value) for name, value in options.items()}
        return penalty(function, usual(X), *map(usual, args), **options).detach()


def _without_zeros(
    evaluate: Callable[..., Tensor], function: Any, X: Tensor, args: list[Any], options: dict[str, Any]
) -> Tensor:
    """The penalty at the samples whose weight is not 0: times 0, an overflow at another one would be nan."""
    kept = options["sample_weight"] != 0  # (n,)
    if (shared := options.pop("shared", None)) is not None:
        shared.tape_at(function, X)  # raises if it is of another batch
    empty = not bool(kept.any())
    kept[0] |= empty  # an evaluation checks the other arguments
    share = int(kept.sum()) / len(kept)  # of n, by which a mean is divided

    def part(value: Any) -> Any:
        by_sample = isinstance(value, Tensor) and not value.is_nested and value.shape[:1] == kept.shape
        return value[kept] if by_sample else value

    options = {name: part(value) for name, value in options.items()}
    options["sample_weight"] = options["sample_weight"] * share
    value = evaluate(function, X[kept], *map(part, args), **options)
    return torch.zeros_like(value, requires_grad=value.requires_grad) if empty else value


@contextmanager
def naming_function(function: Any, X: Tensor) -> Iterator[None]:
    """Add the function and the batch to the error of a failed evaluation."""
    try:
        yield
    except Exception as error:
        text = failure_text(error)
        if text is None:
            raise
        batch = f"`X` of shape {shape_text(X)} and {X.dtype}"
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
            f"{shape_text(X)}, {X.dtype}, {X.layout}.{cure}"
        )
    if sample_weight is None:
        return
    check_instance("sample_weight", sample_weight, Tensor, "None or a tensor of shape (n,)")
    if sample_weight.is_nested or sample_weight.shape != X.shape[:1]:
        raise ValueError(f"`sample_weight` must have shape ({len(X)},), got {shape_text(sample_weight)}.")


def checked_targets(y: Any, outputs: Tensor, *, numbers: bool) -> Tensor:
    """Targets with one row for each of the outputs; `numbers` have the outputs' shape, and one per sample is a row."""
    check_instance("y", y, Tensor, "a tensor of targets")
    if y.is_nested or y.dim() == 0 or len(y) != len(outputs):
        raise ValueError(f"`y` must have one target per sample, {len(outputs)} in all, got shape {shape_text(y)}.")
    if not numbers:
        return y
    if y.dim() == 1 and outputs.numel() == len(y):
        y = y.reshape(outputs.shape)
    if y.shape != outputs.shape:
        raise ValueError(f"`y` must have the outputs' shape, {shape_text(outputs)}, got {shape_text(y)}.")
    return y
