"""Average pooling as a linear operator: a Kronecker product of one small matrix per axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from sklearn_capacity._validation import check_integer, shown
from sklearn_capacity.process_state import computed_once

from .matrix import MatrixOperator
from .operator_norm import OperatorNorm
from .padding import per_axis

__all__ = ["PoolOperator", "adaptive_average_pool", "average_pool"]


@dataclass(frozen=True, eq=False)
class PoolOperator:
    r"""Average pooling of every channel, as a linear map between arrays of known size.

    .. math:: A = I_c \otimes M_1 \otimes M_2 \otimes \dots

    Norms of a Kronecker product are products of norms, so all of them are exact. Build the operator with `average_pool`
    or `adaptive_average_pool`.

    Parameters
    ----------
    axes : tuple of Tensor of shape (outputs, inputs)
        Weights along each axis.
    channels : int

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import PoolOperator
    >>> pairs = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    >>> pool = PoolOperator((pairs, pairs), channels=3)
    >>> pool.output_shape, round(pool.norm_lower().value, 12)
    ((3, 2, 2), 0.5)
    """

    axes: tuple[Tensor, ...]
    channels: int
    input_shape: tuple[int, ...] = field(init=False)
    output_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_integer("channels", self.channels, 1)
        object.__setattr__(self, "input_shape", (self.channels, *(axis.shape[1] for axis in self.axes)))
        object.__setattr__(self, "output_shape", (self.channels, *(axis.shape[0] for axis in self.axes)))

    @computed_once
    def factors(self) -> tuple[MatrixOperator, ...]:
        """One matrix per axis."""
        return tuple(MatrixOperator(axis) for axis in self.axes)

    def forward(self, x: Tensor) -> Tensor:
        """The map on a batch: (n, *input_shape) -> (n, *output_shape)."""
        for axis in self.axes:  # the first axis is summed over, the new one is appended
            x = torch.tensordot(x, axis, dims=([2], [1]))  # (n, channels, *inputs left, *outputs)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose on a batch: (n, *output_shape) -> (n, *input_shape)."""
        for axis in self.axes:
            y = torch.tensordot(y, axis, dims=([2], [0]))  # (n, channels, *outputs left, *inputs)
        return y

    def norm_lower(self, tol: float = 1e-7, *, random_state: int = 0) -> OperatorNorm:
        """Spectral norm: the product over the axes."""
        parts = [factor.norm_lower(tol, random_state=random_state) for factor in self.factors]
        return OperatorNorm(
            prod(part.value for part in parts),
            max(part.residual for part in parts),
            max(part.steps for part in parts),
            prod(1 + part.error for part in parts) - 1,
        )

    def norm_upper(self, lower: float = 0.0) -> float:
        """A proven upper bound of the spectral norm: the product over the axes."""
        return prod(factor.norm_upper() for factor in self.factors)

    def row_norms(self, p: float) -> Tensor:
        """The l_p norm of the weights of every output, of shape `output_shape`."""
        return self._outer([factor.row_norms(p) for factor in self.factors])

    def column_norms(self, p: float) -> Tensor:
        """The l_p norm of the outgoing weights of every input, of shape `input_shape`."""
        return self._outer([factor.column_norms(p) for factor in self.factors])

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared entries."""
        return float(torch.linalg.vector_norm(self.row_norms(2)))

    def _outer(self, vectors: Sequence[Tensor]) -> Tensor:
        product = torch.ones(self.channels, dtype=torch.float64, device=self.axes[0].device)  # (channels,)
        for vector in vectors:
            product = product[..., None] * vector  # (channels, *sizes so far, size)
        return product


def average_pool(
    input_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    device: torch.device | str = "cpu",
) -> PoolOperator:
    """The operator of ``torch.nn.AvgPool1d``, ``2d`` or ``3d``, with the same parameters.

    Parameters
    ----------
    input_shape : sequence of int, (channels, *sizes)
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As in torch; ``stride=None`` means the kernel size.
    device : torch.device or str, default="cpu"

    Returns
    -------
    PoolOperator

    Examples
    --------
    >>> from sklearn_capacity.linalg import average_pool
    >>> round(average_pool((3, 4, 4), 2).norm_lower().value, 12)  # four pixels in a window, each weighing 1/4
    0.5
    """
    channels, *sizes = input_shape
    kernels = per_axis("kernel_size", kernel_size, len(sizes), 1)
    strides = kernels if stride is None else per_axis("stride", stride, len(sizes), 1)
    paddings = per_axis("padding", padding, len(sizes), 0)
    axes = []
    for number, (n, k, s, p) in enumerate(zip(sizes, kernels, strides, paddings, strict=True)):
        count = _pooled_size(n, k, s, p, ceil_mode)
        start = np.arange(count) * s - p  # (count,): first pixel of each window, negative in the padding
        stop = np.minimum(start + k, n + p)  # (count,); a last window of `ceil_mode` ends with the padding
        divisor = stop - start if count_include_pad else np.minimum(stop, n) - np.maximum(start, 0)
        if divisor_override is not None:  # one number for the entire window, applied to the first axis
            divisor = np.full(count, check_integer("divisor_override", divisor_override, 1) if number == 0 else 1)
        axes.append(_windows(start, stop, divisor, n, device))
    return PoolOperator(tuple(axes), int(channels))


def adaptive_average_pool(
    input_shape: Sequence[int], output_size: int | Sequence[int | None], *, device: torch.device | str = "cpu"
) -> PoolOperator:
    """The operator of ``torch.nn.AdaptiveAvgPool1d``, ``2d`` or ``3d``; size 1 is the mean over the image.

    Parameters
    ----------
    input_shape : sequence of int, (channels, *sizes)
    output_size : int or sequence of int or None
        None keeps the size of that axis.
    device : torch.device or str, default="cpu"

    Returns
    -------
    PoolOperator

    Examples
    --------
    >>> from sklearn_capacity.linalg import adaptive_average_pool
    >>> round(adaptive_average_pool((8, 4, 4), 1).norm_lower().value, 12)
    0.25
    """
    channels, *sizes = input_shape
    outputs = list(output_size) if isinstance(output_size, Sequence) else [output_size] * len(sizes)
    if len(outputs) != len(sizes):
        raise ValueError(
            f"`output_size` must be an integer or a sequence of {len(sizes)} integers, got {shown(output_size)}."
        )
    axes = []
    for n, m in zip(sizes, outputs, strict=True):
        m = n if m is None else check_integer("output_size", m, 1)
        steps = np.arange(m)  # (m,)
        # floor(i n / m) and ceil((i + 1) n / m), as torch rounds
        start, stop = steps * n // m, -(-(steps + 1) * n // m)
        axes.append(_windows(start, stop, stop - start, n, device))
    return PoolOperator(tuple(axes), int(channels))


def _pooled_size(n: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    largest = n + 2 * padding + (stride - 1 if ceil_mode else 0)  # `ceil_mode` admits windows that end further out
    if kernel > largest:
        raise ValueError(f"`kernel_size` must be at most {largest} at this size, got {kernel}.")
    count = (largest - kernel) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= n + padding else count  # all must start inside


def _windows(start: np.ndarray, stop: np.ndarray, divisor: np.ndarray, n: int, device) -> Tensor:
    pixels = np.arange(n)  # (n,)
    inside = (pixels >= start[:, None]) & (pixels < stop[:, None])  # (outputs, n)
    return torch.as_tensor(inside / divisor[:, None], dtype=torch.float64, device=device)
