"""Scoring: measure any model, as a function, a report or a scikit-learn scorer."""

from .capacity import capacity_report, list_measures, measure_capacity
from .scorer import CapacityScorer

__all__ = ["CapacityScorer", "capacity_report", "list_measures", "measure_capacity"]
