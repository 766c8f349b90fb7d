"""scikit-learn estimators for networks of controlled capacity.

`_base` is what all share: `fit`, all its steps, and prediction. `_classifier` and `_regressor` differ in targets;
`_jacobian` and `_generalization_layer` override a hook each. `_callbacks` checks the user's callbacks, `_modules` and
`_data` modules and arrays, `_constraints` parameters, `_outcome` what a training has ended in; `_failures` names the
parameter behind an error; `_checkpoints` finds where a fit goes on. `_restoring` and `_attributes` make an estimator
from a file; `_docs` writes the docstrings of shared parameters.

Data flow: fit(X, y) -> Samples -> training and validation parts -> module -> skorch net -> net_, module_, history_.
"""

from sklearn_capacity.estimators._classifier import NetworkClassifier
from sklearn_capacity.estimators._generalization_layer import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
)
from sklearn_capacity.estimators._jacobian import JacobianRegularizedClassifier, JacobianRegularizedRegressor
from sklearn_capacity.estimators._regressor import NetworkRegressor

__all__ = [
    "GeneralizationLayerClassifier",
    "GeneralizationLayerRegressor",
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
]
