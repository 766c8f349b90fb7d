"""Lanczos against all eigenvalues: spectra like those of the dual Fisher matrix, batches, breakdown."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity._validation import CapacityWarning
from sklearn_capacity.linalg import lanczos, largest_eigenvalue


def _symmetric(values: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(drawn(len(values), len(values)))[0]
    return (basis * values.to(torch.float64)) @ basis.T


def _fisher_dual(n_outliers: int, spread: float) -> torch.Tensor:
    """A few outliers over a Marchenko-Pastur bulk, as KERNELS' lambda_max sees."""
    bulk = torch.linalg.svdvals(drawn(300, 400)) ** 2 / 1600  # below 1
    outliers = torch.logspace(math.log10(spread), math.log10(1.5), n_outliers, dtype=torch.float64)
    return _symmetric(torch.cat([outliers, bulk]))


@pytest.mark.parametrize(("n_outliers", "spread"), [(1, 50.0), (5, 30.0), (10, 20.0), (10, 100.0), (20, 100.0)])
def test_fisher_like_spectrum_takes_at_most_sixteen_products(n_outliers, spread):
    A = _fisher_dual(n_outliers, spread)
    calls = []
    ritz = largest_eigenvalue(lambda x: calls.append(1) or A @ x, len(A))
    true = float(torch.linalg.eigvalsh(A)[-1])
    assert true * (1 - 1e-8) <= ritz.value <= true * (1 + 1e-13)
    assert ritz.n_products == len(calls) <= 16
    assert ritz.residual <= 1e-5


def test_residual_is_that_of_an_eigenpair():
    A = _fisher_dual(20, 3.0)
    eigenvalues = torch.linalg.eigvalsh(A)
    for tol in (0.3, 1e-2, 1e-4):
        ritz = largest_eigenvalue(lambda x: A @ x, len(A), tol=tol)
        assert float((eigenvalues - ritz.value).abs().min()) <= ritz.residual * ritz.value <= tol * ritz.value


def test_several_values_and_indefinite_operators():
    A = _symmetric(torch.cat([torch.tensor([9.0, 7.0, 6.0, -20.0]), torch.linspace(-1, 1, 96)]))
    ritz = lanczos(lambda x: A @ x, (100,), k=3, tol=1e-8)
    torch.testing.assert_close(ritz.values, torch.tensor([9.0, 7.0, 6.0], dtype=torch.float64), rtol=1e-9, atol=0)
    assert ritz.residuals.shape == (3,)


def test_batch_of_different_operators_like_one_at_a_time():
    factors = drawn(7, 100, 12)
    factors[3] = 0  # one of them is the zero operator
    factors[4, :, 1:] = 0  # and one has rank one
    grams = factors @ factors.mT
    ritz = lanczos(lambda x: torch.einsum("bij,bj->bi", grams, x), (7, 100), k=2, tol=1e-7)
    # Ten singular vectors span all that these operators see, so the values are exact.
    torch.testing.assert_close(ritz.values, torch.linalg.eigvalsh(grams)[:, -2:].flip(1), rtol=1e-9, atol=1e-9)
    assert ritz.values.shape == (7, 2)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_spaces_are_exhausted(size):
    A = drawn(size, size)
    A = A + A.T
    ritz = largest_eigenvalue(lambda x: A @ x, size, tol=1e-12)
    assert ritz.value == pytest.approx(float(torch.linalg.eigvalsh(A)[-1]), rel=1e-10)
    assert ritz.n_products <= size


def test_identity_and_zero_end_at_once():
    assert largest_eigenvalue(lambda x: 3 * x, 50).value == pytest.approx(3, rel=1e-14)
    ritz = largest_eigenvalue(torch.zeros_like, 50)
    assert (ritz.value, ritz.residual) == (0.0, 0.0)


def _check_error(product, size: int, true: float, **options) -> None:
    """That the stated error covers the true one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)  # some are stopped long before they converge
        largest = largest_eigenvalue(product, size, **options)
    rounding = 1e-13 * abs(true)
    assert -rounding <= true - largest.value <= largest.error * abs(largest.value) + rounding


TOPS = {
    "repeated": [1.0] * 3,
    "cluster": [1.0 - i * 1e-3 for i in range(8)],
    "edge": [1.0 - i**2 * 1e-3 for i in range(15)],
    **{f"pair {gap:g}": [1.0, 1.0 - gap] for gap in (0.2, 0.017, 1e-3, 1e-5, 1e-8, 1e-12)},
}


@pytest.mark.parametrize("top", TOPS)
def test_the_stated_error_covers_the_truth(top):
    # The start vector is random, so that a diagonal matrix is as general as any; 40 draws, stopped early and late.
    bulk = torch.linspace(0, 0.6, 200, dtype=torch.float64) ** 2
    eigenvalues = torch.cat([torch.tensor(TOPS[top], dtype=torch.float64), bulk])
    for seed in range(40):
        for options in (dict(tol=0.3), dict(tol=1e-2), dict(tol=1e-5), dict(tol=1e-9), dict(max_steps=4)):
            _check_error(lambda x: eigenvalues * x, len(eigenvalues), 1.0, random_state=seed, check_every=1, **options)


@pytest.mark.parametrize("share", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_start_vector_that_all_but_misses_the_leading_eigenvector(share):
    # <b, u> is `share` of its typical size 1 / sqrt(n): Ritz values settle on the second eigenvalue for a while.
    n = 120
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        b = torch.randn(n, generator=generator, dtype=torch.float64)  # as `lanczos` draws it
        b = b / b.norm()
        others = torch.linalg.qr(torch.cat([b[:, None], drawn(n, n)[:, 1:]], dim=1))[0][:, 1:]
        part = share / math.sqrt(n)
        leading = part * b + math.sqrt(1 - part**2) * others[:, 0]
        basis = torch.linalg.qr(torch.cat([leading[:, None], drawn(n, n + 1)[:, 1:n]], dim=1))[0]
        for second in (0.5, 0.98, 0.9999):
            values = torch.cat([torch.tensor([1.0, second]), torch.linspace(0.4, 0, n - 2)]).double()
            A = (basis * values) @ basis.T
            true = float(torch.linalg.eigvalsh(A)[-1])
            for tol in (1e-1, 1e-3, 1e-5):
                _check_error(A.mv, n, true, tol=tol, random_state=seed, check_every=1)


def test_each_operator_of_a_batch_states_its_own_error():
    gaps = torch.logspace(-6, -1, 30, dtype=torch.float64)
    eigenvalues = torch.linspace(0, 0.5, 80, dtype=torch.float64).repeat(30, 1)
    eigenvalues[:, -1], eigenvalues[:, -2] = 1.0, 1.0 - gaps
    result = lanczos(lambda x: eigenvalues * x, (30, 80), tol=1e-6)
    assert result.errors.shape == (30,) and bool((result.errors <= 2e-6).all())
    assert bool((1 - result.values[:, 0] <= result.errors).all())


def test_rounding_in_coarse_products_is_part_of_the_error():
    A = _symmetric(torch.cat([torch.tensor([1.0]), torch.linspace(0, 0.3, 199)]))
    coarse = largest_eigenvalue(lambda x: (A.float() @ x.float()).double(), 200, precision=torch.float32)
    assert abs(coarse.value - 1) <= coarse.error <= 1e-4


def test_same_seed_same_bits():
    A = _fisher_dual(5, 30.0)
    assert largest_eigenvalue(lambda x: A @ x, len(A)) == largest_eigenvalue(lambda x: A @ x, len(A), random_state=0)


def test_unfinished_value_says_so():
    A = _fisher_dual(30, 3.0)
    with pytest.warns(CapacityWarning, match="relative residual of .* after 2 products"):
        ritz = largest_eigenvalue(lambda x: A @ x, len(A), max_steps=2)
    assert ritz.value <= float(torch.linalg.eigvalsh(A)[-1])


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


def test_an_exhausted_space_adds_no_eigenvalue_of_zero():
    """Negative operators of a batch, one of which ends after the first product while the others go on."""
    d = -torch.linspace(1, 9, 8, dtype=torch.float64)
    operators = torch.stack([torch.full_like(d, -2.0), d, torch.where(d < -5, -7.0, -3.0)])
    ritz = lanczos(lambda x: operators * x, (3, 8), check_every=5)
    torch.testing.assert_close(ritz.values[:, 0], torch.tensor([-2.0, -1.0, -3.0], dtype=torch.float64))
    torch.testing.assert_close(ritz.scales, torch.tensor([2.0, 9.0, 7.0], dtype=torch.float64))


@pytest.mark.parametrize("vectors", [0, 2, 3, 10])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_vectors_of_the_basis_find_the_same_ends(vectors, sign):
    """Both ends of an indefinite spectrum; up to rounding, it takes the products of a full basis, or a few more."""
    values = sign * torch.cat([torch.linspace(-1, 3, 398, dtype=torch.float64), torch.tensor([-20.0, 40.0])])
    full = largest_eigenvalue(lambda x: values * x, 400, check_every=1)
    few = largest_eigenvalue(lambda x: values * x, 400, check_every=1, memory=vectors * 400 * 8)
    assert few.value == pytest.approx(float(values.max()), rel=1e-9)
    assert few.value == pytest.approx(full.value, rel=1e-9)
    assert few.n_products <= 2 * full.n_products
    assert float(values.max()) - few.value <= few.error * few.scale


def test_few_vectors_serve_a_batch_and_an_exhausted_space():
    values = torch.tensor([[5.0, 2.0, 1.0], [0.5, -0.25, 0.0]], dtype=torch.float64)
    ritz = lanczos(lambda x: values * x, (2, 3), memory=1)
    assert ritz.values.flatten().tolist() == pytest.approx([5.0, 0.5], rel=1e-9)


def test_few_vectors_suffice_under_rounding():
    # Rounding of the products brings the converged eigenvector back; without the kept vectors it took 2 to 4 times as
    # many products.
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(600, 600, dtype=torch.float64, generator=generator)).Q  # (600, 600)
    values = torch.linspace(-0.5, 0.7, 600, dtype=torch.float64)
    values[-1] = 1.0
    coarse = (Q * values @ Q.T).float()  # (600, 600)

    def product(x):
        return (coarse @ x.float()).double()

    whole = largest_eigenvalue(product, 600, check_every=1, precision=torch.float32)
    few = largest_eigenvalue(product, 600, check_every=1, precision=torch.float32, memory=4 * 600 * 8)
    assert few.n_products <= 1.5 * whole.n_products
    assert few.value == pytest.approx(1.0, rel=1e-6)
