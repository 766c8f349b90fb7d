"""Errors while a network is built or trained, rewritten to name the parameter that caused them."""

from __future__ import annotations

import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from sklearn_capacity._validation import failure_text
from sklearn_capacity.estimators._modules import make_module
from sklearn_capacity.training import LearningRateSchedule, PenalizedNet, TensorBatches, TorchSchedule
from sklearn_capacity.training.objectives import step_with_gradients
from sklearn_capacity.training.optimizers import resolve_optimizer
from sklearn_capacity.training.penalty_terms import PenaltyTerm

__all__ = ["naming_parameters"]

#: parameter -> the functions that call its value; the innermost of them in the traceback decides
CALLERS: dict[str, tuple[Any, ...]] = {
    "module": (make_module, PenalizedNet.infer, PenalizedNet.train_step_single),
    "optimizer": (
        resolve_optimizer,
        NeuralNet.initialize_optimizer,
        PenalizedNet._step_optimizer,
        PenalizedNet.begin_training,
        step_with_gradients,
    ),
    "callbacks": (NeuralNet.notify, NeuralNet.initialize_callbacks),
    "augmentation": (TensorBatches.__iter__,),
    "penalty": (PenaltyTerm.value,),
    "learning_rate_schedule": (
        LearningRateSchedule.on_epoch_begin,
        TorchSchedule.on_train_begin,
        TorchSchedule.on_epoch_end,
    ),
}
_PARAMETERS = {function.__code__: name for name, functions in CALLERS.items() for function in functions}


@contextmanager
def naming_parameters() -> Iterator[None]:
    """Raise a ValueError or TypeError that names the parameter behind a failed fit.

    Messages of this package, of the file system and of exhausted memory are left unchanged, and so are exceptions of
    classes that the user's code defines (a search raises these to end a trial).
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        text = failure_text(error)
        if text is None and not _is_refusal(error, frames[-1]):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{_source(frames)} made the fit fail: {text or error}") from error


def _is_refusal(error: Exception, raised_in: types.FrameType) -> bool:
    """Whether torch or skorch, or the call of the user's object itself, refuses an argument."""
    package = raised_in.f_globals.get("__name__", "").partition(".")[0]
    foreign = package in ("torch", "skorch") or raised_in.f_code in _PARAMETERS
    return type(error) in (ValueError, TypeError) and foreign and not str(error).startswith("`")


def _source(frames: list[types.FrameType]) -> str:
    """The parameter behind an error, with the callback's class if it is a callback."""
    source, callback = "`module`", ""
    for frame in frames:
        if frame.f_code in _PARAMETERS:
            source, callback = f"`{_PARAMETERS[frame.f_code]}`", ""
        elif source == "`callbacks`" and not callback and isinstance(frame.f_locals.get("self"), Callback):
            callback = f" ({type(frame.f_locals['self']).__name__})"
    return source + callback
