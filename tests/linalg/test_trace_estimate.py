"""Hutch++: exact where the sketch sees all, unbiased over all signs, and a standard error that covers."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity.linalg.lanczos import lanczos_quadrature
from sklearn_capacity.linalg.trace_estimate import trace_estimate


def _symmetric(size: int, seed: int = 0) -> torch.Tensor:
    A = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (A + A.T) / 2


def _estimate(A, n_products, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return trace_estimate(lambda v: A @ v, len(A), n_products=n_products, generator=generator, **options)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_operators_of_low_rank_are_exact(rank):
    factors = _symmetric(40)[:, :rank]
    A = factors @ torch.diag(torch.tensor([3.0, -1.0, 0.5, 2.0, -7.0], dtype=torch.float64)[:rank]) @ factors.T
    result = _estimate(A, 15)
    assert result.value == pytest.approx(float(A.trace()), rel=1e-10)
    assert abs(result.value - float(A.trace())) < 100 * result.standard_error + 1e-12


@pytest.mark.parametrize("n_products", [12, 30, 90])
def test_hundred_seeds_are_covered_and_without_bias(n_products):
    A = _symmetric(60) + torch.diag(torch.linspace(0, 9, 60, dtype=torch.float64) ** 2)
    result = [_estimate(A, n_products, seed) for seed in range(100)]
    errors = torch.tensor([f.value for f in result]) - A.trace()
    spreads = torch.tensor([f.standard_error for f in result])
    assert int((errors.abs() > 4 * spreads).sum()) <= (3 if n_products == 12 else 1)
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 10
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(spreads.square().mean().sqrt()), rel=0.3)


@pytest.mark.parametrize("columns", [0, 1, 5, 20])
def test_the_estimate_keeps_to_its_memory_and_is_covered(columns):
    A = _symmetric(60) + torch.diag(torch.linspace(0, 9, 60, dtype=torch.float64) ** 2)
    widths = []

    def product(v):
        widths.append(v.shape[1])
        return A @ v

    memory = columns * 4 * 8 * 60
    result = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        result.append(trace_estimate(product, 60, n_products=90, generator=generator, memory=memory))
    assert max(widths) <= max(columns, 1)
    assert sum(widths) == 100 * 90
    errors = torch.tensor([f.value for f in result]) - A.trace()
    spreads = torch.tensor([f.standard_error for f in result])
    assert int((errors.abs() > 4 * spreads).sum()) <= 1
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 10


def test_sizes_below_the_sketch():
    A = _symmetric(3)
    assert _estimate(A, 60).value == pytest.approx(float(A.trace()), rel=1e-10)


def test_quadrature_is_exact_for_polynomials():
    A, b = _symmetric(20), torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nodes, weights = lanczos_quadrature(lambda x: A @ x, 20, n_steps=5, start=b)
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12) and len(nodes) == 5
    for degree in range(10):
        expected = float(b @ torch.linalg.matrix_power(A, degree) @ b / (b @ b))
        assert float(weights @ nodes**degree) == pytest.approx(expected, rel=1e-9)


def test_quadrature_ends_with_the_krylov_space():
    nodes, weights = lanczos_quadrature(lambda x: -2 * x, 9, n_steps=4, start=torch.ones(9))
    assert float(weights @ nodes) == pytest.approx(-2, rel=1e-12) and float(nodes.max()) == pytest.approx(-2, rel=1e-12)
