"""scikit-learn estimators for networks of controlled capacity.

`_base` is what all share, with `fit`; `_classifier` and `_regressor` differ in targets; `_jacobian` and
`_generalization_layer` override a hook each. `_training` makes and trains the skorch net, `_callbacks` chooses its
callbacks, `_modules` and `_data` check modules and arrays, `_constraints` parameters; `_failures` names the parameter
that made a fit fail. `_restoring` and `_attributes` make an estimator from a file; `_docs` writes the docstrings of
shared parameters.

Data flow: fit(X, y) -> checked arrays -> module -> skorch net -> net_, module_, history_.
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
