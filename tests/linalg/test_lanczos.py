"""Lanczos against all eigenvalues: spectra like those of the dual Fisher matrix, batches, breakdown."""

from __future__ import annotations

import math

import pytest
import torch

from sklearn_capacity._validation import CapacityWarning
from sklearn_capacity.linalg import lanczos, largest_eigenvalue


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _symmetric(values: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(_random(len(values), len(values)))[0]
    return (basis * values.to(torch.float64)) @ basis.T


def _fisher_dual(n_outliers: int, spread: float) -> torch.Tensor:
    """A few outliers over a Marchenko-Pastur bulk, as KERNELS' lambda_max sees."""
    bulk = torch.linalg.svdvals(_random(300, 400)) ** 2 / 1600  # below 1
    outliers = torch.logspace(math.log10(spread), math.log10(1.5), n_outliers, dtype=torch.float64)
    return _symmetric(torch.cat([outliers, bulk]))


@pytest.mark.parametrize(("n_outliers", "spread"), [(1, 50.0), (5, 30.0), (10, 20.0), (10, 100.0), (20, 100.0)])
def test_fisher_like_spectrum_takes_at_most_sixteen_products(n_outliers, spread):
    A = _fisher_dual(n_outliers, spread)
    calls = []
    found = largest_eigenvalue(lambda x: calls.append(1) or A @ x, len(A))
    true = float(torch.linalg.eigvalsh(A)[-1])
    assert true * (1 - 1e-8) <= found.value <= true * (1 + 1e-13)
    assert found.n_products == len(calls) <= 16
    assert found.residual <= 1e-5


def test_residual_is_that_of_an_eigenpair():
    A = _fisher_dual(20, 3.0)
    eigenvalues = torch.linalg.eigvalsh(A)
    for tol in (0.3, 1e-2, 1e-4):
        found = largest_eigenvalue(lambda x: A @ x, len(A), tol=tol)
        assert float((eigenvalues - found.value).abs().min()) <= found.residual * found.value <= tol * found.value


def test_several_values_and_indefinite_operators():
    A = _symmetric(torch.cat([torch.tensor([9.0, 7.0, 6.0, -20.0]), torch.linspace(-1, 1, 96)]))
    found = lanczos(lambda x: A @ x, (100,), k=3, tol=1e-8)
    torch.testing.assert_close(found.values, torch.tensor([9.0, 7.0, 6.0], dtype=torch.float64), rtol=1e-9, atol=0)
    assert found.residuals.shape == (3,)


def test_batch_of_different_operators_like_one_at_a_time():
    factors = _random(7, 100, 12)
    factors[3] = 0  # one of them is the zero operator
    factors[4, :, 1:] = 0  # and one has rank one
    grams = factors @ factors.mT
    found = lanczos(lambda x: torch.einsum("bij,bj->bi", grams, x), (7, 100), k=2, tol=1e-7)
    # Ten singular vectors span all that these operators see, so the values are exact.
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(grams)[:, -2:].flip(1), rtol=1e-9, atol=1e-9)
    assert found.values.shape == (7, 2)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_spaces_are_exhausted(size):
    A = _random(size, size)
    A = A + A.T
    found = largest_eigenvalue(lambda x: A @ x, size, tol=1e-12)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(A)[-1]), rel=1e-10)
    assert found.n_products <= size


def test_identity_and_zero_end_at_once():
    assert largest_eigenvalue(lambda x: 3 * x, 50).value == pytest.approx(3, rel=1e-14)
    found = largest_eigenvalue(torch.zeros_like, 50)
    assert (found.value, found.residual) == (0.0, 0.0)


def test_same_seed_same_bits():
    A = _fisher_dual(5, 30.0)
    assert largest_eigenvalue(lambda x: A @ x, len(A)) == largest_eigenvalue(lambda x: A @ x, len(A), random_state=0)


def test_unfinished_value_says_so():
    A = _fisher_dual(30, 3.0)
    with pytest.warns(CapacityWarning, match="relative residual of .* after 2 products"):
        found = largest_eigenvalue(lambda x: A @ x, len(A), max_steps=2)
    assert found.value <= float(torch.linalg.eigvalsh(A)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tol=1.0), r"`tol` must lie in \(0, 1\)"),
        (dict(k=5), "`k` must be between 1 and 4"),
        (dict(k=3, max_steps=2), "`max_steps` must be at least 3"),
        (dict(check_every=0), "`check_every` must be at least 1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        lanczos(lambda x: x, (4,), **options)


def test_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match="`product` returned numbers that are not finite"):
        largest_eigenvalue(lambda x: x * math.inf, 4)
