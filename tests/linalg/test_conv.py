"""Convolutions as operators: products, both ends of the norm, row and column norms, against matrices built by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from reference_linalg import convolution_matrix, drawn, norm, norm_ends
from sklearn_capacity.linalg import ConvOperator, OperatorNorm, conv_norm_lower, conv_norm_upper
from sklearn_capacity.linalg.banded_certificate import is_upper_end
from sklearn_capacity.linalg.conv import _with_fewest_channels
from sklearn_capacity.linalg.torus_bound import torus_bound

MODES = ("zeros", "circular", "reflect", "replicate")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _fits(n: int, k: int, p, d: int, mode: str) -> bool:
    reach = d * (k - 1)
    before, after = (reach // 2, reach - reach // 2) if p == "same" else (p, p)
    limit = {"zeros": math.inf, "replicate": math.inf, "circular": n, "reflect": n - 1}[mode]
    return n + before + after > reach and max(before, after) <= limit


# (input channels, output channels, sizes, kernel, stride, padding, dilation, groups, mode)
SWEEP = [
    (2, 4, (n,), (k,), s, p, d, 2 if (k + s + d) % 2 else 1, mode)
    for n, kernels, paddings in ((7, (2, 3), (0, 2, "same")), (3, (1, 5), (0, 1, 2)))
    for k in kernels
    for s in (1, 2, 3)
    for d in (1, 2)
    for p in paddings
    for mode in MODES
    if not (p == "same" and s > 1) and not (p == 0 and mode != "zeros") and _fits(n, k, p, d, mode)
] + [
    (2, 3, (5, 6), (3, 3), (1, 1), 1, (1, 1), 1, mode) for mode in MODES
] + [
    (2, 4, (6, 5), (3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2, mode) for mode in MODES
] + [
    (3, 3, (6, 6), (3, 3), (2, 2), (1, 1), (1, 1), 3, "zeros"),
    (1, 2, (4, 4), (5, 5), (1, 1), (2, 2), (1, 1), 1, "zeros"),
    (1, 2, (2, 3), (5, 5), (1, 1), (4, 4), (1, 1), 1, "zeros"),
    (2, 1, (6, 6), (1, 1), (2, 2), (0, 0), (1, 1), 1, "zeros"),
    (2, 1, (5, 5), (2, 2), (3, 3), (0, 0), (1, 1), 1, "zeros"),
    (1, 2, (3, 4, 3), (2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), 1, "zeros"),
    (2, 2, (3, 3, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 2, "circular"),
]  # fmt: skip


def _pair(c_in, c_out, sizes, kernel, stride, padding, dilation, groups, mode):
    nd = len(sizes)
    operator = ConvOperator(
        drawn(c_out, c_in // groups, *kernel), (c_in, *sizes), stride, padding, dilation, groups, mode
    )
    before = [pair[0] for pair in operator.pads]
    spread = [(value,) * nd if isinstance(value, int) else value for value in (stride, dilation)]
    matrix = convolution_matrix(
        operator.weight, sizes, spread[0], before, spread[1], groups, mode, operator.output_shape[1:]
    )
    return operator, matrix


@pytest.mark.parametrize("case", SWEEP, ids=lambda case: "-".join(str(part).replace(" ", "") for part in case))
def test_operator_and_its_norms_are_those_of_the_matrix(case):
    operator, matrix = _pair(*case)
    A = torch.as_tensor(matrix)
    inputs, outputs = math.prod(operator.input_shape), math.prod(operator.output_shape)
    eye = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *operator.input_shape)
    torch.testing.assert_close(operator.forward(eye).reshape(inputs, -1).T, A, rtol=1e-12, atol=1e-12)
    eye = torch.eye(outputs, dtype=torch.float64).reshape(outputs, *operator.output_shape)
    torch.testing.assert_close(operator.adjoint(eye).reshape(outputs, -1), A, rtol=1e-12, atol=1e-12)

    true = norm(matrix)
    lower, upper = norm_ends(operator)
    assert true * (1 - 1e-9) <= lower <= true * (1 + 1e-12)
    assert operator.norm_lower().steps == 0
    by_lanczos = conv_norm_lower(operator, max_steps=500).value
    assert true * (1 - 1e-9) <= by_lanczos <= true * (1 + 1e-12)
    assert true <= upper <= true * (1 + 1e-6)
    # The bound that large operators get holds here as well, however loose it is on such small images.
    assert torus_bound(operator, lower) >= true
    assert torus_bound(operator) == pytest.approx(torus_bound(operator, lower), rel=1e-8)
    assert is_upper_end(operator, true * (1 + 1e-7)) and not is_upper_end(operator, true * (1 - 1e-7))

    for p in (1, 2, 3.5, math.inf):
        rows, columns = torch.linalg.vector_norm(A, p, dim=1), torch.linalg.vector_norm(A, p, dim=0)
        torch.testing.assert_close(operator.row_norms(p), rows.reshape(operator.output_shape), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            operator.column_norms(p), columns.reshape(operator.input_shape), rtol=1e-12, atol=1e-12
        )
    assert operator.frobenius_norm() == pytest.approx(np.linalg.norm(matrix), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1, "same"])
def test_forward_is_the_module(mode, padding):
    for nd in (1, 2, 3):
        module = CONVOLUTIONS[nd](2, 4, 4, padding=padding, groups=2, padding_mode=mode, bias=False).double()
        x = drawn(3, 2, *(5,) * nd)
        operator = ConvOperator(module.weight, (2, *(5,) * nd), 1, padding, 1, 2, mode)
        torch.testing.assert_close(operator.forward(x), module(x).detach())


@pytest.mark.parametrize(
    ("nd", "options"),
    [
        (1, dict(kernel_size=3, stride=2, padding=1, output_padding=1)),
        (1, dict(kernel_size=2, stride=3, output_padding=2)),
        (1, dict(kernel_size=3, stride=2, dilation=3, padding=1, output_padding=2, groups=2)),
        (2, dict(kernel_size=(3, 2), stride=(2, 1), padding=(2, 0), groups=2)),
        (2, dict(kernel_size=4, stride=2, padding=1)),
        (3, dict(kernel_size=2, stride=2, padding=1)),
    ],
)
def test_transposed_convolution_is_the_module_and_its_norms_those_of_the_matrix(nd, options):
    module = TRANSPOSED[nd](2, 4, bias=False, **options).double()
    operator = ConvOperator(module.weight, (2, *(4,) * nd), transposed=True, **_renamed(options))
    inputs = math.prod(operator.input_shape)
    eye = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *operator.input_shape)
    with torch.no_grad():
        A = module(eye).reshape(inputs, -1).T  # the module is the reference here
    assert operator.output_shape == tuple(module(eye[:1]).shape[1:])
    torch.testing.assert_close(operator.forward(eye).reshape(inputs, -1).T, A)
    x, y = drawn(1, *operator.input_shape), drawn(1, *operator.output_shape)
    assert float((operator.forward(x) * y).sum()) == pytest.approx(float((x * operator.adjoint(y)).sum()), rel=1e-12)
    true = norm(A.numpy())
    lower, upper = norm_ends(operator)
    assert true * (1 - 1e-9) <= lower <= true * (1 + 1e-12)
    assert true <= upper <= true * (1 + 1e-6)
    assert torus_bound(operator, lower) >= true
    assert is_upper_end(operator, true * (1 + 1e-7)) and not is_upper_end(operator, true * (1 - 1e-7))
    torch.testing.assert_close(operator.row_norms(3).flatten(), torch.linalg.vector_norm(A, 3, dim=1))
    torch.testing.assert_close(operator.column_norms(math.inf).flatten(), torch.linalg.vector_norm(A, math.inf, dim=0))


def _renamed(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "kernel_size"}


@pytest.mark.parametrize(
    ("operator", "direct"),
    [
        (ConvOperator(drawn(6, 1, 3, 3), (1, 13, 14), padding=1), True),
        (ConvOperator(drawn(4, 5, 3, 3), (4, 6, 6), 2, 1, output_padding=1, transposed=True), True),
        (ConvOperator(drawn(6, 1, 3, 3), (1, 14, 14), padding=1), False),  # a side of 196
        (ConvOperator(drawn(16, 1, 5, 5), (1, 13, 13), padding=2), False),  # costly products
    ],
)
def test_short_sides_have_a_direct_norm(operator, direct):
    lower = operator.norm_lower()
    assert (lower.steps == 0) == direct
    assert lower.value == pytest.approx(norm(_matrix_of(operator)), rel=1e-10)


@pytest.mark.parametrize(("stride", "padding", "limit"), [(1, 1, 0.01), (2, 1, 0.02), (1, 0, 0.01), (2, 0, 0.02)])
def test_torus_bound_is_tight_on_larger_images(stride, padding, limit):
    operator = ConvOperator(drawn(4, 3, 3, 3), (3, 16, 16), stride, padding)
    true = norm(_dense(operator))
    assert true <= torus_bound(operator, conv_norm_lower(operator).value) <= true * (1 + limit)


def _dense(operator: ConvOperator) -> np.ndarray:
    n = math.prod(operator.input_shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *operator.input_shape)
    return operator.forward(eye).reshape(n, -1).T.numpy()


def test_twisted_torus_is_exact_where_theory_says_so():
    # Sums over neighbours on a path: 1 + 2 cos(pi / (n + 1)); the untwisted torus gives 3.
    operator = ConvOperator(torch.ones(1, 1, 3), (1, 10), padding=1)
    assert torus_bound(operator) == pytest.approx(1 + 2 * math.cos(math.pi / 11), rel=1e-8)


@pytest.mark.parametrize("stride", [1, 2])
def test_torus_bound_is_exact_on_periodic_images(stride):
    operator = ConvOperator(drawn(3, 2, 3, 3), (2, 8, 8), stride, 1, padding_mode="circular")
    assert torus_bound(operator) == pytest.approx(norm(_dense(operator)), rel=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_upper_end_without_a_lower_one_or_a_dense_matrix(mode, monkeypatch):
    operator = ConvOperator(drawn(4, 3, 3, 3), (3, 9, 9), 2, 1, padding_mode=mode)
    true = norm(_dense(operator))
    assert true <= conv_norm_upper(operator) <= true * (1 + 1e-6)
    monkeypatch.setattr("sklearn_capacity.linalg.torus_bound.DENSE_SIDE", 0)
    alone = conv_norm_upper(operator)
    assert true <= conv_norm_upper(operator, true * (1 - 1e-12)) <= min(alone * (1 + 1e-8), true * 1.05)
    monkeypatch.setattr("sklearn_capacity.linalg.torus_bound.BAND_PRODUCTS", 0)
    assert alone == pytest.approx(conv_norm_upper(operator, true * (1 - 1e-12)), rel=1e-8)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_by_copies_is_bounded_tightly_beyond_dense_matrices(mode):
    # The norm of the padding times the torus exceeds these by factors of 1.9 and 3.4.
    operator = ConvOperator(drawn(3, 3, 7, 7), (3, 28, 28), padding=3, padding_mode=mode)
    lower, upper = norm_ends(operator)
    assert upper <= lower * (1 + 1e-6)


def test_kernel_of_ones_of_measures_convention():
    # 3x3 ones on 8x8 with padding: (1 + 2 cos(pi / 9))^2, where the reshaped kernel says 3.
    lower, upper = norm_ends(ConvOperator(torch.ones(1, 1, 3, 3), (1, 8, 8), padding=1))
    assert lower == pytest.approx((1 + 2 * math.cos(math.pi / 9)) ** 2, rel=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e200])
@pytest.mark.parametrize("size", [4, 40])
def test_extreme_scales(scale, size):
    weight = drawn(2, 2, 3)
    plain_lower, plain_upper = norm_ends(ConvOperator(weight, (2, size)))
    lower, upper = norm_ends(ConvOperator(weight * scale, (2, size)))
    assert lower == pytest.approx(plain_lower * scale, rel=1e-9)
    assert upper == pytest.approx(plain_upper * scale, rel=1e-7)
    assert lower <= upper


POINTWISE = {
    "plain": ConvOperator(drawn(3, 5, 1, 1), (5, 4, 6)),
    "strided and padded": ConvOperator(drawn(3, 5, 1, 1), (5, 4, 6), 2, 1),
    "reflected, where pixels are read twice": ConvOperator(drawn(3, 5, 1), (5, 4), 1, 1, padding_mode="reflect"),
    "of zeros only": ConvOperator(drawn(3, 5, 1), (5, 1), 2, ((1, 0),)),
    "grouped": ConvOperator(drawn(4, 2, 1, 1), (4, 3, 3), groups=2),
    "transposed": ConvOperator(drawn(3, 5, 1, 1), (3, 3, 2), 2, output_padding=1, transposed=True),
}
FEW_PIXELS = {
    "2 x 2": ConvOperator(drawn(3, 5, 3, 3), (5, 2, 2), padding=1),
    "one": ConvOperator(drawn(3, 5, 3, 3), (5, 1, 1), padding=1),
    "circular": ConvOperator(drawn(3, 5, 3), (5, 2), padding=1, padding_mode="circular"),
    "transposed": ConvOperator(drawn(3, 5, 3, 3), (3, 1, 1), 2, 1, output_padding=1, transposed=True),
}


@pytest.mark.parametrize("operator", [*POINTWISE.values(), *FEW_PIXELS.values()], ids=[*POINTWISE, *FEW_PIXELS])
def test_norms_of_single_taps_and_few_pixels_are_those_of_the_products(operator):
    true = norm(_matrix_of(operator))
    assert conv_norm_lower(operator).value == pytest.approx(true, rel=1e-9)
    assert conv_norm_lower(operator, max_steps=200).value == pytest.approx(true, rel=1e-6)


MANY_CHANNELS = {
    "out": ConvOperator(drawn(17, 2, 3), (2, 7), padding=1),
    "in": ConvOperator(drawn(1, 9, 2, 2), (9, 5, 4), 2, 1),
    "grouped": ConvOperator(drawn(14, 1, 2, 3), (2, 4, 5), (1, 2), 1, groups=2),
    "grouped in": ConvOperator(drawn(2, 5, 3), (10, 6), dilation=2, groups=2, padding=2, padding_mode="circular"),
    "reflected": ConvOperator(drawn(11, 1, 3, 3), (1, 4, 4), padding=1, padding_mode="reflect"),
    "transposed": ConvOperator(drawn(13, 1, 3, 2), (13, 3, 3), 2, 1, output_padding=1, transposed=True),
    "transposed, grouped": ConvOperator(drawn(4, 7, 3), (4, 5), groups=2, transposed=True),
    "of rank one": ConvOperator(torch.ones(9, 1, 2, 2), (1, 4, 4)),
    "zero": ConvOperator(torch.zeros(9, 1, 2, 2), (1, 4, 4)),
}


@pytest.mark.parametrize("operator", MANY_CHANNELS.values(), ids=MANY_CHANNELS)
def test_channels_beyond_the_rank_of_the_kernel_change_no_norm(operator):
    fewer = _with_fewest_channels(operator)
    assert math.prod(fewer.weight.shape) < math.prod(operator.weight.shape)
    singular_values = [np.linalg.svd(_matrix_of(side), compute_uv=False) for side in (operator, fewer)]
    n_values = min(map(len, singular_values))
    assert singular_values[1][:n_values] == pytest.approx(singular_values[0][:n_values], rel=1e-9, abs=1e-12)
    assert conv_norm_lower(operator).value == pytest.approx(singular_values[0][0], rel=1e-9)


def _matrix_of(operator: ConvOperator) -> np.ndarray:
    inputs = torch.eye(math.prod(operator.input_shape), dtype=torch.float64).reshape(-1, *operator.input_shape)
    return operator.forward(inputs).flatten(1).numpy()


def test_large_operator_within_a_millionth_and_frequencies_in_chunks(monkeypatch):
    operator = ConvOperator(drawn(6, 6, 3, 3), (6, 12, 12), padding=1)
    true = norm(_dense(operator))
    assert conv_norm_lower(operator).value == pytest.approx(true, rel=1e-9)
    whole = torus_bound(operator)
    monkeypatch.setattr("sklearn_capacity.linalg.torus_bound.CHUNK", 1000)
    assert torus_bound(operator) == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weight=torch.ones(2, 2), input_shape=(2, 4)), "`weight` must have 3, 4 or 5 axes"),
        (
            dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4, 4)),
            "`input_shape` must be .channels, .sizes. with 1 sizes",
        ),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(3, 4)), "`input_shape` must have 2 channels"),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 2)), "`input_shape` .* must be at least as large"),
        (dict(weight=torch.ones(3, 1, 3), input_shape=(2, 4), groups=2), "`groups` must divide"),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), stride=0), "`stride` must be at least 1"),
        (
            dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), stride=(1, 2)),
            "`stride` must be an integer or a sequence of 1 integers",
        ),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), padding=(1, 1)), "`padding` must be an integer, or 1"),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), padding="some"), "`padding` must be one of"),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), padding_mode="mirror"), "`padding_mode` must be one of"),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), padding=4, padding_mode="reflect"), "`padding` must be"),
        (
            dict(weight=torch.ones(2, 2, 3), input_shape=(2, 4), transposed=True, padding_mode="reflect"),
            "`padding_mode` must be 'zeros' for a transposed",
        ),
        (dict(weight=torch.ones(2, 2, 3), input_shape=(2, 1), transposed=True, padding=2), "`padding` .* must leave"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvOperator(**arguments)


def test_bad_numbers():
    operator = ConvOperator(torch.full((1, 1, 3), float("nan")), (1, 4))
    for function in (conv_norm_lower, conv_norm_upper):
        with pytest.raises(ValueError, match="`weight` must be finite"):
            function(operator)
    with pytest.raises(ValueError, match="`p` must lie in"):
        operator.row_norms(0)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (40, 40, 3, 3), (4, 4, 1, 1)])
def test_a_weight_of_zeros_takes_no_products(shape, monkeypatch):
    for name in ("forward", "adjoint"):
        monkeypatch.delattr(ConvOperator, name)
    operator = ConvOperator(torch.zeros(shape), (shape[1], 8, 8), padding=1)
    assert conv_norm_lower(operator) == OperatorNorm(0.0, 0.0, 0)
