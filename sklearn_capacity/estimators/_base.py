"""What all network estimators share: they own a skorch net, and let scikit-learn see flat parameters."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterator
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from skorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn

from sklearn_capacity._validation import failure_text, plain_array
from sklearn_capacity.architectures.mlp import MLP
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._callbacks import check_callbacks, named_callbacks, replaced
from sklearn_capacity.estimators._data import flatten_samples, resolve_input_shape
from sklearn_capacity.estimators._modules import make_module
from sklearn_capacity.estimators._restoring import Restoring
from sklearn_capacity.estimators._training import NetTraining
from sklearn_capacity.process_state import keeps_modes
from sklearn_capacity.training import PenalizedNet, TensorData, refuse_containers

__all__ = ["BaseNetwork", "can_continue"]

#: parameters of the built-in MLP, which mean nothing to another module
MLP_PARAMETERS = ("hidden_layer_sizes", "activation", "bias", "batch_norm", "weight_norm", "dropout")

_PREDICTION_CHUNK = 512


def can_continue(estimator: BaseNetwork) -> bool:
    """Whether there is a `partial_fit`: a validation part cannot be kept apart over many calls."""
    if estimator.early_stopping:
        raise AttributeError("`partial_fit` is not available with early_stopping=True.")
    return True


class BaseNetwork(NetTraining, Restoring, BaseEstimator):
    """Base of the estimators.

    A variant overrides one hook: ``_make_module()``, ``_penalties(generator)``, ``_extra_callbacks()``,
    ``_parameter_groups()``.
    """

    _constraints: ClassVar[dict[str, Any]] = _constraints.COMMON
    _dtype: np.dtype

    def _make_module(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        """The network before training, on any device and in any precision."""
        if self.module is not None:
            return make_module(self.module, self.module_params, input_shape, n_outputs)
        settings = {name: getattr(self, name) for name in MLP_PARAMETERS}
        return MLP(int(np.prod(input_shape)), n_outputs, **settings)

    # ---- what differs between classifiers and regressors ------------------------------------

    def _target_options(self) -> dict[str, Any]:
        """How scikit-learn is to validate y."""
        return {}

    # ---- public methods ---------------------------------------------------------------------

    def set_params(self, **params: Any) -> BaseNetwork:
        """Set parameters by name.

        Parameters
        ----------
        **params
            Names and values, as in the constructor.

        Returns
        -------
        self
        """
        if "callbacks" in params:
            self.callbacks = params.pop("callbacks")
        for key in sorted(key for key in params if key.startswith("callbacks__")):
            self._set_callback(key, params.pop(key))
        for key, value in params.items():
            owner, nested, name = key.partition("__")
            if nested and owner in ("module", "optimizer"):  # as skorch has it
                raise ValueError(
                    f"`{key}` must be an entry of `{owner}_params`, got a parameter of its own. Set "
                    f"{owner}_params={{{name!r}: {value!r}}}."
                )
        return super().set_params(**params)

    def _set_callback(self, key: str, value: Any) -> None:
        """``callbacks__name__parameter=value`` as skorch has it, or ``callbacks__name=callback``, or None."""
        _, name, parameter = (*key.split("__", 2), "")[:3]
        named = dict(named_callbacks(self.callbacks))
        if not isinstance(named.get(name), Callback) and (parameter or name not in named):
            shown = ", ".join(repr(other) for other, callback in named.items() if callback is not None) or "none"
            raise ValueError(f"`{key}` must name one of `callbacks`, got {name!r}; there is {shown}.")
        if parameter:
            named[name].set_params(**{parameter: value})
        else:
            self.callbacks = replaced(self.callbacks, name, value)

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BaseNetwork:
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
        refuse_containers(X, "trained")
        self._check_parameters()
        continued = self.warm_start and hasattr(self, "net_")
        return self._train(X, y, sample_weight, reset=not continued)

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
        self._check_partial()
        return self._train(X, y, sample_weight, reset=not hasattr(self, "net_"), partial=True)

    @property
    def module_(self) -> nn.Module:
        """The trained network, which returns logits or outputs."""
        return self._fitted_net("module_").module_

    @property
    def history_(self) -> Any:
        """skorch's History: one dict per epoch, with ``train_loss``, ``dur`` and others."""
        return self._fitted_net("history_").history

    @property
    def best_epoch_(self) -> int:
        """Under early stopping, the epoch whose weights the network has; the first one is 1."""
        if not self.early_stopping:
            raise AttributeError(f"{type(self).__name__} has no attribute 'best_epoch_' without early stopping.")
        net = self._fitted_net("best_epoch_")
        stopping = [callback for _, callback in net.callbacks_ if isinstance(callback, EarlyStopping)]
        if hasattr(stopping[-1], "best_epoch_"):
            return stopping[-1].best_epoch_
        best, threshold = 1, math.inf
        for epoch in net.history:  # of an estimator that was saved and loaded
            if epoch["valid_loss"] < threshold:
                best, threshold = epoch["epoch"], epoch["valid_loss"] - self.tol
        return best

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
        self._check_checkpoints()
        check_callbacks(self.callbacks, validates=self.early_stopping, resumable=self.checkpoint_dir is not None)
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

    def _check_partial(self) -> None:
        self._check_parameters()
        if self.checkpoint_dir is not None:
            raise ValueError(
                f"`checkpoint_dir` must be None for `partial_fit`, got {self.checkpoint_dir!r}. "
                "Save the estimator between the calls."
            )

    def _check_checkpoints(self) -> None:
        """Checkpoints need a fit that its parameters and data fix."""
        if self.checkpoint_dir is None:
            return
        if not isinstance(self.random_state, numbers.Integral):
            raise ValueError(
                f"`random_state` must be an integer beside `checkpoint_dir`, got {self.random_state!r}: "
                "only then can another run continue this one."
            )
        if self.warm_start:
            raise ValueError(
                "`warm_start` must be False beside `checkpoint_dir`, got True: "
                "its parameters do not determine where such a fit begins."
            )

    def _check_X(self, X: Any, y: Any = "no_validation", *, reset: bool, **options: Any) -> Any:
        """X as an array of (n, *input_shape_), and y if it is given."""
        alone = isinstance(y, str) and y == "no_validation"
        if isinstance(y, str | bytes) and not alone:
            raise ValueError(f"y must hold one entry per sample, got {y!r}.")
        refuse_containers(X, "trained")
        X, seen = flatten_samples(X)
        dtype = _constraints.dtype("dtype", self.dtype)
        if not reset:
            allowed: Any = self._dtype
        elif dtype is None:
            allowed = [np.float64, np.float32]
        else:
            allowed = str(dtype).removeprefix("torch.")
        y = plain_array("y", y)
        try:
            checked = validate_data(self, X, y, dtype=allowed, order="C", reset=reset, **options)
        except OverflowError as error:
            raise ValueError(f"X and y must hold numbers that are finite in float64: {error}.") from error
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
        weights = _check_sample_weight(
            plain_array("sample_weight", sample_weight), X, dtype=X.dtype, ensure_non_negative=True
        )
        if not weights.any():  # older scikit-learns let it pass
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return weights

    # ---- prediction -------------------------------------------------------------------------

    @keeps_modes
    def _outputs(self, X: Any) -> np.ndarray:
        """The module's outputs in eval mode, shape (n, n_outputs)."""
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        device = torch.device(self.net_.device)
        self.net_._set_training(False)
        with torch.no_grad():
            chunks = [self.net_.infer(chunk) for chunk in _chunks(X, device, max(self.batch_size, _PREDICTION_CHUNK))]
        return torch.cat(chunks).cpu().numpy()

    # ---- pickling ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # by value where need be, so that modules of __main__ and lambdas travel
        try:
            return {"by_value": cloudpickle.dumps(super().__getstate__())}
        except RuntimeError as error:  # torch's, of parametrised modules
            raise TypeError(
                f"{type(self).__name__} cannot be pickled, since its `module` cannot: {failure_text(error)} Use "
                "sklearn_capacity.save, or give the module's class."
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(cloudpickle.loads(state["by_value"]))


def _chunks(X: np.ndarray, device: torch.device, size: int) -> Iterator[Tensor]:
    # clones, as a module may work in place, and a tensor on the CPU may share its memory with the user's array
    return (TensorData(X[start : start + size], device=device).X.clone() for start in range(0, len(X), size))
