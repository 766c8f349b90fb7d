"""Callbacks for any skorch net that records ``train_loss``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from tqdm import tqdm

from sklearn_capacity._validation import DivergenceError
from sklearn_capacity.process_state import computing
from sklearn_capacity.training.batches import TensorData

__all__ = ["DivergenceCheck", "EpochProgress", "StopAtError", "StopBelow"]


def losses_of(epoch: Mapping[str, Any]) -> list[str]:
    """Names of an epoch's losses and penalties."""
    return [key for key in epoch if key in ("train_loss", "valid_loss") or key.startswith("train_penalty")]


class StopBelow(Callback):
    """Stop training as soon as an epoch's training loss is below `threshold` ([EG]: 1e-4)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.has_stopped_ = False

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if net.history[-1, "train_loss"] < self.threshold:
            self.has_stopped_ = True
            raise KeyboardInterrupt  # skorch's way to stop the loop


class StopAtError(Callback):
    """Record each epoch's training error as ``train_error``; stop as soon as it is at most `threshold` ([EG]: 0).

    The error is the weighted share of misclassified training samples after the epoch, in evaluation mode.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.has_stopped_ = False

    def on_epoch_end(self, net: NeuralNet, dataset_train: Any = None, **kwargs: Any) -> None:
        error = training_error(net, dataset_train)
        net.history.record("train_error", error)
        if error <= self.threshold:
            self.has_stopped_ = True
            raise KeyboardInterrupt


def training_error(net: NeuralNet, data: TensorData) -> float:
    """The weighted share of samples whose largest logit is not that of their label, in evaluation mode."""
    net._set_training(False)
    size = max(net.batch_size, 512)
    with computing(), torch.no_grad():
        chunks = [data.X[start : start + size].clone() for start in range(0, len(data), size)]
        labels: Any = data.y
        wrong = torch.cat([net.infer(chunk).argmax(1) for chunk in chunks]).ne(labels)  # (n,)
        weights = torch.ones_like(wrong, dtype=torch.float64) if data.sample_weight is None else data.sample_weight
        return ((wrong * weights).sum() / weights.sum()).item()


class DivergenceCheck(Callback):
    """Raise as soon as a loss or a penalty is no longer finite; the message names the epoch and the value."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        epoch = net.history[-1]
        for name in losses_of(epoch):
            value = epoch[name]
            if not math.isfinite(value):
                raise DivergenceError(
                    f"Training diverged in epoch {epoch['epoch']}: the {name.replace('_', ' ')} is {value}. "
                    f"Lower `learning_rate` ({net.optimizer_.param_groups[0]['lr']:g}) or scale the data."
                )


class EpochProgress(Callback):
    """A tqdm bar over the epochs that shows the latest losses; none for a single epoch."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "bar_"}  # an open stream

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_ = tqdm(total=net.max_epochs, unit="epoch", disable=net.max_epochs == 1)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        epoch = net.history[-1]
        shown = {key: f"{epoch[key]:.4g}" for key in losses_of(epoch)}
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.close()
        del self.bar_
