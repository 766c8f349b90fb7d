"""Regressors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from sklearn_capacity._validation import plain_array
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._attributes import REGRESSOR
from sklearn_capacity.estimators._base import BaseNetwork
from sklearn_capacity.estimators._docs import documented
from sklearn_capacity.losses import REGRESSION
from sklearn_capacity.training import PenalizedRegressor

__all__ = ["NetworkRegressor"]


@documented("regressor")
class NetworkRegressor(RegressorMixin, BaseNetwork):
    """Neural network for regression with one or several outputs.

    The targets are not scaled: scale them, for example with TransformedTargetRegressor.

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
        "loss": _constraints.option(["auto", *REGRESSION]),
    }
    _fitted_attributes = REGRESSOR
    _net_class = PenalizedRegressor
    _output_meaning = "one column per target"
    _target_options: ClassVar[dict[str, Any]] = {"multi_output": True, "y_numeric": True}

    def predict(self, X: Any) -> np.ndarray:
        """The network's outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), like y
        """
        outputs = self._outputs(X)
        return np.ascontiguousarray(outputs[:, 0] if self._one_column else outputs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination R² of the predictions, in float64.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, *input_shape_)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        # scikit-learn computes in the predictions' precision, where squares of float32 overflow from 2e19 on
        predicted = self.predict(X).astype(np.float64)
        return r2_score(plain_array("y", y), predicted, sample_weight=plain_array("sample_weight", sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def _check_target(self, y: np.ndarray, *, reset: bool, classes: Any = None) -> np.ndarray:
        """y with one column per output; with `reset`, learn their number."""
        one_column = y.ndim == 1
        with np.errstate(over="ignore"):  # overflow raises below
            y = y.reshape(len(y), -1).astype(self._dtype)
        if not np.isfinite(y).all():
            raise ValueError(f"y must be finite in {self._dtype}; it contains infinity or a value too large for it.")
        if reset:
            self._one_column, self._n_outputs = one_column, y.shape[1]
            self.loss_name_ = "squared" if self.loss == "auto" else self.loss
        elif y.shape[1] != self._n_outputs:
            raise ValueError(f"y must have {self._n_outputs} columns, as in the first call, got {y.shape[1]}.")
        return y
