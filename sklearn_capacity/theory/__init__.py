"""What mean-field theory predicts about wide random networks, and random networks to hold it against."""

from sklearn_capacity.theory._initialize import initialize_mean_field
from sklearn_capacity.theory._inputs import input_correlation
from sklearn_capacity.theory._learning_rate_map import LearningRateMap, learning_rate_map
from sklearn_capacity.theory._mean_field import mean_field
from sklearn_capacity.theory._statistics import MeanField

__all__ = [
    "LearningRateMap",
    "MeanField",
    "initialize_mean_field",
    "input_correlation",
    "learning_rate_map",
    "mean_field",
]
