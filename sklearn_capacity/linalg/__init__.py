"""Linear maps given by their products: lower and upper bounds of norms, eigenvalues, norms of rows and columns.

Eigenvalues: `lanczos` (the largest, of one operator or a batch, with an error bound) by `lanczos_process`,
`block_lanczos` (several); `squarings` (the leading vectors of many small matrices); `trace_estimate` estimates their
sum. Norms: `operator_norm` from below, by the same iteration on a Gram matrix, and `single_precision` mostly in short
numbers; `singular_vector` computes its maximiser; `induced_norm` for other exponents; `certificate`, `torus_bound` and
`banded_certificate` prove upper ends. `conv`, `matrix` and `pooling` hold the operators; `entry_norms`, `padding`,
`packed_products`, `pixel_blocks`, `pixel_products` and `power_product` serve them. `power_law` fits the tail of a
spectrum, and `product` multiplies matrices. Read `matrix` first, then `conv` and `operator_norm`.

`MatrixOperator`, `DiagonalOperator`, `ConvOperator` and `PoolOperator` share one interface: ``input_shape``,
``output_shape``, ``forward`` and ``adjoint`` on batches, ``norm_lower()``, ``norm_upper(lower)``, ``row_norms(p)``,
``column_norms(p)``, ``frobenius_norm()``.

Data flow: weight, input_shape -> operator -> forward, adjoint -> norm from below, proven norm from above.
"""

from .block_lanczos import block_lanczos
from .conv import ConvOperator, conv_norm_lower, conv_norm_upper
from .induced_norm import diagonal_norm, dual_exponent, induced_norm
from .lanczos import Eigenvalue, RitzValues, lanczos, largest_eigenvalue
from .matrix import DiagonalOperator, MatrixOperator
from .operator_norm import OperatorNorm, operator_norm
from .pooling import PoolOperator, adaptive_average_pool, average_pool
from .power_law import PowerLaw, fit_power_law
from .power_product import power_product
from .product import product
from .singular_vector import leading_singular_vector

__all__ = [
    "ConvOperator",
    "DiagonalOperator",
    "Eigenvalue",
    "MatrixOperator",
    "OperatorNorm",
    "PoolOperator",
    "PowerLaw",
    "RitzValues",
    "adaptive_average_pool",
    "average_pool",
    "block_lanczos",
    "conv_norm_lower",
    "conv_norm_upper",
    "diagonal_norm",
    "dual_exponent",
    "fit_power_law",
    "induced_norm",
    "lanczos",
    "largest_eigenvalue",
    "leading_singular_vector",
    "operator_norm",
    "power_product",
    "product",
]
