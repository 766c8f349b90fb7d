"""The exponent of a tail against scipy's likelihood and a loop over thresholds, and how its standard error covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from sklearn_capacity import NotDefinedError
from sklearn_capacity.linalg import fit_power_law


def pareto(alpha, n, seed):
    """Draws of a density in proportion to x^-alpha above 1."""
    return (1 - np.random.default_rng(seed).random(n)) ** (-1 / (alpha - 1))


def by_loops(values):
    """The exponent that a numerical search finds most likely above each threshold, and its distance; the best one."""
    best = None
    for x_min in sorted(set(values))[:-1]:
        tail = sorted(x for x in values if x >= x_min)

        def minus_likelihood(alpha, tail=tail, x_min=x_min):
            return -sum(math.log((alpha - 1) / x_min) - alpha * math.log(x / x_min) for x in tail)

        alpha = optimize.minimize_scalar(minus_likelihood, bounds=(1 + 1e-9, 60), method="bounded").x
        law = stats.pareto(alpha - 1, scale=x_min)
        distance = max(abs(law.cdf(x) - i / len(tail)) for i, x in enumerate(tail))
        if best is None or distance < best[0]:
            best = distance, alpha, x_min, len(tail)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_search_over_all_thresholds(seed):
    values = np.concatenate([pareto(2.5, 30, seed), np.random.default_rng(seed).uniform(0.1, 1.5, 15)])
    distance, alpha, x_min, n_tail = by_loops(values)
    law = fit_power_law(values)
    assert law.alpha == pytest.approx(alpha, rel=1e-4)
    assert (law.x_min, law.distance) == pytest.approx((x_min, distance), rel=1e-4)
    assert law.n_tail == n_tail
    assert law.standard_error == pytest.approx((law.alpha - 1) / math.sqrt(n_tail))


@pytest.mark.parametrize("alpha", [2.0, 4.5])
@pytest.mark.parametrize("n", [20, 200])
def test_standard_errors_cover(alpha, n):
    """Two of them in at least 85 of 100 samples (94 here): the choice of the threshold widens the spread a little."""
    laws = [fit_power_law(pareto(alpha, n, seed)) for seed in range(100)]
    assert sum(abs(law.alpha - alpha) <= 2 * law.standard_error for law in laws) >= 85


def test_scale_order_and_rounding_change_nothing():
    values = pareto(3.0, 60, 0)
    expected = fit_power_law(values)
    for changed in (1e-6 * values, values[::-1], values * (1 + 1e-15 * np.arange(60))):
        law = fit_power_law(changed)
        assert (law.alpha, law.distance) == pytest.approx((expected.alpha, expected.distance), rel=1e-8)
        assert law.n_tail == expected.n_tail


def test_repeated_numbers_count_repeatedly():
    """Each number twice, up to rounding: the same likelihood, and no threshold between two copies."""
    values = pareto(3.0, 40, 1)
    twice, rounded = np.repeat(values, 2), np.concatenate([values, values * (1 + 1e-13)])
    first, second = fit_power_law(twice), fit_power_law(rounded)
    assert first.n_tail == second.n_tail
    assert first.alpha == pytest.approx(second.alpha, rel=1e-9)
    assert first.n_tail % 2 == 0


@pytest.mark.parametrize("values", [[], [2.0], [3.0] * 30, [1.0, 1.0 + 1e-14]])
def test_one_number_has_no_tail(values):
    with pytest.raises(NotDefinedError, match="two distinct numbers, got "):
        fit_power_law(np.array(values))
