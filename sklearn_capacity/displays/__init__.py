"""Figures of capacity: small objects with their data and, after `plot`, their artists.

One display a file. Of a search: `capacity_path`, `capacity_gap`. Of trained models: `capacity_comparison`, `margin`,
`hidden_margin`, `weight_histogram`, `fisher_spectrum`, `hessian_spectrum`, `bicriteria`, `norm_geometry`, `conditions`.
Of a training: `history`. Of the theory: `learning_rate_map`. `sources` checks the models and searches behind them,
`panels` has what several of them share. matplotlib is imported when something is plotted, torch never.

Data flow: models or tables -> Display.from_... -> arrays -> plot(ax) -> artists.
"""

from .bicriteria import BicriteriaDisplay
from .capacity_comparison import CapacityComparisonDisplay
from .capacity_gap import CapacityGapDisplay
from .capacity_path import CapacityPathDisplay
from .conditions import InteractionConditionsDisplay
from .fisher_spectrum import FisherSpectrumDisplay
from .hessian_spectrum import HessianSpectrumDisplay
from .hidden_margin import HiddenMarginDisplay
from .history import HistoryDisplay
from .learning_rate_map import LearningRateMapDisplay
from .margin import MarginDisplay
from .norm_geometry import NormGeometryDisplay
from .weight_histogram import WeightHistogramDisplay

__all__ = [
    "BicriteriaDisplay",
    "CapacityComparisonDisplay",
    "CapacityGapDisplay",
    "CapacityPathDisplay",
    "FisherSpectrumDisplay",
    "HessianSpectrumDisplay",
    "HiddenMarginDisplay",
    "HistoryDisplay",
    "InteractionConditionsDisplay",
    "LearningRateMapDisplay",
    "MarginDisplay",
    "NormGeometryDisplay",
    "WeightHistogramDisplay",
]
