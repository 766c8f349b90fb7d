"""Norms by products in single precision, against singular values that are known or computed in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity.linalg import ConvOperator, MatrixOperator, conv_norm_lower, operator_norm
from sklearn_capacity.linalg import single_precision as module
from sklearn_capacity.linalg.single_precision import norm_by_single_precision

SIZE = 1500


def spectrum(*leading):
    """Eigenvalues of a Gram matrix: some given ones, and others below 0.9."""
    return torch.cat([torch.tensor(leading, dtype=torch.float64), torch.linspace(0, 0.9, SIZE - len(leading)).double()])


def norm_of(eigenvalues, **options):
    """The result for a symmetric matrix with these eigenvalues and vectors that are no unit vectors."""
    w = torch.nn.functional.normalize(drawn(SIZE), dim=0)  # (size,)
    reflect = lambda x: x - 2 * (x @ w.to(x))[:, None] * w.to(x)  # noqa: E731
    product = lambda x: reflect(eigenvalues.to(x) * reflect(x))  # noqa: E731
    return norm_by_single_precision(product, product, SIZE, **options)


@pytest.mark.parametrize("leading", [(1.0,), (1.0, 0.99), (1.0, 1.0), (1.0, 1 - 1e-7), (1.0, 1 - 1e-4), (1.0, 1, 0.96)])
def test_the_stated_error_covers_the_truth(leading):
    for seed in range(5):
        norm = norm_of(spectrum(*leading), random_state=seed)
        assert -1e-14 <= 1 - norm.value <= norm.error <= 1e-7
        assert norm.value == pytest.approx(1.0, rel=1e-9)
        assert norm.residual <= 1e-4


@pytest.mark.parametrize("count", [3, 6, SIZE])
def test_more_close_eigenvalues_than_processes_are_refused(count):
    assert norm_of(spectrum(*[1.0] * count)) is None


def test_a_leading_eigenvalue_that_the_first_process_misses_is_found_by_the_next(monkeypatch):
    # Its Ritz vectors are those of the other eigenvalues.
    eigenvalues = spectrum(1.0, 0.999)
    process = module._leading_vectors
    hidden = torch.where(torch.arange(SIZE) == 0, 0.0, eigenvalues)

    def first_blind(short, start, ceiling):
        return process(short if ceiling > 0 else lambda x: hidden.to(x) * x, start, ceiling)

    monkeypatch.setattr(module, "_leading_vectors", first_blind)
    product = lambda x: eigenvalues.to(x) * x  # noqa: E731
    for seed in range(10):
        norm = norm_by_single_precision(product, product, SIZE, random_state=seed)
        assert norm.value == pytest.approx(1.0, rel=1e-9)
        assert 1 - norm.value <= norm.error <= 1e-7


@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.float16])
def test_coarser_products_are_refused(rounded):
    eigenvalues = spectrum(1.0)
    coarse = lambda x: (eigenvalues.to(rounded) * x.to(rounded)).float()  # noqa: E731
    assert norm_by_single_precision(coarse, lambda x: eigenvalues * x, SIZE) is None


def test_a_tolerance_beyond_single_precision_is_refused_or_kept():
    norm = norm_of(spectrum(1.0, 0.97), tol=1e-13)
    assert norm is None or 1 - norm.value <= norm.error <= 1e-13


def test_the_bound_of_the_small_matrix_covers_the_large_one():
    G = drawn(30, 30)
    G = G @ G.T
    vectors = torch.linalg.eigh(G).eigenvectors.T.flip(0)[:3] + 0.01 * drawn(3, 30)  # (3, 30)
    theta, rho, V, _ = module._ritz(lambda x: x @ G, vectors)
    P = torch.eye(30, dtype=torch.float64) - V.T @ V
    mu = float(torch.linalg.eigvalsh(P @ G @ P)[-1])
    true = float(torch.linalg.eigvalsh(G)[-1])
    assert theta[0] < true <= module._largest_of_arrow(theta, rho, mu) * (1 + 1e-14) < true * 1.01
    np.testing.assert_allclose(rho, torch.linalg.vector_norm(V @ G - torch.tensor(theta)[:, None] * V, dim=1))


OPERATORS = {
    "plain": ConvOperator(drawn(20, 16, 3, 3), (16, 12, 12), padding=1),
    "strided": ConvOperator(drawn(24, 12, 3, 3), (12, 20, 16), stride=2, padding=1),
    "uneven padding": ConvOperator(drawn(12, 9, 4, 3), (9, 15, 12), padding=((3, 1), (0, 2))),
    "negative padding": ConvOperator(drawn(12, 12, 3, 3), (12, 14, 14), padding=(-1, 1)),
    "dilated": ConvOperator(drawn(10, 12, 3, 3), (12, 14, 14), padding=2, dilation=2),
    "circular": ConvOperator(drawn(12, 10, 3, 3), (10, 12, 11), padding=1, padding_mode="circular"),
    "reflected": ConvOperator(drawn(12, 10, 3, 3), (10, 12, 11), padding=1, padding_mode="reflect"),
    "grouped": ConvOperator(drawn(12, 5, 3, 3), (10, 12, 12), padding=1, groups=2),
    "one axis": ConvOperator(drawn(40, 30, 5), (30, 50), padding=2),
    "three axes": ConvOperator(drawn(8, 6, 3, 3, 3), (6, 6, 6, 6), padding=1),
    "transposed": ConvOperator(drawn(12, 10, 3, 3), (12, 10, 10), 2, 1, output_padding=1, transposed=True),
    "few pixels": ConvOperator(drawn(320, 300, 3, 3), (300, 2, 2), padding=1),
    "few pixels, transposed": ConvOperator(drawn(300, 320, 3, 3), (300, 2, 2), padding=1, transposed=True),
    "tiny weights": ConvOperator(1e-60 * drawn(20, 16, 3, 3), (16, 12, 12), padding=1),
    "huge weights": ConvOperator(1e60 * drawn(20, 16, 3, 3), (16, 12, 12), padding=1),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_convolutions_have_the_norm_of_double_precision(operator, monkeypatch):
    norms = []
    computed = norm_by_single_precision
    monkeypatch.setattr(
        "sklearn_capacity.linalg.conv.norm_by_single_precision",
        lambda *args, **options: norms.append(computed(*args, **options)) or norms[-1],
    )
    norm = conv_norm_lower(operator)
    assert len(norms) == 1
    factor = 2.0 ** math.frexp(float(operator.weight.abs().max()))[1]
    scaled = lambda product: lambda x: product(x) / factor  # noqa: E731
    expected = operator_norm(scaled(operator.forward), scaled(operator.adjoint), operator.input_shape)
    assert norm.value == pytest.approx(expected.value * factor, rel=1e-9)
    assert norm.error <= 2e-7


def test_zero_and_dirac_kernels_have_norms_0_and_1():
    dirac = torch.nn.init.dirac_(torch.empty(16, 16, 3, 3))
    assert conv_norm_lower(ConvOperator(torch.zeros(16, 16, 3, 3), (16, 10, 10), padding=1)).value == 0
    assert conv_norm_lower(ConvOperator(dirac, (16, 10, 10), padding=1)).value == pytest.approx(1.0, rel=1e-12)


def test_autocast_and_the_default_type_change_nothing():
    operator = OPERATORS["plain"]
    plain = conv_norm_lower(operator)
    with torch.autocast("cpu"):
        assert conv_norm_lower(operator).value == pytest.approx(plain.value, rel=1e-9)
    try:
        torch.set_default_dtype(torch.float64)
        assert conv_norm_lower(operator) == plain
    finally:
        torch.set_default_dtype(torch.float32)


def test_same_seed_same_bits_and_global_generator_untouched():
    state = torch.get_rng_state()
    assert norm_of(spectrum(1.0), random_state=3) == norm_of(spectrum(1.0), random_state=3)
    assert torch.equal(state, torch.get_rng_state())


def test_close_pairs_of_large_images_are_proven_in_single_precision(monkeypatch):
    weight = torch.nn.init.kaiming_uniform_(torch.empty(64, 32, 3, 3), generator=torch.Generator().manual_seed(0))
    operator = ConvOperator(weight, (32, 24, 24), padding=1)
    expected = operator_norm(operator.forward, operator.adjoint, operator.input_shape).value
    monkeypatch.setattr("sklearn_capacity.linalg.conv.operator_norm", None)
    assert conv_norm_lower(operator).value == pytest.approx(expected, rel=1e-9)


def matrix_of(singular_values, rows, columns):
    """A matrix with these singular values and no unit vectors among its singular vectors."""
    u, v = (torch.nn.functional.normalize(drawn(size), dim=0) for size in (rows, columns))
    A = torch.zeros(rows, columns, dtype=torch.float64)
    A.diagonal()[:] = singular_values
    A = A - 2 * u[:, None] * (u @ A)
    return A - 2 * (A @ v)[:, None] * v


@pytest.mark.parametrize("shape", [(1100, 1100), (1100, 1700), (1700, 1100)])
@pytest.mark.parametrize("second", [0.9, 1 - 1e-4, 1 - 1e-8, 1.0])
def test_matrices_have_their_known_norm(shape, second):
    values = torch.linspace(0.85, 0, 1100, dtype=torch.float64)
    values[:2] = torch.tensor([1.0, second])
    for scale in (1.0, 1e-30, 1e30, 1e200):
        norm = MatrixOperator(scale * matrix_of(values, *shape)).norm_lower()
        assert norm.value == pytest.approx(scale, rel=1e-9)
        assert -1e-13 <= 1 - norm.value / scale <= norm.error <= 1e-7


def test_matrices_that_single_precision_does_not_suffice_for_are_left_to_double():
    zeros = torch.zeros(1030, 1030, dtype=torch.float64)
    assert MatrixOperator(zeros).norm_lower().value == 0
    flat = matrix_of(torch.ones(1030, dtype=torch.float64), 1030, 1030)  # all singular values are equal
    assert MatrixOperator(flat).norm_lower().value == pytest.approx(1.0, rel=1e-9)
    one = torch.full((1030, 2100), 3.0, dtype=torch.float64)  # of rank one, whose entries do not cancel
    assert MatrixOperator(one).norm_lower().value == pytest.approx(3 * math.sqrt(1030 * 2100), rel=1e-9)
