"""How an estimator makes, trains and keeps its skorch net."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from skorch.utils import noop
from torch import nn

from sklearn_capacity._validation import warn
from sklearn_capacity.estimators._callbacks import copies
from sklearn_capacity.estimators._data import split_validation
from sklearn_capacity.estimators._failures import naming_parameters
from sklearn_capacity.estimators._modules import check_output
from sklearn_capacity.graph import takes_channels_last
from sklearn_capacity.layers import resolve_augmentation
from sklearn_capacity.process_state import computing, keeps_modes
from sklearn_capacity.storage import fingerprint
from sklearn_capacity.training import (
    CRITERIA,
    CheckpointFolder,
    DivergenceCheck,
    EpochProgress,
    PenalizedNet,
    StopBelow,
    TensorData,
    make_schedule,
    resolve_device,
    resolve_optimizer,
    resumable_fit,
    seeded,
)
from sklearn_capacity.training.behaviour import Behaviour, first_step, global_generators
from sklearn_capacity.training.checkpoints import FORMAT

__all__ = ["NetTraining"]

#: a change of one of these between fits makes a new optimiser
OPTIMIZER_PARAMETERS = (
    "optimizer",
    "optimizer_params",
    "learning_rate",
    "learning_rate_schedule",
    "momentum",
    "weight_decay",
)

#: a change of one of these between fits, or calls of `partial_fit`, makes new callbacks
CALLBACK_PARAMETERS = (
    "callbacks",
    "early_stopping",
    "learning_rate_schedule",
    "max_epochs",
    "n_iter_no_change",
    "stop_below",
    "tol",
    "verbose",
)

#: parameters that do not change the result
NOT_HASHED = ("checkpoint_dir", "checkpoint_every", "device", "verbose", "warm_start")


class NetTraining:
    """The training half of the estimators; it reads their parameters and checked data."""

    _net_class: ClassVar[type[PenalizedNet]]
    _output_meaning: ClassVar[str]
    _silenced: ClassVar[tuple[str, ...]] = ("print_log",)  # default callbacks of the skorch net
    _callback_parameters: ClassVar[tuple[str, ...]] = CALLBACK_PARAMETERS

    # parameters and methods of the estimators that this half reads
    augmentation: Any
    batch_size: int
    callbacks: Any
    checkpoint_dir: Any
    checkpoint_every: int
    device: Any
    early_stopping: bool
    learning_rate: float
    learning_rate_schedule: Any
    max_epochs: int
    momentum: float
    n_iter_no_change: int
    optimizer: Any
    optimizer_params: dict[str, Any] | None
    penalty: Any
    penalty_strength: float
    random_state: Any
    stop_below: float | None
    tol: float
    validation_fraction: float
    verbose: int
    weight_decay: float
    input_shape_: tuple[int, ...]
    loss_name_: str
    net_: PenalizedNet
    _n_outputs: int
    _check_X: Any
    _check_target: Any
    _make_module: Any
    _target_options: Any
    _weights: Any

    # ---- hooks ------------------------------------------------------------------------------

    def _penalties(self, generator: torch.Generator) -> list[tuple[Any, float]]:
        """Penalties, ``penalty(module, X, sample_weight=None)`` or None, each with its strength."""
        return [(copied(self.penalty), self.penalty_strength)]  # a copy, as it may count or remember

    def _extra_callbacks(self) -> list[Callback]:
        """skorch callbacks of a variant; they run before the learning rate's schedule."""
        return []

    def _parameter_groups(self, module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """skorch's ``optimizer__param_groups``: (pattern of parameter names, settings of the group)."""
        return []

    def _check_kept(self, y: np.ndarray) -> None:
        """Whether the samples that remain without those of zero weight can be learnt from at first."""

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        """Groups to keep in proportion in the validation part."""
        return None

    # ---- one run ----------------------------------------------------------------------------

    @keeps_modes
    def _train(self, X: Any, y: Any, sample_weight: Any, *, reset: bool, partial: bool = False, **target: Any) -> Any:
        """Make a net if `reset`, then train it for `max_epochs`, or for one epoch if `partial`."""
        device = resolve_device(self.device)
        X, y = self._check_X(X, y, reset=reset, **self._target_options())
        y = self._check_target(y, reset=reset, **target)
        arrays = self._drop_weightless(X, y, self._weights(y, sample_weight, X))
        if reset:
            self._check_kept(arrays[1])
            vars(self).pop("net_", None)  # should this fit fail, the last one's network does not stand for it
        seed = self._next_seed(reset)
        valid = None
        if self.early_stopping:
            strata = self._strata(arrays[1])
            arrays, valid = split_validation(arrays, strata, self.validation_fraction, seed)
        with naming_parameters(), seeded(seed, device) as generator:
            with computing():
                net = self._make_net(arrays[0], device) if reset else self.net_
            self._update_optimizer(net)
            if reset or not partial or self._changed("_callback_settings", self._callback_parameters):
                self._update_callbacks(net)
            self._run(net, arrays, valid, 1 if partial else self.max_epochs, generator)
        self.net_ = net
        self.n_samples_fit_ = len(arrays[0])
        self.n_iter_ = len(net.history)
        return self

    @staticmethod
    def _drop_weightless(X: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
        """X, y and weights of mean 1; without the samples of zero weight, so that none counts in a batch."""
        if weights is None:
            return [X, y]
        kept = weights > 0
        return [X[kept], y[kept], weights[kept] / weights[kept].mean()]

    def _next_seed(self, reset: bool) -> int:
        """An integer per run; continued runs have their own, which an integer `random_state` fixes."""
        if reset:
            self._seed, self._n_runs = int(check_random_state(self.random_state).randint(2**31 - 1)), 0
        else:
            self._n_runs += 1
        return int(np.random.SeedSequence([self._seed, self._n_runs]).generate_state(1)[0])

    def _make_net(self, X: np.ndarray, device: torch.device) -> PenalizedNet:
        """An untrained skorch net around a new module."""
        dtype = torch.from_numpy(np.empty(0, X.dtype)).dtype
        module = self._make_module(self.input_shape_, self._n_outputs).to(device=device, dtype=dtype)
        sample = TensorData(X[:1], device=device, dtype=dtype).X.clone()
        check_output(module, sample, self._n_outputs, self._output_meaning)
        self.initial_state_ = {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
        return self._net_around(module, device)

    def _net_around(self, module: nn.Module, device: torch.device, images_last: bool | None = None) -> PenalizedNet:
        """A skorch net that owns the module and a new optimiser; None tries whether images may have channels last."""
        self._optimizer_settings = self._current(OPTIMIZER_PARAMETERS)
        net = self._net_class(
            module,
            criterion=CRITERIA[self.loss_name_],
            device=str(device),
            verbose=0,
            **dict[str, Any]({f"callbacks__{name}": None for name in self._silenced}),
            **self._optimizer_options(module, device),
        )
        net.initialize()
        if images_last is not None:
            net.images_last_ = images_last
        elif len(self.input_shape_) == 3 and device.type == "cpu":
            with torch.random.fork_rng(devices=[]):
                net.images_last_ = takes_channels_last(module, self.input_shape_, training=True)
        return net

    def _optimizer_options(self, module: nn.Module, device: torch.device) -> dict[str, Any]:
        """The optimiser's part of a net's parameters."""
        optimizer, settings = resolve_optimizer(
            self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            params=self.optimizer_params,
            device=device,
        )
        settings["param_groups"] = self._parameter_groups(module)
        return {
            "optimizer": optimizer,
            "lr": self.learning_rate,
            **{f"optimizer__{name}": value for name, value in settings.items()},
        }

    def _update_optimizer(self, net: PenalizedNet) -> None:
        """A new optimiser if one of its parameters has changed since the last fit (warm start)."""
        if not self._changed("_optimizer_settings", OPTIMIZER_PARAMETERS):
            return
        self._optimizer_settings = self._current(OPTIMIZER_PARAMETERS)
        for key in [key for key in vars(net) if key.startswith("optimizer__")]:
            delattr(net, key)
        for key, value in self._optimizer_options(net.module_, torch.device(net.device)).items():
            setattr(net, key, value)
        net._initialize_optimizer()

    def _current(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(copy.copy(getattr(self, name)) for name in names)

    def _changed(self, kept: str, names: tuple[str, ...]) -> bool:
        """Whether one of the parameters differs from what the attribute `kept` has kept of them."""
        return not all(same(*pair) for pair in zip(self._current(names), getattr(self, kept), strict=True))

    def _run(self, net: PenalizedNet, arrays: list, valid: list | None, epochs: int, generator: Any) -> None:
        """Train the net for some epochs with the current parameters."""
        data = self._prepare(net, arrays, epochs, generator)
        net.train_split = None if valid is None else predefined_split(net.get_dataset(*valid))
        checkpoints = self._checkpoints(net, arrays, valid)
        try:
            if checkpoints is None:
                net.partial_fit(data, None, epochs=epochs)
            else:
                resumable_fit(net, data, epochs, *checkpoints, generator, self.checkpoint_every)
            tell_interrupt(net)
            check_finite(net, data)
        except Exception:
            vars(self).pop("net_", None)  # a diverged network is not a network
            raise
        # neither the data, nor generators, nor entries per batch travel with a pickle
        net.train_split = net.iterator_train__generator = net.iterator_train__transform = None
        net.penalties, net._terms_ = (), None
        for epoch in net.history:
            epoch["batches"] = epoch["batches"][-1:]  # skorch's Checkpoint reads an epoch's last one

    def _prepare(self, net: PenalizedNet, arrays: list, epochs: int, generator: Any) -> TensorData:
        """Tell the net how to train; returns its data."""
        data = net.get_dataset(*arrays)
        check_batch_norm(net.module_, min(len(data), self.batch_size))
        net.penalties = self._penalties(generator)
        net.batch_size, net.max_epochs = self.batch_size, epochs
        net.iterator_train__generator = generator
        net.iterator_train__transform = resolve_augmentation(self.augmentation)
        return data

    def _checkpoints(self, net: PenalizedNet, arrays: list, valid: list | None) -> tuple[Any, Any] | None:
        """The folder of this fit and what is in it, by a hash of parameters, data, seed, and by what it computes."""
        if self.checkpoint_dir is None:
            return None
        params = {key: value for key, value in self.get_params(deep=False).items() if key not in NOT_HASHED}
        try:
            key = fingerprint(
                params=params,
                kind=type(self),
                data=[*arrays, *(valid or [])],
                classes=getattr(self, "classes_", None),
                versions=[torch.__version__, FORMAT],
            )
        except TypeError as error:
            raise TypeError(f"{error} Fit with checkpoint_dir=None.") from error
        try:
            behaviour = self._behaviour(arrays, torch.device("cpu"))
        except RuntimeError:  # layers that only a GPU has
            if torch.device(net.device).type == "cpu":
                raise
            behaviour = self._behaviour(arrays, torch.device(net.device))
        return CheckpointFolder.open(self.checkpoint_dir, key[:40], behaviour)

    def _behaviour(self, arrays: list[np.ndarray], device: torch.device) -> Behaviour:
        """What the first step computes, of a network that is made for this alone."""
        few = [array[: self.batch_size] for array in arrays]
        schedule = make_schedule(self.learning_rate_schedule, self.max_epochs)
        factor = getattr(schedule, "factor", None)  # a function of the epoch alone
        factors = [float(factor(epoch)) for epoch in range(self.max_epochs)] if callable(factor) else []
        with global_generators(), seeded(self._seed, device) as generator:
            alone = object.__new__(type(self))  # copy.copy would pickle the user's classes
            vars(alone).update(vars(self))
            net = alone._make_net(few[0], device)
            return first_step(net, alone._prepare(net, few, 1, generator), factors)

    def _update_callbacks(self, net: PenalizedNet) -> None:
        """The variant's, which may regroup the optimiser's parameters, the schedule, the user's, those that end."""
        self._callback_settings = self._current(self._callback_parameters)
        schedule = make_schedule(self.learning_rate_schedule, self.max_epochs)
        callbacks: list[Any] = [DivergenceCheck(), *self._extra_callbacks(), *([schedule] if schedule else [])]
        callbacks += copies(self.callbacks)  # skorch writes into them
        if self.verbose:
            callbacks.append(EpochProgress())
        if self.stop_below is not None:
            callbacks.append(StopBelow(self.stop_below))
        if self.early_stopping:
            options = {"patience": self.n_iter_no_change, "threshold": self.tol, "threshold_mode": "abs"}
            # named, so that a user's own may have the name of the class
            callbacks.append(("early_stopping", EarlyStopping(**options, load_best=True, sink=noop)))
        net.callbacks = callbacks
        net.initialize_callbacks()


def copied(value: Any) -> Any:
    """A deep copy, or a shallow one of what holds something that cannot be copied, as an open log."""
    try:
        return copy.deepcopy(value)
    except TypeError:
        return copy.copy(value)


def same(a: Any, b: Any) -> bool:
    """Whether two parameters are equal; arrays are compared as a whole."""
    return a is b or (type(a) is type(b) and np.array_equal(np.asarray(a, object), np.asarray(b, object)))


def check_batch_norm(module: nn.Module, batch_size: int) -> None:
    """Refuse batches of one sample where batch norm would divide by a variance of nothing."""
    if batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in module.modules()):
        raise ValueError("Batch norm needs batches of at least 2 samples, got 1 sample.")


def tell_interrupt(net: PenalizedNet) -> None:
    """Warn if Ctrl-C has ended the training, which skorch takes for its end: in a search it would pass unseen."""
    if net.history and "dur" not in net.history[-1]:  # the time of an epoch is taken at its end, before any stop
        net.history.record("epoch", len(net.history))  # which the interrupt may have come before
        warn(
            f"Training was interrupted in epoch {net.history[-1, 'epoch']}, and the network is kept as it "
            "was then; a search goes on with its next fit. Fit again for a network that is trained to its end."
        )


def check_finite(net: PenalizedNet, data: TensorData) -> None:
    """Raise if the weights, or the outputs for some training samples, are not finite after the last step.

    Buffers are left out: a mask may hold infinities. Those of batch norm show in the outputs.
    """
    sample = data.X[: net.batch_size].clone()
    net._set_training(False)
    with computing(), torch.no_grad():
        tensors = [*net.module_.parameters(), net.module_(sample)]
        finite = torch.stack([t.isfinite().all() for t in tensors]).all().item()
    if not finite:
        epoch = net.history[-1]
        raise ValueError(
            f"Training diverged in epoch {epoch['epoch']}: the network is no longer finite, its last training loss "
            f"was {epoch.get('train_loss')}. Lower `learning_rate` ({net.lr:g}) or scale the data."
        )
