"""Capacity during training: measures in the history of any skorch net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback

from .._validation import NotDefinedError, as_list, check_integer
from .capacity import measure_capacity
from .data import subsample
from .outcomes import check_max_seconds
from .pickling import TravelsByValue

__all__ = ["CapacityCallback"]


class CapacityCallback(TravelsByValue, Callback):
    """Record capacity measures in a skorch net's history after each epoch.

    The network is measured with its current weights, never from cached predictions, and the measurement changes
    neither training nor its random numbers. The history stores the values under the measures' labels, not negated,
    so skorch's TensorBoard and MlflowLogger callbacks also log them if they come after this one.

    Parameters
    ----------
    measures : str, Measure, list of these, dict, "essential", "cheap" or "all", default="essential"
        As in `measure_capacity`, names of scikit-learn's scorers ("accuracy") included.
    X, y : array-like, default=None
        Data to measure on, with labels as the net receives them (class indices in this package's estimators). None:
        the training data of the fit.
    every : int, default=1
        Number of epochs between two measurements; the other epochs get nan.
    epochs : sequence of int >= 1, default=None
        The epochs after which to measure, instead of `every`; the first is 1. Epochs that training does not reach are
        not measured.
    prefix : str, default=""
        Prefix of the labels.
    loss, log, max_samples, batch_size, max_memory, device, random_state
        As in `measure_capacity`; at most `max_samples` (default 1000) of the training samples are used.
    max_seconds : float, default=None
        Limit for each measurement, as in `measure_capacity`. Measures left out of an epoch get nan there.

    Raises
    ------
    ValueError
        During training, as in `measure_capacity`, if a named measure does not apply.

    See Also
    --------
    displays.HistoryDisplay : Draws what the history contains.
    InitialStateCallback : Keeps the weights before training.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_capacity import CapacityCallback, NetworkClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> callback = CapacityCallback(["l2_path_norm", "margin"])
    >>> model = NetworkClassifier((8,), max_epochs=3, callbacks=[callback], random_state=0).fit(X, y)
    >>> len(model.history_[:, "l2_path_norm"])
    3
    """

    def __init__(
        self,
        measures: Any = "essential",
        *,
        X: Any = None,
        y: Any = None,
        every: int = 1,
        epochs: Sequence[int] | None = None,
        prefix: str = "",
        loss: str | None = None,
        log: bool = False,
        max_samples: int | None = 1000,
        batch_size: int | None = None,
        max_memory: int | str | None = None,
        device: Any = None,
        random_state: int = 0,
        max_seconds: float | None = None,
    ) -> None:
        self.measures = measures
        self.X = X
        self.y = y
        self.every = every
        self.epochs = epochs
        self.prefix = prefix
        self.loss = loss
        self.log = log
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.max_seconds = max_seconds

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._check_epochs()
        if self.max_samples is not None:
            check_integer("max_samples", self.max_samples, 1)
        check_max_seconds(self.max_seconds)
        self._labels: list[str] = []
        given = (self.X, self.y) if self.X is not None else _arrays(X, y, self.max_samples, self.random_state)
        self._data: Any = given

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        values = self._measure(net) if self._is_chosen(len(net.history)) else {}
        new = dict.fromkeys((f"{self.prefix}{label}" for label in values if label not in self._labels), float("nan"))
        for row in net.history if new else []:  # every row has the same columns, even if epochs measure differently
            row.update(new)
        self._labels = list(dict.fromkeys([*self._labels, *values]))
        for label in self._labels:
            net.history.record(f"{self.prefix}{label}", values.get(label, float("nan")))

    def _check_epochs(self) -> None:
        check_integer("every", self.every, 1)
        if self.epochs is None:
            return
        if self.every != 1:
            raise ValueError(f"`every` must be 1 when `epochs` is given, got {self.every}.")
        self._epochs = [check_integer("epochs", epoch, 1) for epoch in as_list("epochs", self.epochs)]

    def _is_chosen(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 1."""
        return epoch % self.every == 0 if self.epochs is None else epoch in self._epochs

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._data = None  # type: ignore[assignment]

    def _state(self) -> dict[str, Any]:
        return {key: value for key, value in super()._state().items() if key != "_data"}  # without the training data

    def _measure(self, net: NeuralNet) -> dict[str, float]:
        module = net.module_
        modes = {part: part.training for part in module.modules()}
        try:
            X, y = self._data
            return measure_capacity(
                net,
                X,
                y,
                self.measures,
                loss=self.loss,
                log=self.log,
                max_samples=self.max_samples,
                batch_size=self.batch_size,
                max_memory=self.max_memory,
                device=self.device,
                random_state=self.random_state,
                max_seconds=self.max_seconds,
            )
        finally:
            for part, training in modes.items():
                part.training = training


def _arrays(X: Any, y: Any, max_samples: int | None, random_state: int) -> tuple[Any, Any]:
    """The training data of a fit, which skorch passes as arrays or as a dataset."""
    if not isinstance(X, torch.utils.data.Dataset):
        return X, y
    rows, _ = subsample(np.arange(len(X)), None, max_samples, random_state)  # type: ignore[arg-type]
    pairs = [X[int(row)] for row in rows]
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise NotDefinedError(
            "CapacityCallback cannot read (X, y) from this dataset: pass `X` and `y` to the callback."
        )
    inputs, targets = zip(*pairs, strict=True)
    return torch.stack([torch.as_tensor(x) for x in inputs]), torch.stack([torch.as_tensor(t) for t in targets])
