"""
Eigenvalues of the Fisher matrix of random networks
===================================================

[MF] figure 1: mean and second moment of the eigenvalues for tanh, ReLU and linear networks (L = 3, C = 1, Gaussian
inputs) of several widths, against theorems 1 and 3. A cell draws ``n_draws`` networks; the paper draws 100.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from study import Study
from torch import nn

from sklearn_capacity import measure_capacity
from sklearn_capacity.theory import initialize_mean_field, mean_field

VARIANCES = {"tanh": (3.0, 0.64), "relu": (2.0, 0.5), "linear": (1.0, 0.5)}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "linear": nn.Identity}
COMMON = {"activation": ["tanh", "relu", "linear"]}
SCALES = {
    "tiny": {**COMMON, "width": [30, 60], "n_samples": 100, "n_draws": 5},
    "small": {**COMMON, "width": [25, 50, 100, 200, 400], "n_samples": 1000, "n_draws": 10},
    "paper": {**COMMON, "width": [25, 50, 100, 200, 400, 800, 1600], "n_samples": 1000, "n_draws": 100},
}
MEASURES = ["fisher_mean_eigenvalue", "fisher_second_moment"]


def network(width: int, activation: str) -> nn.Module:
    unit = ACTIVATIONS[activation]
    return nn.Sequential(nn.Linear(width, width), unit(), nn.Linear(width, width), unit(), nn.Linear(width, 1), unit())


def run(data, *, seed, device, activation, width, n_samples, n_draws):
    rng, moments = np.random.default_rng([seed, width]), []
    for _ in range(n_draws):
        X = rng.standard_normal((n_samples, width))
        module = initialize_mean_field(network(width, activation).double(), *VARIANCES[activation], rng)
        moments.append(list(measure_capacity(module, X, None, MEASURES, device=device).values()))
    theory = mean_field(activation, *VARIANCES[activation], depth=3, width=width)
    lower, upper = theory.second_moment_bounds
    means, seconds = np.transpose(moments)
    return {
        "means": means,
        "second_moments": seconds,
        "theorem_1": theory.mean_eigenvalue,
        "lower": lower,
        "upper": upper,
    }


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(10, 5)
    axes = figure.subplots(2, 3)
    for column, (activation, chosen) in zip(axes.T, rows.groupby("activation"), strict=True):
        groups = chosen.groupby("width")
        theory = groups[["theorem_1", "lower", "upper"]].first()
        column[0].plot(theory.index, theory["theorem_1"], label="theorem 1")
        column[1].fill_between(theory.index, theory["lower"], theory["upper"], alpha=0.3, label="theorem 3")
        for ax, name in zip(column, ("means", "second_moments"), strict=True):
            values = groups[name].apply(lambda lists: np.concatenate(lists.tolist()))
            ax.errorbar(values.index, values.map(np.mean), values.map(np.std), fmt="k.", label="simulated, s.d.")
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(theory.index, theory.index)
            ax.minorticks_off()
        column[0].set_title(activation)
        column[1].set_xlabel("width M")
    for line, label in zip(axes, ("mean eigenvalue", "second moment"), strict=True):
        line[0].set_ylabel(label)
        line[-1].legend(loc="upper right")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Per seed and activation, the mean over the widths, in decades."""
    results = {}
    for activation, group in rows.groupby("activation"):
        means, seconds = group["means"].map(np.mean), group["second_moments"].map(np.mean)
        error = np.log10(means / group["theorem_1"]).groupby(group["seed"]).mean().abs()
        inside = np.log10(np.minimum(seconds / group["lower"], group["upper"] / seconds))
        results[f"{activation}, mean eigenvalue: 0.1 minus the error of theorem 1"] = list(0.1 - error)
        results[f"{activation}, second moment: distance inside the bounds of theorem 3"] = list(
            inside.groupby(group["seed"]).mean()
        )
        results[f"{activation}, second moment over the squared mean"] = list(
            np.log10(seconds / means**2).groupby(group["seed"]).mean()
        )
    return results


STUDY = Study(
    paper="[MF] figure 1",
    statement="Theorem 1 predicts the mean of the eigenvalues, also of narrow networks, theorem 3 bounds their second "
    "moment, and their distribution has a long tail.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
