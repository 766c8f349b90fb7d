"""Scoring: measure any model, as a function, a report or a scikit-learn scorer."""

from .callback import CapacityCallback
from .capacity import capacity_report, list_measures, measure_capacity
from .curves import bicriteria_curve, interaction_conditions
from .initial_state import InitialStateCallback
from .scorer import CapacityScorer
from .spectrum import fisher_spectrum

__all__ = [
    "CapacityCallback",
    "CapacityScorer",
    "InitialStateCallback",
    "bicriteria_curve",
    "capacity_report",
    "fisher_spectrum",
    "interaction_conditions",
    "list_measures",
    "measure_capacity",
]
