"""Figures of capacity: each a small object with its data, and its artists after `plot`."""

from .bicriteria import BicriteriaDisplay
from .capacity_path import CapacityPathDisplay
from .learning_rate_map import LearningRateMapDisplay
from .norm_geometry import NormGeometryDisplay
from .weight_histogram import WeightHistogramDisplay

__all__ = [
    "BicriteriaDisplay",
    "CapacityPathDisplay",
    "LearningRateMapDisplay",
    "NormGeometryDisplay",
    "WeightHistogramDisplay",
]
