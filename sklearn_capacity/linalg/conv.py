"""A convolution as a linear operator at its input size."""

from __future__ import annotations

import copy
import math
import numbers
import operator as operators
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_capacity._validation import check_integer, check_option
from sklearn_capacity.process_state import computed_once

from .entry_norms import Taps, dense_blocks, described, entry_norms, stable_norm
from .matrix import DIRECT_SIDE, MatrixOperator, in_range
from .operator_norm import OperatorNorm, Product, operator_norm
from .packed_products import packed_products
from .padding import PADDING_MODES, pad, pad_adjoint, per_axis, source_index
from .pixel_products import pixel_products
from .single_precision import norm_by_single_precision, serves
from .torus_bound import convolution_bound

__all__ = ["ConvOperator", "conv_norm_lower", "conv_norm_upper"]

#: Pixels of the image up to which channels-last products in double precision are faster on a CPU.
FEW_PIXELS = 64
#: Multiplications up to which a short side has a direct norm, and the unit vectors that are convolved at once.
MOST_MULTIPLICATIONS, UNITS = 15_000_000, 64
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class ConvOperator:
    r"""A convolution or transposed convolution as a linear map between arrays of known size.

    .. math:: y[o, i] = \sum_{c, t} w[o, c, t] \; \mathrm{pad}(x)[c, s i + d t]

    A transposed convolution is stored as the adjoint of the convolution with the same weight.

    Parameters
    ----------
    weight : Tensor of shape (out, in / groups, *kernel), or (in, out / groups, *kernel) if transposed
        Stored in float64, detached.
    input_shape : sequence of int, (channels, *sizes)
        One sample, without the batch axis; one, two or three sizes.
    stride, dilation : int or sequence of int, default=1
    padding : int, "same", "valid", or a sequence with an int or a pair (before, after) per axis, default=0
    groups : int, default=1
    padding_mode : "zeros", "circular", "reflect" or "replicate", default="zeros"
    transposed : bool, default=False
    output_padding : int or sequence of int, default=0
        Output padding of a transposed convolution.

    Attributes
    ----------
    output_shape : tuple of int, (channels, *sizes)

    Raises
    ------
    ValueError
        If shapes do not match.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator
    >>> blur = ConvOperator(torch.ones(1, 1, 3), (1, 4), padding=1)
    >>> blur.output_shape
    (1, 4)
    >>> round(blur.norm_lower().value, 6)  # 1 + 2 cos(pi / 5)
    2.618034
    """

    weight: Tensor
    input_shape: tuple[int, ...]
    stride: Any = 1  # given as in torch, stored as one int, or pair, per axis
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: Any = 0
    output_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Tensor) or self.weight.is_complex() or not self.weight.numel():
            raise ValueError(f"`weight` must be a real tensor with at least one tap, got {described(self.weight)}.")
        nd = self.weight.dim() - 2
        if nd not in CONVOLUTIONS:
            raise ValueError(f"`weight` must have 3, 4 or 5 axes, got shape {tuple(self.weight.shape)}.")
        if len(self.input_shape) != nd + 1:
            raise ValueError(
                f"`input_shape` must be (channels, *sizes) with {nd} sizes, got {tuple(self.input_shape)}. "
                "Omit the batch axis."
            )
        check_option("padding_mode", self.padding_mode, PADDING_MODES)
        if self.transposed and self.padding_mode != "zeros":
            raise ValueError(f"`padding_mode` must be 'zeros' for a transposed convolution, got {self.padding_mode!r}.")
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("weight", self.weight.detach().to(torch.float64))
        put("input_shape", tuple(int(size) for size in self.input_shape))
        for name in ("stride", "dilation"):
            put(name, per_axis(name, getattr(self, name), nd, 1))
        put("output_padding", per_axis("output_padding", self.output_padding, nd, 0))
        put("padding", _padding_pairs(self.padding, self.reach))
        put("output_shape", self._transposed_shape() if self.transposed else self._image_shape())
        self._check_channels()

    @computed_once
    def kernel(self) -> tuple[int, ...]:
        """Taps per axis."""
        return tuple(self.weight.shape[2:])

    @computed_once
    def reach(self) -> tuple[int, ...]:
        """Pixels between the first and the last tap, per axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    @computed_once
    def domain(self) -> tuple[int, ...]:
        """Shape of the convolution's input: the operator's input, or its output if transposed."""
        return self.output_shape if self.transposed else self.input_shape

    @computed_once
    def image(self) -> tuple[int, ...]:
        """Shape of the convolution's output: the operator's output, or its input if transposed."""
        return self.input_shape if self.transposed else self.output_shape

    @computed_once
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Padding of the convolution; if transposed, the end is cropped to the pixels that are written."""
        if not self.transposed:
            return self.padding
        return tuple((a, b - extra) for (a, b), extra in zip(self.padding, self.output_padding, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """The map on a batch: (n, *input_shape) -> (n, *output_shape)."""
        return self._convolve_transposed(x) if self.transposed else self._convolve(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose on a batch: (n, *output_shape) -> (n, *input_shape)."""
        return self._convolve(y) if self.transposed else self._convolve_transposed(y)

    def norm_lower(self, tol: float = 1e-7, *, random_state: int = 0) -> OperatorNorm:
        """Spectral norm from below; see `conv_norm_lower`."""
        return conv_norm_lower(self, tol, random_state=random_state)

    def norm_upper(self, lower: float = 0.0) -> float:
        """A proven upper bound of the spectral norm; see `conv_norm_upper`."""
        return conv_norm_upper(self, lower)

    def row_norms(self, p: float) -> Tensor:
        """The l_p norm of the incoming weights of every output unit, of shape `output_shape`."""
        return entry_norms(self.blocks, self.taps, p, rows=not self.transposed)

    def column_norms(self, p: float) -> Tensor:
        """The l_p norm of the outgoing weights of every input unit, of shape `input_shape`."""
        return entry_norms(self.blocks, self.taps, p, rows=self.transposed)

    def frobenius_norm(self) -> float:
        """Root of the sum of the squared entries of the operator."""
        return float(stable_norm(self.row_norms(2).flatten(), 2))

    @computed_once
    def blocks(self) -> Tensor:
        """The weight as (groups, image channels, domain channels, *kernel)."""
        # Both kinds store the axis that is split into groups first, and the channels per group second.
        return self.weight.reshape(self.groups, -1, *self.weight.shape[1:])

    @computed_once
    def taps(self) -> tuple[Taps, ...]:
        """Per axis, the input pixel under each tap of each output pixel."""
        axes = zip(self.domain[1:], self.image[1:], self.pads, self.stride, self.dilation, self.kernel, strict=True)
        return tuple(
            Taps(source_index(n, before, after, self.padding_mode), n, outputs, s, d, k)
            for n, outputs, (before, after), s, d, k in axes
        )

    def _convolve(self, x: Tensor) -> Tensor:
        convolution = CONVOLUTIONS[len(self.kernel)]
        if self.borders is not None:
            return convolution(x, self.weight, None, self.stride, self.borders[0], self.dilation, self.groups)
        x = pad(x, self.pads, self.padding_mode)  # (n, channels, *padded)
        return convolution(x, self.weight, None, self.stride, 0, self.dilation, self.groups)  # (n, *image)

    def _convolve_transposed(self, y: Tensor) -> Tensor:
        transposed = TRANSPOSED[len(self.kernel)]
        if self.borders is not None:
            padding, unread = self.borders
            return transposed(y, self.weight, None, self.stride, padding, unread, self.groups, self.dilation)
        y = transposed(y, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)  # (n, channels, *covered)
        if self.padding_mode == "zeros":  # the transpose of adding zeros is cropping
            return pad(y, self._uncovered, "zeros")  # (n, *domain)
        y = pad(y, self._unread, "zeros")  # (n, channels, *padded)
        return pad_adjoint(y, self.domain[1:], self.pads, self.padding_mode)  # (n, *domain)

    @computed_once
    def borders(self) -> tuple[list[int], list[int]] | None:
        """Padding and output padding by which torch convolves both ways without a padded copy; None if it cannot."""
        unread = [after for _, after in self._unread]
        steps = map(max, self.stride, self.dilation)
        plain = self.padding_mode == "zeros" and all(a == b >= 0 for a, b in self.pads)
        if not plain or not all(0 <= after < step for after, step in zip(unread, steps, strict=True)):
            return None
        return [a for a, _ in self.pads], unread

    @computed_once
    def _unread(self) -> tuple[tuple[int, int], ...]:
        """The number of padded pixels after the last window, which no window reads, as pairs for `pad`."""
        axes = zip(self.domain[1:], self.pads, self.image[1:], self.stride, self.reach, strict=True)
        return tuple((0, n + a + b - ((m - 1) * s + reach + 1)) for n, (a, b), m, s, reach in axes)

    @computed_once
    def _uncovered(self) -> tuple[tuple[int, int], ...]:
        """The pixels of the domain beyond the windows, less those of the windows beyond it, as pairs for `pad`."""
        return tuple((-a, unread - b) for (a, b), (_, unread) in zip(self.pads, self._unread, strict=True))

    def _image_shape(self) -> tuple[int, ...]:
        axes = zip(self.input_shape[1:], self.padding, self.reach, self.stride, strict=True)
        sizes = [(n + a + b - reach - 1) // s + 1 for n, (a, b), reach, s in axes]
        if min(sizes) < 1:
            raise ValueError(
                f"`input_shape` {self.input_shape} must be at least as large as the kernel {self.kernel} after padding."
            )
        limits = {"circular": 0, "reflect": 1}
        if self.padding_mode in limits:
            for n, pair in zip(self.input_shape[1:], self.padding, strict=True):
                check_integer("padding", max(pair), -n, n - limits[self.padding_mode])
        return (self.weight.shape[0], *sizes)

    def _transposed_shape(self) -> tuple[int, ...]:
        axes = zip(self.input_shape[1:], self.stride, self.padding, self.reach, self.output_padding, strict=True)
        sizes = [(n - 1) * s - a - b + reach + extra + 1 for n, s, (a, b), reach, extra in axes]
        if min(sizes) < 1:
            raise ValueError(f"`padding` {self.padding} must leave an output of at least one pixel, got {sizes}.")
        return (self.weight.shape[1] * self.groups, *sizes)

    def _check_channels(self) -> None:
        check_integer("groups", self.groups, 1)
        if self.weight.shape[0] % self.groups:
            raise ValueError(f"`groups` must divide the first axis of `weight`, {len(self.weight)}, got {self.groups}.")
        expected = self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups
        if self.input_shape[0] != expected:
            raise ValueError(f"`input_shape` must have {expected} channels for this weight, got {self.input_shape[0]}.")


def conv_norm_lower(operator: ConvOperator, tol: float = 1e-7, *, random_state: int = 0, **options) -> OperatorNorm:
    """Spectral norm of a convolution from below, by Lanczos on its forward and adjoint products.

    A kernel of one pixel has the norm of its matrix of channels, and on images smaller than the kernel, the
    convolution's own matrix has fewer entries; the norm is then that of `MatrixOperator`, unless there are `options`.
    Where one side is short, all eigenvalues of the smaller Gram matrix are computed, and `steps` is 0.
    On a CPU, most products with long vectors are computed in single precision; the value and its error hold in double
    precision (see `single_precision`).

    Parameters
    ----------
    operator : ConvOperator
    tol : float, default=1e-7
        Relative error, as in `operator_norm`.
    random_state : int, default=0
    **options
        `max_steps`, `check_every` of `operator_norm`.

    Returns
    -------
    OperatorNorm

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator, conv_norm_lower
    >>> round(conv_norm_lower(ConvOperator(torch.full((1, 1, 2, 2), 0.5), (1, 2, 2), stride=2)).value, 6)
    1.0
    """
    weight, factor = in_range(operator.weight)
    if not bool(weight.any()):  # the gain of a folded batch norm may start from 0
        return OperatorNorm(0.0, 0.0, 0)
    operator = replace(operator, weight=weight)
    matrix = None if options else _matrix_of_equal_norm(operator)
    if matrix is not None:
        norm = MatrixOperator(matrix).norm_lower(tol, random_state=random_state)
        return replace(norm, value=norm.value * factor)
    operator = _with_fewest_channels(operator)
    direct = None if options else _by_all_eigenvalues(operator)
    if direct is not None:
        return OperatorNorm(direct * factor, 0.0, 0)
    by_single_precision = None if options else _by_single_precision(operator, tol, random_state)
    if by_single_precision is not None:
        return replace(by_single_precision, value=by_single_precision.value * factor)
    forward, adjoint = _fastest_products(operator)
    norm = operator_norm(
        forward,
        adjoint,
        operator.input_shape,
        device=operator.weight.device,
        tol=tol,
        random_state=random_state,
        **options,
    )
    return replace(norm, value=norm.value * factor)


def conv_norm_upper(operator: ConvOperator, lower: float = 0.0) -> float:
    r"""A proven upper bound of the spectral norm of a convolution.

    The smallest of: the Frobenius norm; :math:`\sqrt{\|A\|_1 \|A\|_\infty}`; the bound on a torus (`torus_bound`); and,
    for small operators or for moderate ones with a loose bound, the norm itself, certified by a Cholesky factorisation.

    Parameters
    ----------
    operator : ConvOperator
    lower : float, default=0.0
        A lower bound of the norm, from `conv_norm_lower`; it saves work, and if it has converged, the loose bound of a
        moderate operator is certified down to it.

    Returns
    -------
    float
        The bound, raised by one part in 10^9 to cover rounding.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.linalg import ConvOperator, conv_norm_upper
    >>> round(conv_norm_upper(ConvOperator(torch.ones(1, 1, 3), (1, 4), padding=1)), 6)
    2.618034
    """
    weight, factor = in_range(operator.weight)
    return convolution_bound(replace(operator, weight=weight), lower / factor) * factor


def _matrix_of_equal_norm(operator: ConvOperator) -> Tensor | None:
    """A matrix with the norm of the convolution and no more entries than its kernel, if there is one."""
    if operator.groups > 1:
        return None
    if all(taps.selects for taps in operator.taps):  # the Kronecker product of the kernel with selections of pixels
        return operator.weight.flatten(1)
    if math.prod(operator.domain) * math.prod(operator.image) > operator.weight.numel():
        return None
    return dense_blocks(operator.blocks, operator.taps)[0]  # (image, domain)


def _with_fewest_channels(operator: ConvOperator) -> ConvOperator:
    """An operator with the same singular values that has no more channels than its kernel can tell apart.

    With more image channels than numbers under the kernel, W = Q R with a smaller R and orthonormal columns in Q, which
    change no norm: 64 channels from 3 under 3 x 3 taps become 27. The same holds for the transpose.
    """
    blocks = operator.blocks  # (groups, image channels, domain channels, *kernel)
    for axis in (1, 2):
        last = blocks.movedim(axis, -1)  # (groups, ..., channels)
        matrix = last.flatten(1, -2).mT  # (groups, channels, others)
        if matrix.shape[1] > matrix.shape[2]:
            factor = torch.linalg.qr(matrix, mode="r").R  # (groups, others, others)
            blocks = factor.mT.unflatten(1, last.shape[1:-1]).movedim(-1, axis)
    if blocks.shape == operator.blocks.shape:
        return operator
    channels = operator.groups * blocks.shape[1 if operator.transposed else 2]
    return replace(operator, weight=blocks.flatten(0, 1), input_shape=(channels, *operator.input_shape[1:]))


def _by_all_eigenvalues(operator: ConvOperator) -> float | None:
    """The norm where one side is so short that products of its unit vectors cost less than the steps of Lanczos."""
    shorter, product = min(math.prod(operator.domain), math.prod(operator.image)), operator.blocks[0, 0].numel()
    if shorter > DIRECT_SIDE or 2 * shorter * product * math.prod(operator.image) > MOST_MULTIPLICATIONS:
        return None
    gram = _gram(operator, operator.forward, operator.adjoint)
    units = torch.eye(shorter, dtype=operator.weight.dtype, device=operator.weight.device)
    images = torch.cat([gram(part) for part in units.split(UNITS)])  # the Gram matrix, (shorter, shorter)
    return math.sqrt(max(float(torch.linalg.eigvalsh(images)[-1]), 0.0))


def _by_single_precision(operator: ConvOperator, tol: float, random_state: int) -> OperatorNorm | None:
    """The norm where vectors are long, on a CPU; None elsewhere, or if single precision does not suffice."""
    size = min(math.prod(operator.domain), math.prod(operator.image))
    if not serves(size, operator.weight.device):
        return None
    weight, factor = in_range(operator.weight, limit=1.0)
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    double = replace(operator, weight=weight)
    short = copy.copy(double)  # `replace` would convert the weight to double precision
    object.__setattr__(short, "weight", weight.float())
    products = packed_products(short) or (short.forward, short.adjoint)
    grams = _gram(short, *products), _gram(double, double.forward, double.adjoint)
    norm = norm_by_single_precision(*grams, size, tol=tol, random_state=random_state)
    return None if norm is None else replace(norm, value=norm.value * factor)


def _gram(operator: ConvOperator, forward: Product, adjoint: Product) -> Product:
    """The smaller Gram matrix times vectors (k, side), whose channels are last, as in the fastest products."""
    shape = operator.input_shape
    if math.prod(operator.output_shape) < math.prod(shape):
        shape, forward, adjoint = operator.output_shape, adjoint, forward

    def gram(x: Tensor) -> Tensor:
        images = x.reshape(-1, *shape[1:], shape[0]).movedim(-1, 1)  # (k, *shape)
        return adjoint(forward(images)).movedim(1, -1).reshape(x.shape)

    return gram


def _fastest_products(operator: ConvOperator) -> tuple[Product, Product]:
    """Forward and adjoint of one array, by the pixels if these are very few."""
    products = _by_pixels(operator)
    if products is None:
        operator = _channels_last_where_faster(operator)
        return operator.forward, operator.adjoint
    return products


def _by_pixels(operator: ConvOperator) -> tuple[Product, Product] | None:
    """Forward and adjoint put together from products of single pixels, where that is faster."""
    products = pixel_products(operator)
    if products is None:
        return None
    both = products.convolve, products.convolve_transposed
    return both[::-1] if operator.transposed else both


def _channels_last_where_faster(operator: ConvOperator) -> ConvOperator:
    """The operator with channels-last products, if it has few pixels: torch's double-precision products then halve."""
    few = math.prod(operator.image[1:]) <= FEW_PIXELS and len(operator.kernel) == 2 and operator.groups == 1
    if not few or operator.weight.device.type != "cpu":
        return operator
    return replace(operator, weight=operator.weight.contiguous(memory_format=torch.channels_last))


def _padding_pairs(padding, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if check_option("padding", padding, ["same", "valid"]) == "valid":
            return ((0, 0),) * len(reach)
        return tuple((total // 2, total - total // 2) for total in reach)
    try:
        values = (padding,) * len(reach) if isinstance(padding, numbers.Integral) else tuple(padding)
        values = values * len(reach) if len(values) == 1 else values
        pairs = tuple(_integers((entry, entry) if isinstance(entry, numbers.Integral) else entry) for entry in values)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != len(reach) or not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"`padding` must be an integer, or {len(reach)} integers or pairs, got {padding!r}.")
    return pairs  # type: ignore[return-value]


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(operators.index(value) for value in values)
