"""Choose among the candidates of a search by score and capacity.

`refit` (the smallest capacity within one standard error of the best score), `table` (a search's results with capacities
under their own names), `rank_measures` (how well a measure orders models by their generalization gap; `rank_statistics`
counts the pairs of models, `conditional_information` what the hyper-parameters do not tell already), `distributed`
(searches on Dask, with the joblib backend in `cluster_backend`).

Data flow: search.cv_results_ -> capacity_table -> rank_measures or a display.
"""

from .distributed import dask_backend
from .rank_measures import rank_measures
from .refit import capacity_refit
from .table import capacity_table

__all__ = ["capacity_refit", "capacity_table", "dask_backend", "rank_measures"]
