"""Matrices and diagonals with the interface of `ConvOperator`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError, check_interval

from .certificate import ROUNDING, certified_norm
from .entries import described, stable_norm
from .golub_kahan import OperatorNorm, operator_norm

__all__ = ["DiagonalOperator", "MatrixOperator", "linear_norm"]

# Up to here all singular values are cheap; beyond, the largest one alone is.
DIRECT_SIDE = 1024


@dataclass(frozen=True, eq=False)
class MatrixOperator:
    """A dense matrix, such as the weight of a linear layer.

    Parameters
    ----------
    weight : Tensor of shape (out, in)
        Kept in float64, detached.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import MatrixOperator
    >>> MatrixOperator(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).row_norms(2)
    tensor([5., 0.], dtype=torch.float64)
    """

    weight: Tensor
    input_shape: tuple[int, ...] = field(init=False)
    output_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Tensor) or self.weight.dim() != 2 or self.weight.is_complex():
            raise ValueError(f"`weight` must be a real tensor of 2 axes (out, in), got {described(self.weight)}.")
        object.__setattr__(self, "weight", self.weight.detach().to(torch.float64))
        object.__setattr__(self, "input_shape", (self.weight.shape[1],))
        object.__setattr__(self, "output_shape", (self.weight.shape[0],))

    def forward(self, x: Tensor) -> Tensor:
        """The map on a batch: (n, in) -> (n, out)."""
        return x @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """Its transpose on a batch: (n, out) -> (n, in)."""
        return y @ self.weight

    def norm_lower(self, tol: float = 1e-7, *, random_state: int = 0) -> OperatorNorm:
        """Spectral norm: all singular values up to 1024 on the smaller side, Golub-Kahan beyond."""
        if min(self.weight.shape) <= DIRECT_SIDE:
            return OperatorNorm(float(torch.linalg.matrix_norm(self.weight, 2)), 0.0, 0)
        return operator_norm(
            self.forward, self.adjoint, self.input_shape, device=self.weight.device, tol=tol, random_state=random_state
        )

    def norm_upper(self, lower: float = 0.0) -> float:
        """A proven upper end of the spectral norm: by Cholesky from a lower end, else raised by `ROUNDING`."""
        squares = 1e-100 < lower < 1e100  # those of weights beyond overflow or vanish
        if min(self.weight.shape) <= DIRECT_SIDE and not squares:
            return float(torch.linalg.matrix_norm(self.weight, 2)) * (1 + ROUNDING)
        return certified_norm(self.weight[None], lower)

    def row_norms(self, p: float) -> Tensor:
        """The l_p norm of every row: the incoming weights of one unit."""
        return stable_norm(self.weight, check_interval("p", p, 0, closed="right"))

    def column_norms(self, p: float) -> Tensor:
        """The l_p norm of every column: the outgoing weights of one unit."""
        return stable_norm(self.weight.mT, check_interval("p", p, 0, closed="right"))

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared entries."""
        return float(stable_norm(self.row_norms(2), 2))


@dataclass(frozen=True, eq=False)
class DiagonalOperator:
    """Multiplication of every number by its own factor, such as batch norm in eval mode.

    Parameters
    ----------
    diagonal : Tensor
        The factors: one per number of `shape`, or one per channel.
    shape : sequence of int, default=None
        (channels, *sizes); None stands for the shape of `diagonal`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import DiagonalOperator
    >>> round(DiagonalOperator(torch.tensor([1.0, -2.0]), (2, 3, 3)).frobenius_norm() ** 2, 6)  # 9 + 9 * 4
    45.0
    """

    diagonal: Tensor
    shape: Sequence[int] | None = None
    input_shape: tuple[int, ...] = field(init=False)
    output_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        diagonal = self.diagonal.detach().to(torch.float64)
        shape = tuple(diagonal.shape if self.shape is None else self.shape)
        if diagonal.dim() == 1 and shape and diagonal.shape[0] == shape[0]:
            diagonal = diagonal.reshape(-1, *(1 for _ in shape[1:]))
        try:
            diagonal = diagonal.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"`diagonal` must have one factor per number or channel of {shape}, got {tuple(self.diagonal.shape)}."
            ) from error
        for name, value in (("diagonal", diagonal), ("input_shape", shape), ("output_shape", shape)):
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """The map on a batch: (n, *shape) -> (n, *shape)."""
        return x * self.diagonal

    adjoint = forward

    def norm_lower(self, tol: float = 1e-7, *, random_state: int = 0) -> OperatorNorm:
        """Spectral norm: the largest factor, exactly."""
        return OperatorNorm(float(self.diagonal.abs().max()), 0.0, 0)

    def norm_upper(self, lower: float = 0.0) -> float:
        """Spectral norm: the largest factor, exactly."""
        return float(self.diagonal.abs().max())

    def row_norms(self, p: float) -> Tensor:
        """The absolute factors, whatever p: a row holds one number."""
        check_interval("p", p, 0, closed="right")
        return self.diagonal.abs()

    column_norms = row_norms

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared factors."""
        return float(stable_norm(self.diagonal.flatten(), 2))


def linear_norm(weight: Tensor) -> float:
    r"""Spectral norm of a matrix, in float64.

    .. math:: \|W\|_2 = \max_v \|W v\|_2 / \|v\|_2

    Parameters
    ----------
    weight : Tensor of shape (out, in)

    Returns
    -------
    float

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import linear_norm
    >>> round(linear_norm(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), 6)
    2.0
    """
    value = MatrixOperator(weight).norm_lower().value
    if not math.isfinite(value):
        raise NotDefinedError("`weight` must be finite. Check it for nan and inf.")
    return value
