"""Choose among the candidates of a search by score and capacity."""

from .distributed import dask_backend
from .rank_measures import rank_measures
from .refit import capacity_refit
from .table import capacity_table

__all__ = ["capacity_refit", "capacity_table", "dask_backend", "rank_measures"]
