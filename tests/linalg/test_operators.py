"""Matrices, diagonals, average pooling, and the norms induced by l_p and l_q."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from reference_linalg import dense_matrix, drawn, norm, norm_ends
from sklearn_capacity.linalg import (
    ConvOperator,
    DiagonalOperator,
    MatrixOperator,
    adaptive_average_pool,
    average_pool,
    diagonal_norm,
    dual_exponent,
    induced_norm,
)
from sklearn_capacity.linalg.block_lanczos import block_lanczos
from sklearn_capacity.linalg.certificate import certified_norm, largest_gram_root
from sklearn_capacity.linalg.power_product import power_product

INF = math.inf


def _check_interface(operator, A: torch.Tensor) -> None:
    """All that the interface offers, against the matrix."""
    torch.testing.assert_close(dense_matrix(operator.forward, operator.input_shape), A)
    torch.testing.assert_close(dense_matrix(operator.adjoint, operator.output_shape), A.T)
    true, (lower, upper) = norm(A.numpy()), norm_ends(operator)
    assert true * (1 - 1e-9) <= lower <= true * (1 + 1e-12)
    assert true * (1 - 1e-15) <= upper <= true * (1 + 1e-6)
    assert operator.frobenius_norm() == pytest.approx(np.linalg.norm(A.numpy()), rel=1e-12)
    for p in (1, 2, 5, INF):
        rows, columns = torch.linalg.vector_norm(A, p, dim=1), torch.linalg.vector_norm(A, p, dim=0)
        torch.testing.assert_close(operator.row_norms(p), rows.reshape(operator.output_shape))
        torch.testing.assert_close(operator.column_norms(p), columns.reshape(operator.input_shape))


def test_a_known_lower_end_spares_the_singular_values(monkeypatch):
    operator = MatrixOperator(drawn(30, 40))
    lower, upper = operator.norm_lower().value, operator.norm_upper()
    monkeypatch.delattr(torch.linalg, "matrix_norm")
    assert lower < operator.norm_upper(lower) <= upper * (1 + 1e-8)


@pytest.mark.parametrize("scale", [1e-250, 1e-120, 1.0, 1e120, 1e250])
def test_the_ends_hold_where_squares_do_not(scale):
    lower, upper = norm_ends(MatrixOperator(scale * torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)))
    assert lower == pytest.approx(5 * scale, rel=1e-12)
    assert 5 * scale < upper <= 5 * scale * (1 + 1e-8)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_nothing_depends_on_the_default_device(mode):
    """As under ``torch.set_default_device("cuda")``; "meta" holds no numbers, so that whatever lands there is seen."""

    def values(weight, x):
        operator = ConvOperator(weight, (2, 5, 5), padding=1, padding_mode=mode)
        lower, upper = norm_ends(operator)
        block = block_lanczos(lambda v: weight[0, 0, 0] * v, 3, k=1, block=1)
        return lower, upper, float(power_product(operator, 1.5, x).sum()), float(block.values[0])

    weight, x = drawn(2, 2, 3, 3), drawn(1, 2, 5, 5)
    expected = values(weight, x)
    with torch.device("meta"):
        assert values(weight, x) == expected


@pytest.mark.parametrize("direct", [256, 0])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (30, 30), (4, 90), (90, 4)])
def test_matrix(shape, direct, monkeypatch):
    monkeypatch.setattr("sklearn_capacity.linalg.matrix.DIRECT_SIDE", direct)
    W = drawn(*shape)
    _check_interface(MatrixOperator(W), W)
    assert MatrixOperator(W.float()).norm_lower().value == pytest.approx(norm(W.float().double().numpy()), rel=1e-9)


def test_diagonal():
    per_channel = drawn(3)
    _check_interface(DiagonalOperator(per_channel, (3, 2, 2)), torch.diag(per_channel.repeat_interleave(4)))
    full = drawn(3, 2)
    _check_interface(DiagonalOperator(full), torch.diag(full.flatten()))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.AvgPool2d(2), (2, 6, 6)),
        (nn.AvgPool2d(3, 2, 1), (2, 7, 6)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 7, 6)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 8, 6)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 8, 6)),
        (nn.AvgPool2d((2, 3), (3, 2), (0, 1), ceil_mode=True, divisor_override=5), (1, 7, 6)),
        (nn.AvgPool2d(2, 3, 1, ceil_mode=True), (1, 6, 4)),
        (nn.AvgPool2d(2, ceil_mode=True), (2, 1, 3)),  # a window that ends outside
        (nn.AvgPool1d(3, 1), (2, 9)),
        (nn.AvgPool1d(2, 3, ceil_mode=True), (2, 9)),
        (nn.AvgPool3d(2, 1), (1, 3, 4, 3)),
    ],
    ids=repr,
)
def test_average_pool_is_the_module(module, shape):
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    operator = average_pool(shape, **options)
    _check_interface(operator, dense_matrix(lambda x: module(x), shape))


@pytest.mark.parametrize(
    ("shape", "output_size"), [((2, 7, 6), (3, 4)), ((2, 5, 5), 1), ((1, 9), 4), ((1, 4, 6), (None, 3))]
)
def test_adaptive_average_pool_is_the_module(shape, output_size):
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[len(shape) - 1](output_size)
    _check_interface(adaptive_average_pool(shape, output_size), dense_matrix(lambda x: pool(x), shape))


def _ratio(A: torch.Tensor, p: float, q: float) -> float:
    """The largest ||A v||_q / ||v||_p found among unit vectors, sign vectors and random ones: from below."""
    n = A.shape[1]
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    trials = torch.cat([torch.eye(n, dtype=torch.float64), signs, drawn(4000, n)])
    return float((torch.linalg.vector_norm(trials @ A.T, q, 1) / torch.linalg.vector_norm(trials, p, 1)).max())


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 2), (1, 3), (1, INF), (2, INF), (3, INF), (INF, INF), (2, 2)])
def test_induced_norm_is_an_attained_maximum(p, q):
    A = drawn(4, 5)
    value = induced_norm(A, p, q)
    assert _ratio(A, p, q) <= value * (1 + 1e-12)
    # The maximiser, by duality: a unit vector, the dual of a row, or the leading singular vector.
    if p == 1:
        best = torch.eye(5, dtype=torch.float64)[int(torch.linalg.vector_norm(A, q, dim=0).argmax())]
    elif q == INF:
        row = A[int(torch.linalg.vector_norm(A, dual_exponent(p), dim=1).argmax())]
        best = row.sign() * row.abs() ** (dual_exponent(p) - 1)
    else:
        best = torch.linalg.svd(A)[2][0]
    assert float(torch.linalg.vector_norm(A @ best, q) / torch.linalg.vector_norm(best, p)) == pytest.approx(value)


def test_induced_norms_of_convolution_and_pooling_are_those_of_their_matrices():
    for operator in (
        ConvOperator(drawn(4, 2, 3, 3), (2, 5, 5), 2, 1, padding_mode="reflect"),
        ConvOperator(drawn(2, 3, 3), (2, 5), 2, 1, transposed=True),
        average_pool((2, 5, 5), 3, 1, 1),
    ):
        A = dense_matrix(operator.forward, operator.input_shape)
        for p, q in ((1, 1), (1, 2), (2, INF), (INF, INF), (2, 2)):
            assert induced_norm(operator, p, q) == pytest.approx(induced_norm(A, p, q), rel=1e-8)


@pytest.mark.parametrize(("p", "q"), [(2, 1), (INF, 1), (3, 2), (3, 3), (INF, 2)])
def test_other_pairs_are_refused_by_name(p, q):
    with pytest.raises(ValueError, match=rf"got p={p:g}, q={q:g}. Use p = 1 with any q"):
        induced_norm(drawn(3, 3), p, q)


@pytest.mark.parametrize(("a", "b"), list(itertools.product([1, 1.5, 2, 4, INF], repeat=2)))
def test_diagonal_norm_is_an_attained_maximum(a, b):
    d = drawn(5)
    value = diagonal_norm(d, a, b)
    assert _ratio(torch.diag(d), a, b) <= value * (1 + 1e-12)
    if a <= b:
        best = (d.abs() == d.abs().max()).double()
    else:  # Hoelder's case of equality
        best = torch.ones(5, dtype=torch.float64) if a == INF else d.abs() ** (b / (a - b))
    assert float(torch.linalg.vector_norm(d * best, b) / torch.linalg.vector_norm(best, a)) == pytest.approx(value)
    assert induced_norm(DiagonalOperator(d), a, b) == value


def test_diagonal_of_channels_counts_every_pixel():
    d = torch.tensor([1.0, 2.0])
    assert induced_norm(DiagonalOperator(d, (2, 3)), INF, 1) == pytest.approx(9)


def test_certificate_finds_the_largest_of_a_batch_and_leaves_early():
    batch = drawn(40, 6, 9)
    true = max(norm(matrix.numpy()) for matrix in batch)
    for lower in (0.0, true * 0.9, true * (1 - 1e-12)):
        assert true <= certified_norm(batch, lower) <= true * (1 + 2e-7)
    gram = batch @ batch.mT
    assert largest_gram_root(gram, true * 2) == true * 2
    assert largest_gram_root(gram, 0.0, true / 2) > true / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MatrixOperator(torch.ones(3)), "`weight` must be a real tensor of 2 axes"),
        (lambda: MatrixOperator(torch.tensor([[math.inf]])).norm_lower(), "`weight` must be finite"),
        (lambda: MatrixOperator(torch.full((300, 300), math.nan)).norm_upper(), "`weight` must be finite"),
        (lambda: MatrixOperator(torch.ones(2, 2)).row_norms(-1), "`p` must lie in"),
        (lambda: DiagonalOperator(torch.ones(3), (2, 2)), "`diagonal` must have one factor per number or channel"),
        (lambda: average_pool((1, 4), 6), "`kernel_size` must be at most 4"),
        (lambda: average_pool((1, 4), 2, stride=0), "`stride` must be at least 1"),
        (lambda: average_pool((1, 4, 4), (2, 2, 2)), "`kernel_size` must be an integer or a sequence of 2 integers"),
        (lambda: average_pool((1, 4), 2, divisor_override=0), "`divisor_override` must be at least 1"),
        (lambda: adaptive_average_pool((1, 4), (2, 2)), "`output_size` must be an integer or a sequence of 1 integers"),
        (lambda: adaptive_average_pool((1, 4), 0), "`output_size` must be at least 1"),
        (lambda: adaptive_average_pool((0, 4), 1), "`channels` must be at least 1"),
        (lambda: induced_norm(torch.ones(2, 2), 0.5, 2), "`p` must lie in"),
        (lambda: diagonal_norm(torch.ones(2), 1, 0.5), "`b` must lie in"),
        (lambda: dual_exponent(0.5), "`p` must lie in"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
