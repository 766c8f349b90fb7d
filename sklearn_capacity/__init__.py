"""Capacity of neural networks for scikit-learn: estimators that control it, scorers that measure it."""

from . import architectures, datasets, displays, layers, model_selection, theory
from ._validation import CapacityWarning, DivergenceError, NotDefinedError
from ._version import __version__
from .estimators import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)
from .graph import UnsupportedLayerError
from .measures import Measure, Measured
from .persistence import load, model_card, save
from .scoring import (
    CapacityCallback,
    CapacityScorer,
    InitialStateCallback,
    bicriteria_curve,
    capacity_report,
    check_measure,
    compare_capacity,
    fisher_spectrum,
    interaction_conditions,
    list_measures,
    measure_capacity,
)

__all__ = [
    "CapacityCallback",
    "CapacityScorer",
    "CapacityWarning",
    "DivergenceError",
    "GeneralizationLayerClassifier",
    "GeneralizationLayerRegressor",
    "InitialStateCallback",
    "JacobianRegularizedClassifier",
    "JacobianRegularizedRegressor",
    "Measure",
    "Measured",
    "NetworkClassifier",
    "NetworkRegressor",
    "NotDefinedError",
    "UnsupportedLayerError",
    "__version__",
    "architectures",
    "bicriteria_curve",
    "capacity_report",
    "check_measure",
    "compare_capacity",
    "datasets",
    "displays",
    "fisher_spectrum",
    "interaction_conditions",
    "layers",
    "list_measures",
    "load",
    "measure_capacity",
    "model_card",
    "model_selection",
    "save",
    "theory",
]
