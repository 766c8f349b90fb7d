"""Figures of capacity: each a small object with its data, and its artists after `plot`."""

from .bicriteria import BicriteriaDisplay
from .capacity_gap import CapacityGapDisplay
from .capacity_path import CapacityPathDisplay
from .fisher_spectrum import FisherSpectrumDisplay
from .learning_rate_map import LearningRateMapDisplay
from .margin import MarginDisplay
from .norm_geometry import NormGeometryDisplay
from .weight_histogram import WeightHistogramDisplay

__all__ = [
    "BicriteriaDisplay",
    "CapacityGapDisplay",
    "CapacityPathDisplay",
    "FisherSpectrumDisplay",
    "LearningRateMapDisplay",
    "MarginDisplay",
    "NormGeometryDisplay",
    "WeightHistogramDisplay",
]
