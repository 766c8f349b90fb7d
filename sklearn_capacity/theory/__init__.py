"""What mean-field theory predicts about wide random networks."""

from sklearn_capacity.theory._mean_field import mean_field
from sklearn_capacity.theory._statistics import MeanField

__all__ = ["MeanField", "mean_field"]
