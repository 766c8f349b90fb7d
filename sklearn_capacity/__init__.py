"""Capacity of neural networks for scikit-learn: estimators that control it, scorers that measure it."""

from . import architectures, datasets, displays, layers, model_selection, theory
from ._validation import CapacityWarning, NotDefinedError
from .estimators import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)
from .graph import UnsupportedLayerError
from .scoring import CapacityScorer, capacity_report, list_measures, measure_capacity

__version__ = "0.1.0"

__all__ = [
    "CapacityScorer",
    "CapacityWarning",
    "GeneralizationLayerClassifier",
    "GeneralizationLayerRegressor",
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
    "NotDefinedError",
    "UnsupportedLayerError",
    "architectures",
    "capacity_report",
    "datasets",
    "displays",
    "layers",
    "list_measures",
    "measure_capacity",
    "model_selection",
    "theory",
]
