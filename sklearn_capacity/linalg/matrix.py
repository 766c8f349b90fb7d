"""Matrices and diagonals with the interface of `ConvOperator`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity._validation import NotDefinedError, check_interval

from .certificate import ROUNDING, certified_norm
from .entry_norms import described, stable_norm
from .operator_norm import OperatorNorm, operator_norm
from .single_precision import norm_by_single_precision, serves

__all__ = ["DIRECT_SIDE", "DiagonalOperator", "MatrixOperator", "in_range"]

#: Up to this length of the shorter side, all eigenvalues of the smaller Gram matrix cost less than Lanczos (1.2 ms).
DIRECT_SIDE = 192
#: From this ratio of the sides on, Lanczos on the smaller Gram matrix, once it is formed, takes 0.3 to 0.9 of the time.
ELONGATED = 1.5


def in_range(weight: Tensor, limit: float = 1e100) -> tuple[Tensor, float]:
    """`weight` divided by a power of two, so that squares of entries neither overflow nor underflow, and that power.

    It is 1 where the largest entry is between 1 / limit and limit.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg.matrix import in_range
    >>> in_range(torch.tensor([2.0, 3.0]))
    (tensor([2., 3.]), 1.0)
    """
    largest = max(map(abs, torch.stack(weight.aminmax()).cpu().tolist())) if weight.numel() else 0.0
    if not math.isfinite(largest):
        raise NotDefinedError("`weight` must be finite. Check it for NaN and infinity.")
    if largest == 0 or 1 / limit < largest < limit:
        return weight, 1.0
    factor = 2.0 ** math.frexp(largest)[1]  # a power of two, so the division is exact
    return weight / factor, factor


@dataclass(frozen=True, eq=False)
class MatrixOperator:
    """A dense matrix, such as the weight of a linear layer.

    Parameters
    ----------
    weight : Tensor of shape (out, in)
        Stored in float64, detached.

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
        object.__setattr__(self, "weight", self.weight.detach().to(torch.float64))  # (out, in)
        object.__setattr__(self, "input_shape", (self.weight.shape[1],))
        object.__setattr__(self, "output_shape", (self.weight.shape[0],))

    def forward(self, x: Tensor) -> Tensor:
        """The map on a batch: (n, in) -> (n, out)."""
        return x @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose on a batch: (n, out) -> (n, in)."""
        return y @ self.weight

    def norm_lower(self, tol: float = 1e-7, *, random_state: int = 0) -> OperatorNorm:
        """Spectral norm: by eigenvalues of the smaller Gram matrix, or by Lanczos if its side exceeds 192.

        On a CPU, most products of large matrices are in single precision, the value and its error in double (see
        `single_precision`).
        """
        weight, factor = in_range(self.weight)
        shorter, longer = sorted(weight.shape)
        if shorter <= DIRECT_SIDE:
            return OperatorNorm(_largest_singular_value(weight) * factor, 0.0, 0)
        by_single_precision = _by_single_precision(weight, tol, random_state)
        if by_single_precision is not None:
            return replace(by_single_precision, value=by_single_precision.value * factor)
        options: dict[str, Any] = {"device": weight.device, "tol": tol, "random_state": random_state}
        if longer >= ELONGATED * shorter:
            gram = _smaller_gram(weight)  # (shorter side, shorter side), in place of a product with A and one with A^T
            norm = operator_norm(lambda x: x @ gram, lambda y: y, (shorter,), **options)
        else:
            norm = operator_norm(lambda x: x @ weight.mT, lambda y: y @ weight, self.input_shape, **options)
        return replace(norm, value=norm.value * factor)

    def norm_upper(self, lower: float = 0.0) -> float:
        """A proven upper bound of the spectral norm, by a Cholesky factorisation if a lower bound is known."""
        weight, factor = in_range(self.weight)
        if min(weight.shape) <= DIRECT_SIDE and lower == 0:
            return _largest_singular_value(weight) * (1 + ROUNDING) * factor
        return certified_norm(weight[None], lower / factor) * factor

    def row_norms(self, p: float) -> Tensor:
        """The l_p norm of every row: the incoming weights of one unit."""
        return stable_norm(self.weight, check_interval("p", p, 0, closed="right"))

    def column_norms(self, p: float) -> Tensor:
        """The l_p norm of every column: the outgoing weights of one unit."""
        return stable_norm(self.weight.mT, check_interval("p", p, 0, closed="right"))

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared entries."""
        return float(stable_norm(self.row_norms(2), 2))


def _largest_singular_value(weight: Tensor) -> float:
    """The root of the largest eigenvalue of the smaller Gram matrix.

    Squaring costs accuracy in small singular values only, and takes a fraction of the time of their decomposition.
    """
    return math.sqrt(max(float(torch.linalg.eigvalsh(_smaller_gram(weight))[-1]), 0.0))


def _by_single_precision(weight: Tensor, tol: float, random_state: int) -> OperatorNorm | None:
    """The norm of a large matrix on a CPU; None elsewhere, or if single precision does not suffice."""
    if not serves(min(weight.shape), weight.device):
        return None
    weight, factor = in_range(weight, limit=1e6)  # far from the ends of short numbers, also in sums of squares
    short = weight if weight.shape[0] <= weight.shape[1] else weight.mT  # (shorter side, longer side)
    gram = _smaller_gram(weight.float())  # (shorter side, shorter side)
    products = (lambda x: x @ gram), (lambda x: (x @ short) @ short.mT)
    norm = norm_by_single_precision(*products, len(short), tol=tol, random_state=random_state)
    return None if norm is None else replace(norm, value=norm.value * factor)


def _smaller_gram(weight: Tensor) -> Tensor:
    """A A^T or A^T A, (shorter side, shorter side)."""
    short = weight if weight.shape[0] <= weight.shape[1] else weight.mT
    if short.device.type != "cpu":
        return short @ short.mT
    array = short.numpy()
    return torch.from_numpy(array @ array.T)  # NumPy sees the symmetry, which halves the time


@dataclass(frozen=True, eq=False)
class DiagonalOperator:
    """Multiplication of every entry by a factor, such as batch norm in eval mode.

    Parameters
    ----------
    diagonal : Tensor
        The factors: one per entry of `shape`, or one per channel.
    shape : sequence of int, default=None
        (channels, *sizes); None stands for the shape of `diagonal`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import DiagonalOperator
    >>> DiagonalOperator(torch.tensor([1.0, -2.0]), (2, 3, 3)).frobenius_norm() ** 2  # doctest: +ELLIPSIS
    45.0...
    """

    diagonal: Tensor
    shape: Sequence[int] | None = None
    input_shape: tuple[int, ...] = field(init=False)
    output_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        diagonal = self.diagonal.detach().to(torch.float64)  # (channels,) or (*shape)
        shape = tuple(diagonal.shape if self.shape is None else self.shape)
        if diagonal.dim() == 1 and shape and diagonal.shape[0] == shape[0]:
            diagonal = diagonal.reshape(-1, *(1 for _ in shape[1:]))  # (channels, 1, ...)
        try:
            diagonal = diagonal.expand(shape)  # (*shape), a view
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
        """The absolute factors for any p, since a row has one entry."""
        check_interval("p", p, 0, closed="right")
        return self.diagonal.abs()

    column_norms = row_norms

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared factors."""
        return float(stable_norm(self.diagonal.flatten(), 2))
