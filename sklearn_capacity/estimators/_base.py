"""What all network estimators share: `fit`, which builds and trains a skorch net.

`fit` is one sequence of steps: check the parameters, validate the data, split off a part for early stopping, build a
net, update its optimiser and callbacks, train it, store it. A variant overrides one hook: the module
(`_make_module`), the penalties, the callbacks or the optimiser's parameter groups.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from skorch.utils import noop
from torch import Tensor, nn

from sklearn_capacity._validation import check_seed, plain_array
from sklearn_capacity.architectures.mlp import MLP
from sklearn_capacity.estimators._callbacks import copies
from sklearn_capacity.estimators._checkpoints import newest_checkpoint
from sklearn_capacity.estimators._data import Samples, check_data, weighted_samples
from sklearn_capacity.estimators._failures import naming_parameters
from sklearn_capacity.estimators._fitted import FittedNetwork
from sklearn_capacity.estimators._modules import check_batch_norm, check_output, make_module
from sklearn_capacity.estimators._outcome import (
    check_finite,
    warn_of_failure,
    warn_of_interrupt,
    warn_of_normalized_outputs,
)
from sklearn_capacity.estimators._parameters import MLP_PARAMETERS
from sklearn_capacity.estimators._restoring import restore
from sklearn_capacity.graph import takes_channels_last
from sklearn_capacity.layers import resolve_augmentation
from sklearn_capacity.losses import CRITERIA
from sklearn_capacity.penalties import PARAMETER_PENALTIES
from sklearn_capacity.process_state import computing, keeps_modes, keeps_random_numbers
from sklearn_capacity.training import (
    DivergenceCheck,
    EpochProgress,
    PenalizedNet,
    StopBelow,
    TensorData,
    decay_groups,
    largest_decay,
    make_schedule,
    resolve_device,
    resolve_optimizer,
    resumable_fit,
    seeded,
)

__all__ = ["CALLBACK_PARAMETERS", "BaseNetwork", "can_continue"]

#: if one of these changes between fits, the optimiser is rebuilt
OPTIMIZER_PARAMETERS = (
    "optimizer",
    "optimizer_params",
    "learning_rate",
    "learning_rate_schedule",
    "momentum",
    "weight_decay",
)

#: if one of these changes between fits or calls of `partial_fit`, the callbacks are rebuilt
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


def can_continue(estimator: BaseNetwork) -> bool:
    """Whether `partial_fit` exists: no validation part can be held out across calls."""
    if estimator.early_stopping is True:  # `fit` refuses anything but a bool
        raise AttributeError("`partial_fit` is not available with early_stopping=True.")
    return True


class BaseNetwork(FittedNetwork):
    """Base of the estimators: training."""

    # what differs between classifiers and regressors
    _net_class: ClassVar[type[PenalizedNet]]
    _output_meaning: ClassVar[str]
    _takes_logits: ClassVar[bool] = False  # whether the loss applies a softmax to the outputs
    _silenced: ClassVar[tuple[str, ...]] = ("print_log",)  # default callbacks of skorch that are turned off
    _target_options: ClassVar[dict[str, Any]] = {}  # how scikit-learn validates y
    _callback_parameters: ClassVar[tuple[str, ...]] = CALLBACK_PARAMETERS

    # learnt from the data by a classifier or a regressor
    _n_outputs: int
    loss_name_: str

    # ---- hooks of the variants --------------------------------------------------------------

    def _make_module(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        """The untrained network, on any device and in any precision."""
        if self.module is not None:
            return make_module(self.module, self.module_params, input_shape, n_outputs)
        settings = {name: getattr(self, name) for name in MLP_PARAMETERS}
        return MLP(int(np.prod(input_shape)), n_outputs, **settings)

    def _penalties(self, generator: torch.Generator) -> list[tuple[Any, float]]:
        """Penalties, each ``penalty(module, X, sample_weight=None)`` or None, with their strengths."""
        penalty = PARAMETER_PENALTIES[self.penalty] if isinstance(self.penalty, str) else self.penalty
        return [(copied(penalty), self.penalty_strength)]  # a copy, since a penalty may have state

    def _extra_callbacks(self) -> list[Callback]:
        """skorch callbacks of a variant; they run before the learning-rate schedule."""
        return []

    def _parameter_groups(self, module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """skorch's ``optimizer__param_groups``: pairs (pattern of parameter names, settings of the group)."""
        return decay_groups(self.weight_decay, [name for name, _ in module.named_parameters()])

    # ---- hooks of classifiers and regressors ------------------------------------------------

    def _check_target(self, y: np.ndarray, *, reset: bool, classes: Any = None) -> np.ndarray:
        """y in the form that the loss expects; with `reset`, learn the number of outputs."""
        raise NotImplementedError(f"{type(self).__name__} must implement `_check_target`.")

    def _check_kept(self, y: np.ndarray) -> None:
        """Raise if the samples of positive weight are too few for a first fit."""

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        """Groups whose proportions the validation part keeps."""
        return None

    def _stopping_callbacks(self) -> list[Callback]:
        """Callbacks that end training when the training data is learnt."""
        return [] if self.stop_below is None else [StopBelow(self.stop_below)]

    def _weights(self, X: np.ndarray, y: np.ndarray, sample_weight: Any) -> np.ndarray | None:
        """Weights of the samples, or None where all are 1."""
        if sample_weight is None:
            return None
        weights = _check_sample_weight(
            plain_array("sample_weight", sample_weight), X, dtype=X.dtype, ensure_non_negative=True
        )
        if not weights.any():  # older versions of scikit-learn accept this
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return weights

    # ---- fit and its steps ------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
        y : array-like of shape (n_samples,), or (n_samples, n_outputs) for regressors
        sample_weight : array-like of shape (n_samples,), default=None
            At least 0; divided by their mean. A weight of 0 has the effect of leaving the sample out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data is not usable, or if training diverges: the message then names
            the epoch and the loss.
        """
        self._check_parameters()
        return self._learn(X, y, sample_weight, reset=not (self.warm_start and hasattr(self, "net_")))

    @available_if(can_continue)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on the given samples; the first call builds the network.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        self
        """
        self._check_partial()
        return self._learn(X, y, sample_weight, reset=not hasattr(self, "net_"), partial=True)

    @keeps_modes
    def _learn(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, partial: bool = False, classes: Any = None
    ) -> Self:
        """All steps after the parameter checks; `reset` builds a new net, `partial` trains for one epoch."""
        samples = self._validated(X, y, sample_weight, reset=reset, classes=classes)
        device = resolve_device(self.device)
        if reset:
            self.__dict__.pop("net_", None)  # if this fit fails, the previous network must not pass for its result
        seed = self._next_seed(reset)
        train, valid = self._split(samples, seed)
        with naming_parameters(), seeded(seed, device) as generator:
            with computing():
                net = self._make_net(train.X, device) if reset else self.net_
            self._update(net, callbacks=reset or not partial)
            self._train(net, train, valid, generator, partial=partial)
        return self._keep(net, len(train.X))

    def _validated(self, X: Any, y: Any, sample_weight: Any, *, reset: bool, classes: Any) -> Samples:
        """The user's data, validated, in the shape and precision of the network."""
        X, y = check_data(self, X, y, reset=reset, **self._target_options)
        y = self._check_target(y, reset=reset, classes=classes)
        samples = weighted_samples(X, y, self._weights(X, y, sample_weight))
        if reset:
            self._check_kept(samples.y)
        return samples

    def _next_seed(self, reset: bool) -> int:
        """An integer seed per run; a continued run has a new one, which an integer `random_state` determines."""
        if reset:
            random = check_random_state(check_seed("random_state", self.random_state))
            self._seed, self._n_runs = int(random.randint(2**31 - 1)), 0
        else:
            self._n_runs += 1
        return int(np.random.SeedSequence([self._seed, self._n_runs]).generate_state(1)[0])

    def _split(self, samples: Samples, seed: int) -> tuple[Samples, Samples | None]:
        """The training part and the validation part, which is None without early stopping."""
        if not self.early_stopping:
            return samples, None
        return samples.split(self.validation_fraction, self._strata(samples.y), seed)

    def _make_net(self, X: np.ndarray, device: torch.device) -> PenalizedNet:
        """An untrained skorch net around a new module."""
        dtype = torch.from_numpy(np.empty(0, X.dtype)).dtype
        module = self._make_module(self.input_shape_, self._n_outputs).to(device=device, dtype=dtype)
        sample = TensorData(X[:1], device=device, dtype=dtype).X.clone()
        check_output(module, sample, self._n_outputs, self._output_meaning)
        self.initial_state_ = {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
        return self._net_around(module, device)

    def _net_around(self, module: nn.Module, device: torch.device, images_last: bool | None = None) -> PenalizedNet:
        """A skorch net that owns the module and a new optimiser; with None, a trial run decides about channels last."""
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
            with keeps_random_numbers():
                net.images_last_ = takes_channels_last(module, self.input_shape_, training=True)
        return net

    def _optimizer_options(self, module: nn.Module, device: torch.device) -> dict[str, Any]:
        """The net's parameters that concern the optimiser."""
        optimizer, settings = resolve_optimizer(
            self.optimizer,
            momentum=self.momentum,
            weight_decay=largest_decay(self.weight_decay),
            params=self.optimizer_params,
            device=device,
        )
        if isinstance(self.weight_decay, Mapping):
            settings.pop("weight_decay", None)  # the groups have it
        settings["param_groups"] = self._parameter_groups(module)
        return {
            "optimizer": optimizer,
            "lr": self.learning_rate,
            **{f"optimizer__{name}": value for name, value in settings.items()},
        }

    def _update(self, net: PenalizedNet, *, callbacks: bool) -> None:
        """Update the net's optimiser, and its callbacks if `callbacks` is true or a parameter of theirs has changed."""
        if self._changed("_optimizer_settings", OPTIMIZER_PARAMETERS):
            self._renew_optimizer(net)
        if callbacks or self._changed("_callback_settings", self._callback_parameters):
            self._renew_callbacks(net)

    def _renew_optimizer(self, net: PenalizedNet) -> None:
        """Rebuild the optimiser from parameters that have changed since the last fit (warm start)."""
        self._optimizer_settings = self._current(OPTIMIZER_PARAMETERS)
        for key in [key for key in vars(net) if key.startswith("optimizer__")]:
            delattr(net, key)
        for key, value in self._optimizer_options(net.module_, torch.device(net.device)).items():
            setattr(net, key, value)
        net._initialize_optimizer()

    def _renew_callbacks(self, net: PenalizedNet) -> None:
        """Rebuild the callbacks: the variant's (which may regroup parameters), schedule, user's, early stopping."""
        self._callback_settings = self._current(self._callback_parameters)
        schedule = make_schedule(self.learning_rate_schedule, self.max_epochs)
        callbacks: list[Any] = [DivergenceCheck(), *self._extra_callbacks(), *([schedule] if schedule else [])]
        callbacks += copies(self.callbacks)  # skorch writes into them
        if self.verbose:
            callbacks.append(EpochProgress())
        callbacks += self._stopping_callbacks()
        if self.early_stopping:
            options = {"patience": self.n_iter_no_change, "threshold": self.tol, "threshold_mode": "abs"}
            # named, so that a user's callback may have the name of the class
            callbacks.append(("early_stopping", EarlyStopping(**options, load_best=True, sink=noop)))
        net.callbacks = callbacks
        net.initialize_callbacks()

    def _current(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(copy.copy(getattr(self, name)) for name in names)

    def _changed(self, kept: str, names: tuple[str, ...]) -> bool:
        """Whether a parameter differs from the value stored in the attribute `kept`."""
        return not all(same(*pair) for pair in zip(self._current(names), getattr(self, kept), strict=True))

    def _train(
        self, net: PenalizedNet, train: Samples, valid: Samples | None, generator: torch.Generator, *, partial: bool
    ) -> None:
        """Train the net with the current parameters, for one epoch if `partial`."""
        epochs = 1 if partial else self.max_epochs
        data = self._prepare(net, train, epochs, generator)
        net.train_split = None if valid is None else predefined_split(net.get_dataset(*valid))
        if self._takes_logits and not net.history and not (self.module is None or isinstance(self.module, str)):
            warn_of_normalized_outputs(net, data)
        checkpoints = newest_checkpoint(self, net, train, valid)
        try:
            if checkpoints is None:
                net.partial_fit(data, None, epochs=epochs)
            else:
                resumable_fit(net, data, epochs, *checkpoints, generator, self.checkpoint_every)
            warn_of_interrupt(net)
            outputs, loss = check_finite(net, data)
        except Exception:
            self.__dict__.pop("net_", None)  # a diverged network is not a network
            raise
        finally:  # data, generators and entries per batch do not go into a pickle
            is_held = any(penalty is not None and strength for penalty, strength in net.penalties)
            net.train_split = net.iterator_train__generator = net.iterator_train__transform = None
            net.penalties, net._terms_ = (), None
        for epoch in net.history:
            epoch["batches"] = epoch["batches"][-1:]  # skorch's Checkpoint reads the last entry of an epoch
        warn_of_failure(net, data, outputs, loss, partial=partial, stops_early=self.early_stopping, is_held=is_held)

    def _prepare(self, net: PenalizedNet, train: Samples, epochs: int, generator: torch.Generator) -> TensorData:
        """Set the net's training options; returns its data."""
        data = net.get_dataset(*train)
        check_batch_norm(net.module_, min(len(data), self.batch_size))
        net.penalties = self._penalties(generator)
        net.batch_size, net.max_epochs = self.batch_size, epochs
        net.iterator_train__generator = generator
        net.iterator_train__transform = resolve_augmentation(self.augmentation)
        return data

    def _keep(self, net: PenalizedNet, n_samples: int) -> Self:
        """Store the net, and the counts of samples and epochs, as fitted attributes."""
        self.net_ = net
        self.n_samples_fit_ = n_samples
        self.n_iter_ = len(net.history)
        return self

    def _restore(
        self,
        attributes: Mapping[str, Any],
        state: Mapping[str, Tensor],
        initial_state: Mapping[str, Tensor],
        history: list[dict[str, Any]],
    ) -> None:
        """Set the fitted state read from a file; raises ValueError if it does not match the parameters."""
        restore(self, attributes, state, initial_state, history)


def copied(value: Any) -> Any:
    """A deep copy, or a shallow one if the value holds something that cannot be copied, such as an open log."""
    try:
        return copy.deepcopy(value)
    except TypeError:
        return copy.copy(value)


def same(a: Any, b: Any) -> bool:
    """Whether two parameters are equal; arrays are compared elementwise and reduced to one bool."""
    return a is b or (type(a) is type(b) and np.array_equal(np.asarray(a, object), np.asarray(b, object)))
