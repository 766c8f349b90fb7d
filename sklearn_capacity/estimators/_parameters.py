"""The parameters that all network estimators share, and the checks of those that depend on each other."""

from __future__ import annotations

import inspect
import numbers
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator
from skorch.callbacks import Callback

from sklearn_capacity._validation import shown
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._callbacks import check_callbacks, named_callbacks, replaced

__all__ = ["MLP_PARAMETERS", "NetworkParameters"]

#: parameters of the built-in MLP, which other modules do not use
MLP_PARAMETERS = ("hidden_layer_sizes", "activation", "bias", "batch_norm", "weight_norm", "dropout")


class NetworkParameters(BaseEstimator):
    """Constructor, `set_params` and checks."""

    _constraints: ClassVar[dict[str, Any]] = _constraints.COMMON

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        bias: bool = True,
        batch_norm: bool = False,
        weight_norm: bool = False,
        dropout: float = 0.0,
        module: Any = None,
        module_params: dict | None = None,
        input_shape: tuple[int, ...] | None = None,
        loss: str = "auto",
        optimizer: Any = "adam",
        optimizer_params: dict | None = None,
        learning_rate: float = 0.01,
        learning_rate_schedule: Any = None,
        momentum: float = 0.9,
        weight_decay: Any = 0.0,
        penalty: Any = None,
        penalty_strength: float = 1.0,
        max_epochs: int = 50,
        batch_size: int = 128,
        stop_below: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        augmentation: Any = None,
        callbacks: Any = None,
        dtype: Any = "auto",
        device: Any = "auto",
        random_state: Any = None,
        verbose: int = 0,
        warm_start: bool = False,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 1,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.bias = bias
        self.batch_norm = batch_norm
        self.weight_norm = weight_norm
        self.dropout = dropout
        self.module = module
        self.module_params = module_params
        self.input_shape = input_shape
        self.loss = loss
        self.optimizer = optimizer
        self.optimizer_params = optimizer_params
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.penalty = penalty
        self.penalty_strength = penalty_strength
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.stop_below = stop_below
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.augmentation = augmentation
        self.callbacks = callbacks
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every

    def set_params(self, **params: Any) -> Self:
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
            if nested and owner in ("module", "optimizer"):  # as in skorch
                raise ValueError(
                    f"`{key}` must be an entry of `{owner}_params`, got a separate parameter. Set "
                    f"{owner}_params={{{name!r}: {shown(value)}}}."
                )
        return super().set_params(**params)

    def _set_callback(self, key: str, value: Any) -> None:
        """``callbacks__name__parameter=value`` as in skorch, or ``callbacks__name=callback`` (None removes it)."""
        _, name, parameter = (*key.split("__", 2), "")[:3]
        named = dict(named_callbacks(self.callbacks))
        if not isinstance(named.get(name), Callback) and (parameter or name not in named):
            listed = ", ".join(repr(other) for other, callback in named.items() if callback is not None) or "none"
            raise ValueError(f"`{key}` must name one of `callbacks`, got {name!r}. Available: {listed}.")
        if parameter:
            named[name].set_params(**{parameter: value})
        else:
            self.callbacks = replaced(self.callbacks, name, value)

    def _check_parameters(self) -> None:
        for name, check in self._constraints.items():
            check(name, getattr(self, name))
        self._check_checkpoints()
        check_callbacks(self.callbacks, validates=self.early_stopping, resumable=self.checkpoint_dir is not None)
        if self.module is None:
            if self.module_params is not None:
                raise ValueError(f"`module_params` must be None without `module`, got {shown(self.module_params)}.")
            return
        defaults = inspect.signature(type(self).__init__).parameters
        for name in MLP_PARAMETERS:
            value = getattr(self, name)
            if value is not defaults[name].default and value != defaults[name].default:
                raise ValueError(
                    f"`{name}` must keep its default when `module` is given, got {shown(value)}: it belongs to the "
                    "built-in MLP. Use `module_params` for arguments of your module."
                )

    def _check_partial(self) -> None:
        self._check_parameters()
        if self.checkpoint_dir is not None:
            raise ValueError(
                f"`checkpoint_dir` must be None for `partial_fit`, got {shown(self.checkpoint_dir)}. "
                "Save the estimator between the calls."
            )

    def _check_checkpoints(self) -> None:
        """Checkpoints require a fit that its parameters and data determine."""
        if self.checkpoint_dir is None:
            return
        if not isinstance(self.random_state, numbers.Integral):
            raise ValueError(
                f"`random_state` must be an integer when `checkpoint_dir` is given, got {shown(self.random_state)}: "
                "only then can another run continue this one."
            )
        if self.warm_start:
            raise ValueError(
                "`warm_start` must be False when `checkpoint_dir` is given, got True: "
                "the parameters do not determine where such a fit starts."
            )
