"""Measures of capacity: one small file per family, one function and one record per measure."""

from .batch import Batch
from .record import Measure, Measured, NotDefinedError
from .registry import MEASURES, measure_named

__all__ = ["MEASURES", "Batch", "Measure", "Measured", "NotDefinedError", "measure_named"]
