"""Regressors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin

from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._attributes import REGRESSOR
from sklearn_capacity.estimators._base import BaseNetwork
from sklearn_capacity.estimators._docs import documented
from sklearn_capacity.training import PenalizedRegressor

__all__ = ["NetworkRegressor"]


@documented("regressor")
class NetworkRegressor(RegressorMixin, BaseNetwork):
    """Neural network for regression with one or several outputs.

    The targets are learnt as they are: scale them, for example by TransformedTargetRegressor.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    JacobianRegularizedRegressor : With a penalty on the input-output Jacobian.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity import NetworkRegressor
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = NetworkRegressor(max_epochs=200, random_state=0).fit(X, np.abs(X[:, 0]))
    >>> model.score(X, np.abs(X[:, 0])) > 0.95
    True
    """

    _constraints: ClassVar[dict[str, Any]] = {
        **_constraints.COMMON,
        "loss": _constraints.option(["auto", "squared", "absolute"]),
    }
    _fitted_attributes = REGRESSOR
    _net_class = PenalizedRegressor
    _output_meaning = "one column per target"

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
        weight_decay: float = 0.0,
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

    def predict(self, X: Any) -> np.ndarray:
        """The network's outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), as y had it
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_column else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def _target_options(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _check_target(self, y: np.ndarray, *, reset: bool) -> np.ndarray:
        """y as a column per output; with `reset` learn how many there are."""
        one_column = y.ndim == 1
        with np.errstate(over="ignore"):  # what overflows raises below
            y = y.reshape(len(y), -1).astype(self._dtype)
        if not np.isfinite(y).all():
            raise ValueError(f"y must be finite in {self._dtype}; it contains infinity or a value too large for it.")
        if reset:
            self._one_column, self._n_outputs = one_column, y.shape[1]
            self.loss_name_ = "squared" if self.loss == "auto" else self.loss
        elif y.shape[1] != self._n_outputs:
            raise ValueError(f"y must have {self._n_outputs} columns as before, got {y.shape[1]}.")
        return y
