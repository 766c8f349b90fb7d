"""scikit-learn estimators for networks of controlled capacity.

`_base` holds what all estimators share: `fit` and its steps, above `_fitted` (what uses the trained net) and
`_parameters`. `_classifier` and `_regressor` differ in their targets; `_jacobian` and `_generalization_layer` (by
`_layer_hooks`) override hooks. `_constraints` checks parameters, `_callbacks` the user's callbacks, `_modules` modules
and `_data` arrays. `_outcome` checks what training has produced; `_failures` names the parameter behind an error;
`_checkpoints` finds the checkpoint from which a fit resumes. `_restoring` and `_attributes` rebuild an estimator from a
file; `_docs` writes the docstrings of shared parameters. Read `_base` first.

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
