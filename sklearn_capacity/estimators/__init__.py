"""scikit-learn estimators for networks of controlled capacity."""

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
