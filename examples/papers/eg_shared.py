"""What the studies of [EG] have in common: training, the norms over the margin, and the bi-criteria curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sklearn_capacity import NetworkClassifier, bicriteria_curve, measure_capacity

NORMS = ["frobenius_capacity", "spectral_capacity", "l1_path_capacity", "l2_path_capacity"]
ALPHAS = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]  # strengths of the noise on the weights
LEVEL = 0.05  # the expected sharpness at which section 2.4 compares the divergence


def train(X: np.ndarray, y: np.ndarray, settings: Mapping[str, Any]) -> NetworkClassifier:
    """Appendix A: SGD with momentum 0.9 in batches of 64, until the cross-entropy is below a threshold."""
    defaults = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "batch_size": 64}
    return NetworkClassifier(**{**defaults, **settings}).fit(X, y)


def perturbed(model: NetworkClassifier, X: np.ndarray, y: np.ndarray, n_steps: int, n_draws: int) -> dict[str, Any]:
    """Sharpness at worst, and the bi-criteria curve with the divergence at expected sharpness 0.05."""
    worst = {"max_sharpness": ("max_sharpness", {"steps": n_steps, "normalize": False})}
    curve = bicriteria_curve(model, X, y, ALPHAS, n_draws=n_draws, random_state=0)
    return {
        **measure_capacity(model, X, y, worst),
        "expected_sharpness": curve[:, 0],
        "divergence": curve[:, 1],
        "divergence_at_level": divergence_at(LEVEL, *curve.T),
    }


def divergence_at(level: float, sharpness: Sequence[float], divergence: Sequence[float]) -> float:
    """The divergence where the curve crosses a level of sharpness, by interpolation on logarithmic axes."""
    sharpness, divergence = np.asarray(sharpness), np.asarray(divergence)
    above = np.flatnonzero(sharpness >= level)
    if len(above) == 0 or above[0] == 0:
        raise ValueError(f"The curve must cross {level}, got sharpness from {sharpness.min()} to {sharpness.max()}.")
    i = above[0]
    low, high = np.log(max(sharpness[i - 1], level / 1e3)), np.log(sharpness[i])  # noise may give a value below 0
    share = (np.log(level) - low) / (high - low)
    return float(np.exp((1 - share) * np.log(divergence[i - 1]) + share * np.log(divergence[i])))


def draw_errors_norms_curves(rows: pd.DataFrame, figure, by: str, measures: Sequence[str]) -> tuple:
    """Errors, measures over their maxima, and bi-criteria curves, by a column; returns the first two axes."""
    figure.set_size_inches(12, 3.6)
    left, middle, right = figure.subplots(1, 3)
    for name in ("train_error", "test_error"):
        curve = mean_curve(rows, by, name)
        left.errorbar(curve.index, curve["mean"], curve["sem"], marker=".", capsize=3, label=name.replace("_", " "))
    left.set(ylabel="error")
    for name in measures:
        curve = mean_curve(rows, by, name)
        middle.plot(curve.index, curve["mean"] / curve["mean"].max(), marker=".", label=name.replace("_", " "))
    middle.set(ylabel="measure / its maximum")
    for ax in (left, middle):
        ax.legend()
    plot_curves(rows, right, by)
    return left, middle


def plot_curves(rows: pd.DataFrame, ax, by: str) -> None:
    """Expected sharpness over divergence: one curve per group, the mean over the seeds."""
    for name, group in rows.groupby(by):
        curves = np.array([[*map(list, group[part])] for part in ("divergence", "expected_sharpness")]).mean(axis=1)
        ax.plot(*curves, marker=".", label=f"{name}")
    ax.set(xlabel="KL divergence", ylabel="expected sharpness", xscale="log", ylim=(0, 0.4))
    ax.legend(title=by.replace("_", " "))


def mean_curve(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Mean and standard error over the seeds of a column, by another column."""
    return rows.groupby(x)[y].agg(["mean", "sem"])
