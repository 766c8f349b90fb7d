"""Estimators with a penalty on the input-output Jacobian ([JR])."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from sklearn_capacity._validation import check_integer
from sklearn_capacity.derivatives.input_jacobian import OUTPUTS
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._base import BaseNetwork
from sklearn_capacity.estimators._classifier import NetworkClassifier
from sklearn_capacity.estimators._docs import documented
from sklearn_capacity.estimators._regressor import NetworkRegressor
from sklearn_capacity.penalties import PENALTIES, JacobianPenalty

__all__ = [
    "JACOBIAN_CONSTRAINTS",
    "JacobianPenaltyMixin",
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
]

JACOBIAN_CONSTRAINTS: dict[str, Any] = {
    "jacobian_penalty": _constraints.interval(0, closed="left"),
    "jacobian_norm": _constraints.option(PENALTIES),
    "n_projections": _constraints.integer(1),
    "jacobian_output": _constraints.option(OUTPUTS),
}


TOO_MANY = 'There are only as many orthonormal directions as outputs; jacobian_norm="frobenius" is exact.'


class JacobianPenaltyMixin(BaseNetwork):
    """The hook that turns ``jacobian_*`` parameters into a penalty."""

    jacobian_penalty: float
    jacobian_norm: str
    n_projections: int
    jacobian_output: str

    def _penalties(self, generator: torch.Generator) -> list[tuple[Any, float]]:
        jacobian = self._jacobian_penalty(generator) if self.jacobian_penalty else None
        return [(jacobian, self.jacobian_penalty), *super()._penalties(generator)]

    def _jacobian_penalty(self, generator: torch.Generator) -> JacobianPenalty:
        if self.jacobian_norm == "projection":
            check_integer("n_projections", self.n_projections, 1, self._n_outputs, cure=TOO_MANY)
        options = {name: getattr(self, name) for name in PENALTIES[self.jacobian_norm].options}
        return JacobianPenalty(self.jacobian_norm, output=self.jacobian_output, generator=generator, **options)


@documented("classifier", jacobian=True)
class JacobianRegularizedClassifier(JacobianPenaltyMixin, NetworkClassifier):
    r"""Neural network classifier whose input-output Jacobian is kept small.

    .. math:: \min_\theta \frac{1}{n} \sum_i \ell(f(x_i), y_i) + \lambda R, \qquad
              R = \frac{1}{n} \sum_i \|\partial f / \partial x (x_i)\|_F^2

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    Notes
    -----
    The penalty is evaluated in eval mode: batch norm with its running statistics (under batch statistics
    a sample's output would depend on the rest of the batch), without dropout.
    With `sample_weight` it is the weighted mean.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues: Robust large margin deep neural networks, 2017, eqs. 48-52.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_capacity import JacobianRegularizedClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> network = JacobianRegularizedClassifier(hidden_layer_sizes=(20,), max_epochs=20, random_state=0)
    >>> pipe = make_pipeline(StandardScaler(), network)
    >>> grid = {"jacobianregularizedclassifier__jacobian_penalty": [0.0, 0.1]}
    >>> search = GridSearchCV(pipe, grid, cv=3).fit(X, y)
    >>> bool(search.best_score_ > 0.85)
    True
    """

    _constraints: ClassVar[dict[str, Any]] = NetworkClassifier._constraints | JACOBIAN_CONSTRAINTS

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        jacobian_penalty: float = 0.01,
        jacobian_norm: str = "frobenius",
        n_projections: int = 1,
        jacobian_output: str = "logits",
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
        stop_at_error: float | None = None,
        class_weight: Any = None,
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
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            bias=bias,
            batch_norm=batch_norm,
            weight_norm=weight_norm,
            dropout=dropout,
            module=module,
            module_params=module_params,
            input_shape=input_shape,
            loss=loss,
            optimizer=optimizer,
            optimizer_params=optimizer_params,
            learning_rate=learning_rate,
            learning_rate_schedule=learning_rate_schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            penalty=penalty,
            penalty_strength=penalty_strength,
            max_epochs=max_epochs,
            batch_size=batch_size,
            stop_below=stop_below,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            stop_at_error=stop_at_error,
            class_weight=class_weight,
            augmentation=augmentation,
            callbacks=callbacks,
            dtype=dtype,
            device=device,
            random_state=random_state,
            verbose=verbose,
            warm_start=warm_start,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
        )
        self.jacobian_penalty = jacobian_penalty
        self.jacobian_norm = jacobian_norm
        self.n_projections = n_projections
        self.jacobian_output = jacobian_output


@documented("regressor", jacobian=True)
class JacobianRegularizedRegressor(JacobianPenaltyMixin, NetworkRegressor):
    r"""Neural network regressor whose input-output Jacobian is kept small.

    .. math:: \min_\theta \frac{1}{n} \sum_i \ell(f(x_i), y_i) + \lambda R, \qquad
              R = \frac{1}{n} \sum_i \|\partial f / \partial x (x_i)\|_F^2

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    Notes
    -----
    The penalty is evaluated in eval mode, see :class:`JacobianRegularizedClassifier`. The regressor refuses
    ``jacobian_output="softmax"``, since its outputs are not logits.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues: Robust large margin deep neural networks, 2017, eqs. 48-52.

    Examples
    --------
    A strong penalty flattens the function:

    >>> import numpy as np
    >>> from sklearn_capacity import JacobianRegularizedRegressor
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = JacobianRegularizedRegressor(jacobian_penalty=100.0, random_state=0).fit(X, X[:, 0])
    >>> bool(np.ptp(model.predict(X)) < 0.2)
    True
    """

    _constraints: ClassVar[dict[str, Any]] = {
        **NetworkRegressor._constraints,
        **JACOBIAN_CONSTRAINTS,
        "jacobian_output": _constraints.option(["logits"]),
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        jacobian_penalty: float = 0.01,
        jacobian_norm: str = "frobenius",
        n_projections: int = 1,
        jacobian_output: str = "logits",
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
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            bias=bias,
            batch_norm=batch_norm,
            weight_norm=weight_norm,
            dropout=dropout,
            module=module,
            module_params=module_params,
            input_shape=input_shape,
            loss=loss,
            optimizer=optimizer,
            optimizer_params=optimizer_params,
            learning_rate=learning_rate,
            learning_rate_schedule=learning_rate_schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            penalty=penalty,
            penalty_strength=penalty_strength,
            max_epochs=max_epochs,
            batch_size=batch_size,
            stop_below=stop_below,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            augmentation=augmentation,
            callbacks=callbacks,
            dtype=dtype,
            device=device,
            random_state=random_state,
            verbose=verbose,
            warm_start=warm_start,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
        )
        self.jacobian_penalty = jacobian_penalty
        self.jacobian_norm = jacobian_norm
        self.n_projections = n_projections
        self.jacobian_output = jacobian_output
