"""Classifiers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from skorch.callbacks import Callback

from sklearn_capacity._validation import plain_array
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._attributes import CLASSIFIER
from sklearn_capacity.estimators._base import CALLBACK_PARAMETERS, BaseNetwork, can_continue
from sklearn_capacity.estimators._docs import documented
from sklearn_capacity.losses import CLASSIFICATION
from sklearn_capacity.training import PenalizedClassifier, StopAtError

__all__ = ["NetworkClassifier"]


def _has_probabilities(estimator: NetworkClassifier) -> bool:
    """Whether the logits are those of a distribution."""
    if getattr(estimator, "loss_name_", estimator.loss) == "hinge":
        raise AttributeError('Probabilities need loss="cross_entropy", got "hinge". Use `decision_function`.')
    return True


@documented("classifier")
class NetworkClassifier(ClassifierMixin, BaseNetwork):
    """Neural network for classification: cross-entropy or hinge loss of the logits.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    JacobianRegularizedClassifier : With a penalty on the input-output Jacobian.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_capacity import NetworkClassifier
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = NetworkClassifier(hidden_layer_sizes=(20,), random_state=0).fit(X, y)
    >>> model.predict(X[:2])
    array([0, 0])
    >>> model.score(X, y) > 0.9
    True
    """

    _constraints: ClassVar[dict[str, Any]] = {
        **_constraints.COMMON,
        "loss": _constraints.option(["auto", *CLASSIFICATION]),
        "class_weight": _constraints.class_weight,
        "stop_at_error": _constraints.optional(_constraints.interval(0, 1, "left")),
    }
    _callback_parameters: ClassVar[tuple[str, ...]] = (*CALLBACK_PARAMETERS, "stop_at_error")
    _fitted_attributes = CLASSIFIER
    _net_class = PenalizedClassifier
    _output_meaning = "one logit per class"
    _takes_logits = True
    _silenced = ("print_log", "valid_acc")  # valid_acc would make the net store the entries of each batch

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
        self.stop_at_error = stop_at_error
        self.class_weight = class_weight

    @available_if(can_continue)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> NetworkClassifier:
        """Train for one epoch on the given samples; the first call creates the network.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array-like, default=None
            All labels that may occur; needed in the first call only.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the first call has no `classes`, or if ``class_weight="balanced"``, which requires all of y at once.
        """
        self._check_partial()
        if isinstance(self.class_weight, str):
            raise ValueError(
                '`class_weight` must be None or a dict in `partial_fit`, got "balanced", which requires all of y. '
                "Compute the weights with sklearn.utils.compute_class_weight."
            )
        reset = not hasattr(self, "net_")
        if reset and classes is None:
            raise ValueError("`classes` must be given in the first call of `partial_fit`.")
        return self._learn(X, y, sample_weight, reset=reset, partial=True, classes=classes)

    def predict(self, X: Any) -> np.ndarray:
        """The label with the largest logit, for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        logits = self._outputs(X)
        if logits.shape[1] == 2:
            return self.classes_.take(logits[:, 1] > logits[:, 0])  # several times as fast as `argmax`
        return self.classes_[logits.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the logits; not available with the hinge loss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return torch.from_numpy(np.ascontiguousarray(self._outputs(X))).softmax(1).numpy()

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithm of the probabilities, accurate where they underflow; not available with the hinge loss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return torch.from_numpy(np.ascontiguousarray(self._outputs(X))).log_softmax(1).numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """The logits; with two classes the second minus the first.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) with two classes
        """
        logits = np.ascontiguousarray(self._outputs(X))
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy of the predictions.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        return super().score(X, plain_array("y", y), plain_array("sample_weight", sample_weight))

    def _check_target(self, y: np.ndarray, *, reset: bool, classes: Any = None) -> np.ndarray:
        """y as class indices; with `reset`, learn the classes."""
        check_classification_targets(y)
        labels = np.unique(y) if classes is None else np.unique(np.asarray(classes))
        if reset:
            if len(labels) < 2:
                raise ValueError(f"A classifier needs at least 2 classes, got {len(labels)} class in y.")
            self.classes_, self._n_outputs = labels, len(labels)
            self.loss_name_ = "cross_entropy" if self.loss == "auto" else self.loss
        elif classes is not None and not np.array_equal(labels, self.classes_):
            first = self.classes_.tolist()
            raise ValueError(f"`classes` must equal those of the first call, {first}, got {labels.tolist()}.")
        unseen = np.setdiff1d(y, self.classes_)
        if len(unseen):
            raise ValueError(f"y must contain only the classes {self.classes_.tolist()}, got also {unseen.tolist()}.")
        return np.searchsorted(self.classes_, y)

    def _stopping_callbacks(self) -> list[Callback]:
        stops = super()._stopping_callbacks()
        return stops if self.stop_at_error is None else [StopAtError(self.stop_at_error), *stops]

    def _check_kept(self, y: np.ndarray) -> None:
        if len(np.unique(y)) < 2:
            raise ValueError("A classifier needs at least 2 classes, got 1 class among the samples of positive weight.")

    def _strata(self, y: np.ndarray) -> np.ndarray:
        return y

    def _weights(self, X: np.ndarray, y: np.ndarray, sample_weight: Any) -> np.ndarray | None:
        weights = super()._weights(X, y, sample_weight)
        if self.class_weight is None:
            return weights
        labels = self.classes_[y]
        if isinstance(self.class_weight, str):
            present = np.unique(labels)
            by_class = compute_class_weight("balanced", classes=present, y=labels, sample_weight=weights)
            extra = by_class[np.searchsorted(present, labels)]
        else:
            extra = compute_sample_weight(self.class_weight, labels)
        return extra.astype(X.dtype) * (1 if weights is None else weights)
