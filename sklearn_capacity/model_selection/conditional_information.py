r"""How much of the gap's order a measure tells beyond the hyper-parameters: conditional mutual information.

For two models, :math:`V_g` and :math:`V_\mu` are the signs of the differences of their gaps and of the measure, and
:math:`U_S` holds the values that the hyper-parameters in S have in the two models. Jiang et al. (2020), section 2.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from scipy.special import xlogy

__all__ = ["competition_score", "least_conditional_information", "settings_of"]

#: For each set of hyper-parameters, the combination of their levels in each model, as an integer
Settings = Mapping[tuple[int, ...], np.ndarray]


def settings_of(levels: np.ndarray) -> Settings:
    """All sets of at most two hyper-parameters, from their levels (n_models, n_hyperparameters)."""
    sets = [s for size in range(3) for s in itertools.combinations(range(levels.shape[1]), size)]
    combinations = {s: np.unique(levels[:, s], axis=0, return_inverse=True)[1] for s in sets if s}
    return {(): np.zeros(len(levels), dtype=np.intp)} | {s: codes.reshape(-1) for s, codes in combinations.items()}


def least_conditional_information(measure: np.ndarray, gap: np.ndarray, settings: Settings) -> float:
    """The least normalised information over all sets of at most two hyper-parameters, from 0 to 1.

    From the signs of the differences of the measure and of the gap, (n, n). Pairs of models with equal gaps do not
    count; equal measures are a third symbol. nan if no set leaves any doubt about the order of the gaps.
    """
    counted = gap != 0
    symbols = 3 * (measure + 1).astype(np.intp) + (gap + 1).astype(np.intp)
    return _least(symbols, 3, counted, list(settings.values()))


def competition_score(measure: np.ndarray, gap: np.ndarray, settings: Settings) -> float:
    """The score of the competition "Predicting generalization in deep learning" (2020) for one task, from 0 to 100.

    100 times the least normalised information over all sets of exactly two hyper-parameters. As in its scoring program,
    a tie counts as "not greater", and pairs of a model with itself are included.
    """
    symbols = 2 * (measure > 0).astype(np.intp) + (gap > 0).astype(np.intp)
    pairs = [codes for chosen, codes in settings.items() if len(chosen) == 2]
    return 100 * _least(symbols, 2, np.ones_like(gap, dtype=bool), pairs)


def _least(symbols: np.ndarray, n_symbols: int, counted: np.ndarray, settings: list[np.ndarray]) -> float:
    first, second = np.nonzero(counted)
    symbols = symbols[first, second]
    values = [_information(symbols, n_symbols, codes[first], codes[second]) for codes in settings]
    return min((value for value in values if not np.isnan(value)), default=np.nan)


def _information(symbols: np.ndarray, n_symbols: int, first: np.ndarray, second: np.ndarray) -> float:
    """I(V_mu; V_g | U) / H(V_g | U) from the symbols and settings of the pairs; nan where U leaves no doubt."""
    cells = (first.max(initial=0) + 1) * second + first
    counts = np.bincount(n_symbols**2 * cells + symbols, minlength=n_symbols**2 * (cells.max(initial=0) + 1))
    counts = counts.reshape(-1, n_symbols, n_symbols)  # pairs with each U, V_mu and V_g
    # with h(c) = sum c log c: N H(V_g | U) = h(U) - h(U, V_g), and N I = that + h(U, V_mu, V_g) - h(U, V_mu)
    doubt = _h(counts.sum((1, 2))) - _h(counts.sum(1))
    if not doubt > 1e-12 * len(symbols):
        return np.nan
    information = doubt + _h(counts) - _h(counts.sum(2))
    return float(max(information, 0.0) / doubt)  # information is never negative but for rounding


def _h(counts: np.ndarray) -> float:
    return float(xlogy(counts, counts).sum())
