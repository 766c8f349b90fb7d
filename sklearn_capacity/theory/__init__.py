"""Predictions of mean-field theory about wide random networks, and random networks to compare them with.

`_mean_field` (order parameters, bounds on eigenvalues, critical learning rate: [MF]) with `_integrals`, `_inputs` and
`_statistics`; `_initialize` draws such networks; `_learning_rate_map` trains over a grid of rates ([MF] figure 2);
`_covering` contains the covering numbers and robustness bounds of [JR]. Read `_mean_field` first.

Data flow: activation, variances, depth, width -> mean_field -> MeanField -> displays.
"""

from sklearn_capacity.theory._covering import (
    gaussian_mixture_covering_number,
    manifold_covering_number,
    robustness_bound_from_covering,
    sparse_covering_number,
)
from sklearn_capacity.theory._initialize import initialize_mean_field
from sklearn_capacity.theory._inputs import input_correlation
from sklearn_capacity.theory._learning_rate_map import LearningRateMap, learning_rate_map
from sklearn_capacity.theory._mean_field import mean_field
from sklearn_capacity.theory._statistics import MeanField

__all__ = [
    "LearningRateMap",
    "MeanField",
    "gaussian_mixture_covering_number",
    "initialize_mean_field",
    "input_correlation",
    "learning_rate_map",
    "manifold_covering_number",
    "mean_field",
    "robustness_bound_from_covering",
    "sparse_covering_number",
]
