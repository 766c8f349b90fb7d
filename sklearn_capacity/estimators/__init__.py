"""scikit-learn estimators for networks of controlled capacity."""

from sklearn_capacity.estimators._classifier import NetworkClassifier
from sklearn_capacity.estimators._jacobian import JacobianRegularizedClassifier, JacobianRegularizedRegressor
from sklearn_capacity.estimators._regressor import NetworkRegressor

__all__ = [
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
]
