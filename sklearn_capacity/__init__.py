"""scikit-learn estimators for networks of controlled capacity, and scorers which say how much a network has."""

from sklearn_capacity.estimators import (
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

__all__ = [
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
]
