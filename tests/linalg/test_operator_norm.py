"""Lanczos on the Gram matrix of a linear map against all singular values, on spectra that are hard for it."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from reference_linalg import drawn, norm
from sklearn_capacity._validation import CapacityWarning
from sklearn_capacity.linalg import operator_norm


def _with_spectrum(values: torch.Tensor) -> torch.Tensor:
    left, right = (torch.linalg.qr(drawn(len(values) + extra, len(values)))[0] for extra in (0, 5))
    return (left * values.to(torch.float64)) @ right.T


def _norm(A: torch.Tensor, **options):
    return operator_norm(lambda v: v @ A.T, lambda u: u @ A, (A.shape[1],), **options)


SPECTRA = {
    "zero": torch.zeros(5, 7, dtype=torch.float64),
    "one number": torch.tensor([[-3.0]], dtype=torch.float64),
    "one row": drawn(1, 7),
    "one column": drawn(7, 1),
    "two by three": drawn(2, 3),
    "rank one": drawn(50, 1) @ drawn(1, 40),
    "rank five": drawn(80, 5) @ drawn(5, 90),
    "identity": torch.eye(60, dtype=torch.float64),
    "orthogonal": torch.linalg.qr(drawn(90, 90))[0],
    "two clusters": _with_spectrum(torch.tensor([2.0] * 40 + [1.0] * 60)),
    "fast decay": _with_spectrum(torch.logspace(0, -14, 120)),
    "near pair": _with_spectrum(torch.cat([torch.tensor([1 + 1e-4, 1.0]), torch.linspace(0.9, 0, 118)])),
    "dense edge": _with_spectrum(torch.linspace(0.99, 1, 150)),
    "tall": drawn(500, 20),
    "wide": drawn(20, 500),
    "needs restarts": torch.diag(torch.ones(299, dtype=torch.float64), 1) + torch.eye(300, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_value_is_within_a_millionth_and_never_above(name):
    A = SPECTRA[name]
    lower, true = _norm(A), norm(A.numpy())
    assert true * (1 - 1e-9) <= lower.value <= true * (1 + 1e-13)
    assert lower.residual <= 1e-7
    assert isinstance(lower.value, float)


def test_residual_is_that_of_a_singular_pair():
    # Weyl: a singular value lies within residual * value. Stop early, so that the residual is large.
    A = drawn(200, 150)
    singular = torch.linalg.svdvals(A)
    for tol in (0.3, 0.03, 1e-3):
        lower = _norm(A, tol=tol, check_every=1)
        assert lower.residual <= tol
        assert float((singular - lower.value).abs().min()) <= lower.residual * lower.value


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2])
def test_the_stated_error_covers_the_truth_beside_a_near_equal_singular_value(gap):
    values = torch.cat([torch.tensor([1.0, 1.0 - gap], dtype=torch.float64), torch.linspace(0, 0.9, 150).double()])
    for seed in range(30):
        for tol in (1e-1, 1e-4, 1e-7):
            norm_from_below = operator_norm(
                lambda v: v * values, lambda u: u * values, (152,), tol=tol, check_every=1, random_state=seed
            )
            assert -1e-13 <= 1.0 - norm_from_below.value <= norm_from_below.error * norm_from_below.value <= 2 * tol


@pytest.mark.parametrize("shape", [(200, 20), (20, 200)])
def test_the_shorter_side_is_iterated(shape):
    A = drawn(*shape)
    calls = []

    def forward(v):
        calls.append(v)
        return v @ A.T

    result = operator_norm(forward, lambda u: u @ A, (shape[1],))
    assert result.value == pytest.approx(norm(A.numpy()), rel=1e-12)
    assert result.steps <= 30 and len(calls) == result.steps + 1  # 20 dimensions, and one call for the shape


@pytest.mark.parametrize("name", ["near pair", "two clusters", "dense edge", "needs restarts"])
def test_checks_become_rare_and_cost_few_steps(name, monkeypatch):
    checks = []
    process = sys.modules[operator_norm.__module__]._GramLanczos
    ritz = process.ritz
    monkeypatch.setattr(process, "ritz", lambda self: checks.append(len(self.alphas)) or ritz(self))
    fewest = _norm(SPECTRA[name], check_every=1).steps
    checks.clear()
    result = _norm(SPECTRA[name])
    assert result.steps == checks[-1] <= max(fewest * 1.15, fewest + 5)
    assert all(5 <= after - before <= max(5, before // 2) for before, after in zip(checks, checks[1:], strict=False))
    if fewest > 100:
        assert len(checks) < fewest / 8  # one check in five steps without the extrapolation


def test_same_seed_same_bits_and_global_generator_untouched():
    A = drawn(40, 40)
    state = torch.get_rng_state()
    assert _norm(A, random_state=3) == _norm(A, random_state=3)
    assert torch.equal(state, torch.get_rng_state())


def test_complex_shapes_reach_the_products():
    A = drawn(6, 4)
    lower = operator_norm(
        lambda v: (v.reshape(1, 4) @ A.T).reshape(1, 3, 2), lambda u: (u.reshape(1, 6) @ A).reshape(1, 2, 2), (2, 2)
    )
    assert lower.value == pytest.approx(norm(A.numpy()), rel=1e-12)


def test_unfinished_value_is_a_lower_bound_and_says_so():
    A = SPECTRA["dense edge"]
    with pytest.warns(CapacityWarning, match="relative residual of .* after 3 steps"):
        lower = _norm(A, max_steps=3)
    assert lower.steps == 3 and lower.residual > 1e-7
    assert lower.value <= norm(A.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tol=0.0), r"`tol` must lie in \(0, 1\)"),
        (dict(max_steps=0), "`max_steps` must be at least 1"),
        (dict(check_every=0), "`check_every` must be at least 1"),
        (dict(random_state=-1), "`random_state` must be at least 0"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        _norm(torch.eye(3, dtype=torch.float64), **options)


def test_numbers_that_are_not_finite():
    A = torch.eye(12, dtype=torch.float64)
    A[0, 0] = math.nan
    with pytest.raises(ValueError, match="`forward` returned numbers that are not finite"):
        _norm(A)
