"""Choose among the candidates of a search by score and capacity."""

from .refit import capacity_refit
from .table import capacity_table

__all__ = ["capacity_refit", "capacity_table"]
