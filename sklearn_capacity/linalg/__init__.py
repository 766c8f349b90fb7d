"""Linear maps known by their products: norms from below and from above, eigenvalues, norms of rows and columns."""

from .conv import ConvOperator, conv_norm_lower, conv_norm_upper
from .golub_kahan import OperatorNorm, dense_operator, operator_norm

__all__ = [
    "ConvOperator",
    "OperatorNorm",
    "conv_norm_lower",
    "conv_norm_upper",
    "dense_operator",
    "operator_norm",
]
