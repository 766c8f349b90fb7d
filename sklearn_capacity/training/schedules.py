"""Learning rates that change from epoch to epoch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sklearn_capacity._validation import as_list, float_array, plain_array, shown
from sklearn_capacity.process_state import silenced

__all__ = ["LearningRateSchedule", "TorchSchedule", "make_schedule", "set_learning_rates"]


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to its initial one times `factor` times the group's ``"scale"``, if any."""
    for group in optimizer.param_groups:
        base = group.setdefault("initial_lr", group["lr"])
        group["lr"] = base * factor * group.get("scale", 1.0)


class LearningRateSchedule(Callback):
    """Multiply the learning rate by a factor of the epoch.

    Epochs are numbered from 0 over the life of the net, so that ``partial_fit`` and ``warm_start``
    continue a schedule.

    Parameters
    ----------
    factor : callable
        ``factor(epoch)`` returns a number that is at least 0.
    """

    def __init__(self, factor: Callable[[int], float]) -> None:
        self.factor = factor

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        factor = float(self.factor(len(net.history) - 1))
        set_learning_rates(net.optimizer_, factor)


class TorchSchedule(Callback):
    """Step one of torch's schedulers after each epoch.

    With `partial_fit` and a warm start, its state is restored by replaying the net's history.

    Parameters
    ----------
    factory : callable
        ``factory(optimizer)`` returns a ``torch.optim.lr_scheduler`` object.
    """

    def __init__(self, factory: Callable[[torch.optim.Optimizer], Any]) -> None:
        self.factory = factory

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        set_learning_rates(net.optimizer_, 1.0)
        with silenced("Detected call of `lr_scheduler.step"):  # replaying deliberately steps it before the optimiser
            self.scheduler_ = self.factory(net.optimizer_)
            for epoch in net.history:
                self._step(epoch)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._step(net.history[-1])

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        del self.scheduler_

    def _step(self, epoch: dict[str, Any]) -> None:
        if isinstance(self.scheduler_, ReduceLROnPlateau):
            loss = epoch.get("valid_loss", epoch.get("train_loss"))
            if loss is not None:  # the epoch was not interrupted
                self.scheduler_.step(loss)
        else:
            self.scheduler_.step()


def cosine_factor(epoch: int, *, max_epochs: int) -> float:
    """1/2 (1 + cos(pi epoch / max_epochs)), 0 afterwards."""
    return 0.5 * (1 + math.cos(math.pi * min(epoch / max_epochs, 1.0)))


def step_factor(epoch: int, *, steps: list[tuple[float, float]]) -> float:
    """Product of the factors of all steps at or before the epoch."""
    return math.prod(factor for start, factor in steps if epoch >= start)


def listed_factor(epoch: int, *, factors: list[float]) -> float:
    """The epoch's entry; the last one applies to all later epochs."""
    return factors[min(epoch, len(factors) - 1)]


def make_schedule(schedule: Any, max_epochs: int) -> Callback | None:
    """The callback for a `learning_rate_schedule`, or None.

    Parameters
    ----------
    schedule : None, "cosine", list of pairs, list of numbers, callable or torch scheduler
        See :class:`sklearn_capacity.NetworkClassifier`.
    max_epochs : int
        Length of a cosine.

    Raises
    ------
    ValueError
        If it is none of these, or needs arguments other than the epoch or the optimiser.
    """
    if schedule is None:
        return None
    if isinstance(schedule, str) and schedule == "cosine":
        return LearningRateSchedule(functools.partial(cosine_factor, max_epochs=max_epochs))
    if callable(schedule):
        function = schedule.func if isinstance(schedule, functools.partial) else schedule
        is_torch = inspect.isclass(function) and issubclass(function, LRScheduler | ReduceLROnPlateau)
        _check_arguments(schedule, function, "optimizer" if is_torch else "epoch")
        return TorchSchedule(schedule) if is_torch else LearningRateSchedule(schedule)
    if isinstance(schedule, Iterable) and not isinstance(schedule, str):
        return LearningRateSchedule(
            _listed(as_list("learning_rate_schedule", plain_array("learning_rate_schedule", schedule)))
        )
    raise ValueError(
        '`learning_rate_schedule` must be None, "cosine", a list of (epoch, factor) pairs, a list of factors, '
        f"a function of the epoch or a scheduler class from torch, got {shown(schedule)}."
    )


def _check_arguments(schedule: Callable[..., Any], kind: Callable[..., Any], given: str) -> None:
    """Raise unless the schedule (or the `kind` that a partial completes) can be called with one argument."""
    arguments, keywords = (schedule.args, schedule.keywords) if isinstance(schedule, functools.partial) else ((), {})
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(*arguments, None, **keywords)
    except TypeError as error:
        name = getattr(kind, "__name__", repr(kind))
        others = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][1:]
        needed = [parameter.name for parameter in others if parameter.default is parameter.empty]
        listed = ", ".join(f"{parameter}=..." for parameter in needed) or "..."
        raise ValueError(
            f"`learning_rate_schedule` must be callable with only the {given}, but {name} is not: {error}. "
            f"Pass functools.partial({name}, {listed})."
        ) from error


def _listed(schedule: list[Any]) -> Callable[[int], float]:
    try:
        numbers = float_array("learning_rate_schedule", schedule)
    except ValueError:
        numbers = np.empty(0)
    if numbers.size == 0 or not (numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] == 2)):
        raise ValueError(
            "`learning_rate_schedule` as a list must contain (epoch, factor) pairs or one factor per epoch, "
            f"got {shown(schedule)}."
        )
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError(
            f"`learning_rate_schedule` must contain finite numbers that are at least 0, got {shown(schedule)}."
        )
    if numbers.ndim == 1:
        return functools.partial(listed_factor, factors=numbers.tolist())
    return functools.partial(step_factor, steps=[(start, factor) for start, factor in numbers.tolist()])
