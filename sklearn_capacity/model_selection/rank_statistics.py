"""Statistics of pairs of models: the signs of the differences of a measure against those of the generalization gap."""

from __future__ import annotations

import numpy as np

__all__ = ["axis_coefficient", "bootstrap_taus", "kendall_tau", "pairs_along", "sign_error", "signs_of"]


def signs_of(values: np.ndarray) -> np.ndarray:
    """Signs of all differences, (n, n); 0 for ties, including infinite values."""
    return (values[:, None] > values[None, :]).astype(np.float64) - (values[:, None] < values[None, :])


def kendall_tau(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Kendall's tau-b of samples with counts[i] copies of model i, (n_samples,); copies of one model are ties."""
    counts = np.ones((1, len(a))) if counts is None else counts

    def total(signs: np.ndarray) -> np.ndarray:
        return ((counts @ signs) * counts).sum(1)

    norm = np.sqrt(total(a * a) * total(b * b))
    return np.divide(total(a * b), norm, out=np.full(len(counts), np.nan), where=norm > 0)


def bootstrap_taus(a: np.ndarray, b: np.ndarray, n_bootstrap: int, generator: np.random.Generator) -> np.ndarray:
    """Tau-b of resampled models, (n_bootstrap,)."""
    n = len(a)
    if n < 2:
        return np.full(n_bootstrap, np.nan)
    return kendall_tau(a, b, generator.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(np.float64))


def pairs_along(axis: int, levels: np.ndarray) -> np.ndarray:
    """A mask of the pairs i < j that differ in this hyper-parameter only, from the levels (n, n_hyperparameters)."""
    differs = levels[:, None, :] != levels[None, :, :]
    return np.triu(differs[..., axis] & (differs.sum(-1) == 1))


def sign_error(a: np.ndarray, b: np.ndarray, pairs: np.ndarray) -> tuple[float, int]:
    """Mean of (1 - a b) / 2 over the pairs whose gaps differ, and their number."""
    counted = pairs & (b != 0)
    n = int(counted.sum())
    return (float((1 - (a * b)[counted]).mean() / 2) if n else np.nan), n


def axis_coefficient(a: np.ndarray, b: np.ndarray, pairs: np.ndarray, others: np.ndarray) -> float:
    """Mean of Kendall's coefficients along an axis: over the settings of the others, (n,), of the mean of a b."""
    rows, columns = np.nonzero(pairs)
    if not len(rows):
        return np.nan
    _, group = np.unique(others[rows], return_inverse=True)
    return float((np.bincount(group, (a * b)[rows, columns]) / np.bincount(group)).mean())
