"""What all network estimators share: they own a skorch net, and let scikit-learn see flat parameters."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from skorch.utils import noop
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from sklearn_capacity.architectures.mlp import MLP
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._data import flatten_samples, resolve_input_shape, split_validation
from sklearn_capacity.estimators._modules import check_output, make_module
from sklearn_capacity.training import (
    CRITERIA,
    DivergenceCheck,
    EpochProgress,
    PenalizedNet,
    StopBelow,
    TensorData,
    make_schedule,
    resolve_device,
    resolve_optimizer,
    seeded,
)

__all__ = ["BaseNetwork", "can_continue"]

#: parameters of the built-in MLP, which mean nothing to another module
MLP_PARAMETERS = ("hidden_layer_sizes", "activation", "bias", "batch_norm", "weight_norm", "dropout")

_PREDICTION_CHUNK = 512


def can_continue(estimator: BaseNetwork) -> bool:
    """Whether there is a `partial_fit`: a validation part cannot be kept apart over many calls."""
    if estimator.early_stopping:
        raise AttributeError("`partial_fit` is not available with early_stopping=True.")
    return True


class BaseNetwork(BaseEstimator):
    """Base of the estimators. A variant overrides one hook:

    ``_make_module()``, ``_penalty(generator)``, ``_extra_callbacks()``, ``_parameter_groups()``.
    """

    _constraints: ClassVar[dict[str, Any]] = _constraints.COMMON
    _net_class: ClassVar[type[PenalizedNet]]
    _output_meaning: ClassVar[str]
    _silenced: ClassVar[tuple[str, ...]] = ("print_log",)  # default callbacks of the skorch net

    # ---- hooks ------------------------------------------------------------------------------

    def _make_module(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        """The network before training, on any device and in any precision."""
        if self.module is not None:
            return make_module(self.module, self.module_params, input_shape, n_outputs)
        settings = {name: getattr(self, name) for name in MLP_PARAMETERS}
        return MLP(int(np.prod(input_shape)), n_outputs, **settings)

    def _penalty(self, generator: torch.Generator) -> tuple[Any, float]:
        """``penalty(module, X, sample_weight=None)`` or None, and its strength."""
        return None, 0.0

    def _extra_callbacks(self) -> list[Callback]:
        """skorch callbacks of a variant; they run after the learning rate's schedule."""
        return []

    def _parameter_groups(self, module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """skorch's ``optimizer__param_groups``: (pattern of parameter names, settings of the group)."""
        return []

    # ---- what differs between classifiers and regressors ------------------------------------

    def _target_options(self) -> dict[str, Any]:
        """How scikit-learn is to validate y."""
        return {}

    def _check_target(self, y: np.ndarray, *, reset: bool, **target: Any) -> np.ndarray:
        """y as numbers for the loss; with `reset` learn ``_n_outputs`` and ``loss_name_``."""
        raise TypeError(f"{type(self).__name__} does not define `_check_target`.")

    def _check_kept(self, y: np.ndarray) -> None:
        """Whether the samples that remain without those of zero weight can be learnt from."""

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        """Groups to keep in proportion in the validation part."""
        return None

    # ---- public methods ---------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BaseNetwork:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
        y : array-like of shape (n_samples,), or (n_samples, n_outputs) for regressors
        sample_weight : array-like of shape (n_samples,), default=None
            At least 0; divided by their mean. A weight of 0 is the same as leaving the sample out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data is not usable, or if training diverges: the message names the
            epoch and the loss.
        """
        self._check_parameters()
        continued = self.warm_start and hasattr(self, "net_")
        return self._train(X, y, sample_weight, epochs=self.max_epochs, reset=not continued)

    @available_if(can_continue)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> BaseNetwork:
        """Train for one epoch on the given samples; the first call makes the network.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        self
        """
        self._check_parameters()
        return self._train(X, y, sample_weight, epochs=1, reset=not hasattr(self, "net_"))

    @property
    def module_(self) -> nn.Module:
        """The trained network, which returns logits or outputs."""
        return self._fitted_net("module_").module_

    @property
    def history_(self) -> Any:
        """skorch's History: one dict per epoch, with ``train_loss``, ``dur`` and others."""
        return self._fitted_net("history_").history

    def __sklearn_is_fitted__(self) -> bool:
        return "net_" in vars(self)

    def _fitted_net(self, name: str) -> PenalizedNet:
        if "net_" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} before `fit`.")
        return self.net_

    # ---- checks -----------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        for name, check in self._constraints.items():
            check(name, getattr(self, name))
        if self.module is None:
            if self.module_params is not None:
                raise ValueError(f"`module_params` must be None without `module`, got {self.module_params!r}.")
            return
        defaults = inspect.signature(type(self).__init__).parameters
        for name in MLP_PARAMETERS:
            value = getattr(self, name)
            if value is not defaults[name].default and value != defaults[name].default:
                raise ValueError(
                    f"`{name}` must keep its default beside `module`, got {value!r}: it belongs to the built-in "
                    "MLP. Give it to your module by `module_params`."
                )

    def _check_X(self, X: Any, y: Any = "no_validation", *, reset: bool, **options: Any) -> Any:
        """X as an array of (n, *input_shape_), and y if it is given."""
        alone = isinstance(y, str)
        X, seen = flatten_samples(X)
        dtype = _constraints.dtype("dtype", self.dtype)
        if not reset:
            allowed: Any = self._dtype
        elif dtype is None:
            allowed = [np.float64, np.float32]
        else:
            allowed = str(dtype).removeprefix("torch.")
        checked = validate_data(self, X, y, dtype=allowed, order="C", reset=reset, **options)
        X, y = (checked, None) if alone else checked
        if reset:
            self.input_shape_ = resolve_input_shape(self.input_shape, seen, X.shape[1])
            self._dtype = X.dtype
        elif seen is not None and seen != self.input_shape_:
            raise ValueError(f"X must hold samples of shape {self.input_shape_}, got {seen}.")
        X = X.reshape(len(X), *self.input_shape_)
        return X if alone else (X, y)

    def _weights(self, y: np.ndarray, sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
        """Weights of the samples, or None where all are 1."""
        if sample_weight is None:
            return None
        return _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)

    # ---- training ---------------------------------------------------------------------------

    def _train(self, X: Any, y: Any, sample_weight: Any, *, epochs: int, reset: bool, **target: Any) -> BaseNetwork:
        device = resolve_device(self.device)
        X, y = self._check_X(X, y, reset=reset, **self._target_options())
        y = self._check_target(y, reset=reset, **target)
        weights = self._weights(y, sample_weight, X)
        if weights is not None:
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept] / weights[kept].mean()
            self._check_kept(y)
        seed = self._next_seed(reset)
        arrays = [a for a in (X, y, weights) if a is not None]
        valid = None
        if self.early_stopping:
            arrays, valid = split_validation(arrays, self._strata(y), self.validation_fraction, seed)
        with seeded(seed, device) as generator:
            net = self._make_net(arrays[0], device) if reset else self.net_
            try:
                self._run(net, arrays, valid, epochs, generator)
            except Exception:
                vars(self).pop("net_", None)  # a diverged network is no network
                raise
        self.net_ = net
        self.n_samples_fit_ = len(arrays[0])
        self.n_iter_ = len(net.history)
        return self

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
        sample = TensorData(X[:1], device=device, dtype=dtype).X
        check_output(module, sample, self._n_outputs, self._output_meaning)
        self.initial_state_ = {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
        self._optimizer_settings = self._current_optimizer_settings()
        self._own_callbacks = copy.deepcopy(self.callbacks)
        net = self._net_class(
            module,
            criterion=CRITERIA[self.loss_name_],
            device=str(device),
            verbose=0,
            **{f"callbacks__{name}": None for name in self._silenced},
            **self._net_options(module, device),
        )
        return net.initialize()

    def _net_options(self, module: nn.Module, device: torch.device) -> dict[str, Any]:
        """The optimiser's part of a net's parameters."""
        optimizer, settings = resolve_optimizer(
            self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            params=self.optimizer_params,
            device=device,
        )
        groups = self._parameter_groups(module)
        options = {"optimizer": optimizer, "lr": self.learning_rate, "optimizer__param_groups": groups}
        return options | {f"optimizer__{name}": value for name, value in settings.items()}

    def _current_optimizer_settings(self) -> tuple[Any, ...]:
        return self.optimizer, self.optimizer_params, self.learning_rate, self.momentum, self.weight_decay

    def _run(self, net: PenalizedNet, arrays: list, valid: list | None, epochs: int, generator: Any) -> None:
        """Train the net for some epochs with the current parameters."""
        if self._current_optimizer_settings() != self._optimizer_settings:  # warm start after set_params
            self._optimizer_settings = self._current_optimizer_settings()
            net.set_params(**self._net_options(net.module_, torch.device(net.device)))
        data = net.get_dataset(*arrays)
        check_batch_norm(net.module_, min(len(data), self.batch_size))
        net.penalty, net.penalty_strength = self._penalty(generator)
        net.batch_size, net.max_epochs = self.batch_size, epochs
        net.iterator_train__generator = generator
        net.train_split = None if valid is None else predefined_split(net.get_dataset(*valid))
        net.callbacks = self._callbacks(epochs)
        net.initialize_callbacks()
        net.partial_fit(data, None, epochs=epochs)
        check_finite(net, data)
        # neither the data nor generators travel with a pickle
        net.train_split = net.iterator_train__generator = net.penalty = None

    def _callbacks(self, epochs: int) -> list[Callback]:
        """The schedule first, then the variant's and the user's own, then those that may end the training."""
        schedule = make_schedule(self.learning_rate_schedule, self.max_epochs)
        callbacks = [DivergenceCheck(), *([schedule] if schedule else [])]
        callbacks += [*self._extra_callbacks(), *(self._own_callbacks or [])]
        if self.verbose and epochs > 1:
            callbacks.append(EpochProgress(epochs))
        if self.stop_below is not None:
            callbacks.append(StopBelow(self.stop_below))
        if self.early_stopping:
            callbacks.append(
                EarlyStopping(
                    patience=self.n_iter_no_change,
                    threshold=self.tol,
                    threshold_mode="abs",
                    load_best=True,
                    sink=noop,
                )
            )
        return callbacks

    # ---- prediction -------------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """The module's outputs in eval mode, shape (n, n_outputs)."""
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        module, device = self.net_.module_, torch.device(self.net_.device)
        self.net_._set_training(False)
        with torch.no_grad():
            chunks = [module(chunk) for chunk in _chunks(X, device, max(self.batch_size, _PREDICTION_CHUNK))]
        return torch.cat(chunks).cpu().numpy()

    # ---- pickling ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # by value where need be, so that modules of __main__ and lambdas travel
        return {"by_value": cloudpickle.dumps(super().__getstate__())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(cloudpickle.loads(state["by_value"]))


def _chunks(X: np.ndarray, device: torch.device, size: int) -> list[Tensor]:
    return [TensorData(X[start : start + size], device=device).X for start in range(0, len(X), size)]


def check_batch_norm(module: nn.Module, batch_size: int) -> None:
    """Refuse batches of one sample where batch norm would divide by a variance of nothing."""
    if batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in module.modules()):
        raise ValueError("Batch norm needs batches of at least 2 samples, got 1 sample.")


def check_finite(net: PenalizedNet, data: TensorData) -> None:
    """Raise if the weights, or the outputs for some training samples, are not finite after the last step."""
    sample = data.X[: net.batch_size]
    net._set_training(False)
    with torch.no_grad():
        tensors = [t for t in net.module_.state_dict().values() if t.is_floating_point()]
        tensors.append(net.module_(sample))
        finite = torch.stack([t.isfinite().all() for t in tensors]).all().item()
    if not finite:
        epoch = net.history[-1]
        raise ValueError(
            f"Training diverged in epoch {epoch['epoch']}: the network is no longer finite, its last training loss "
            f"was {epoch.get('train_loss')}. Lower `learning_rate` ({net.lr:g}) or scale the data."
        )
