"""Estimators whose networks have generalization layers ([GL])."""

from __future__ import annotations

from typing import Any, ClassVar

from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._classifier import NetworkClassifier
from sklearn_capacity.estimators._docs import documented
from sklearn_capacity.estimators._layer_hooks import LAYER_CONSTRAINTS, GeneralizationLayerMixin
from sklearn_capacity.estimators._regressor import NetworkRegressor

__all__ = ["GeneralizationLayerClassifier", "GeneralizationLayerRegressor"]


@documented("classifier", jacobian=True, generalization_layer=True)
class GeneralizationLayerClassifier(GeneralizationLayerMixin, NetworkClassifier):
    r"""Neural network classifier with a generalization layer and its training regime.

    .. math:: x^{(l+1)} = W_l\, \mathrm{relu}(W_g x^{(l)}) + \nu S x^{(l)}

    New weights W_g precede the linear map at `position`, and a skip S spans both. During training nu decreases
    and W_g learns slowly: small weights on all paths through the layer bound the network's Jacobian.
    The variant "dropout" inserts another layer, relu(W x + b), with dropout on its own units only.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    sklearn_capacity.layers.insert_generalization_layer : The same for any module.
    sklearn_capacity.training.NuSchedule, sklearn_capacity.training.SlowLearning : The regime, for any skorch net.

    Notes
    -----
    `partial_fit` and `warm_start` continue the regime's epoch count: beyond `max_epochs` nu stays at `nu_end`.
    The history has each epoch's ``nu`` and ``slow_factor``.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, sections 3.1, 3.2 and 4.1.1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_capacity import GeneralizationLayerClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = GeneralizationLayerClassifier(hidden_layer_sizes=(20,), random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    >>> [round(model.history_[epoch, "nu"], 2) for epoch in (0, 20, 49)]
    [1.0, 0.55, 0.1]
    """

    _constraints: ClassVar[dict[str, Any]] = NetworkClassifier._constraints | LAYER_CONSTRAINTS
    _callback_parameters: ClassVar[tuple[str, ...]] = (*GeneralizationLayerMixin._callback_parameters, "stop_at_error")

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        variant: str = "skip",
        position: str | int | None = "head",
        nu_start: float = 1.0,
        nu_end: float = 0.1,
        nu_decay_fraction: float = 0.8,
        slow_factor: float = 0.1,
        slow_after: int | float = 20,
        layer_form: str | None = None,
        layer_depth: int = 1,
        layer_dropout: float = 0.5,
        jacobian_penalty: float = 0.0,
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
        self.variant = variant
        self.position = position
        self.nu_start = nu_start
        self.nu_end = nu_end
        self.nu_decay_fraction = nu_decay_fraction
        self.slow_factor = slow_factor
        self.slow_after = slow_after
        self.layer_form = layer_form
        self.layer_depth = layer_depth
        self.layer_dropout = layer_dropout
        self.jacobian_penalty = jacobian_penalty
        self.jacobian_norm = jacobian_norm
        self.n_projections = n_projections
        self.jacobian_output = jacobian_output


@documented("regressor", jacobian=True, generalization_layer=True)
class GeneralizationLayerRegressor(GeneralizationLayerMixin, NetworkRegressor):
    r"""Neural network regressor with a generalization layer and its training regime.

    .. math:: x^{(l+1)} = W_l\, \mathrm{relu}(W_g x^{(l)}) + \nu S x^{(l)}

    See :class:`GeneralizationLayerClassifier`.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    References
    ----------
    Generalization by design: learning in the manifold of distributions, sections 3.1, 3.2 and 4.1.1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity import GeneralizationLayerRegressor
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = GeneralizationLayerRegressor(max_epochs=200, random_state=0).fit(X, np.abs(X[:, 0]))
    >>> model.score(X, np.abs(X[:, 0])) > 0.95
    True
    """

    _constraints: ClassVar[dict[str, Any]] = {
        **NetworkRegressor._constraints,
        **LAYER_CONSTRAINTS,
        "jacobian_output": _constraints.option(["logits"]),
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        variant: str = "skip",
        position: str | int | None = "head",
        nu_start: float = 1.0,
        nu_end: float = 0.1,
        nu_decay_fraction: float = 0.8,
        slow_factor: float = 0.1,
        slow_after: int | float = 20,
        layer_form: str | None = None,
        layer_depth: int = 1,
        layer_dropout: float = 0.5,
        jacobian_penalty: float = 0.0,
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
        self.variant = variant
        self.position = position
        self.nu_start = nu_start
        self.nu_end = nu_end
        self.nu_decay_fraction = nu_decay_fraction
        self.slow_factor = slow_factor
        self.slow_after = slow_after
        self.layer_form = layer_form
        self.layer_depth = layer_depth
        self.layer_dropout = layer_dropout
        self.jacobian_penalty = jacobian_penalty
        self.jacobian_norm = jacobian_norm
        self.n_projections = n_projections
        self.jacobian_output = jacobian_output
