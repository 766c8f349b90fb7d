"""
PAC-Bayes bounds on digits
==========================

[EG] section 2.4: a bound on the error of a network with Gaussian noise on its weights (eqs. 5 to 8), in the form with
the Kullback-Leibler divergence of two error rates, which is the tightest. Of several strengths of the noise, fixed
beforehand, each bound holds with its share of 5 % risk, so that the smallest one holds too. The prior is centred at
zero, as in the paper, or at the initial weights. The error of the noisy network on new digits is the mean over draws.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from eg_shared import train
from study import Study

from sklearn_capacity import measure_capacity

SIGMAS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
PRIORS = ("zero", "initial")
DELTA = 0.05
COMMON = {"max_epochs": 100, "stop_below": 0.05}
SCALES = {
    "tiny": {"n_train": [100, 400], "width": 16, "n_draws": 20, **COMMON},
    "small": {"n_train": [1500, 6000], "width": 64, "n_draws": 200, **COMMON},
    "paper": {"n_train": [10000, 50000], "width": 600, "n_draws": 1000, **COMMON},
}


def run(data, *, seed, device, n_train, width, n_draws, max_epochs, stop_below):
    X, y, X_test, y_test = data.split(n_train, min(2000, len(data.y) // 5), seed)
    stop = {"max_epochs": max_epochs, "stop_below": stop_below}
    settings = {"hidden_layer_sizes": (width,), **stop, "device": device, "random_state": seed}
    model = train(X.reshape(len(X), -1), y, settings)
    bounds = {
        f"{prior} {sigma}": (
            "pac_bayes_bound",
            {"form": "kl", "prior": prior, "sigmas": [sigma], "delta": DELTA / len(SIGMAS), "n_draws": n_draws},
        )
        for prior in PRIORS
        for sigma in SIGMAS
    }
    values = measure_capacity(model, X.reshape(len(X), -1), y, bounds, random_state=seed)
    results = {f"bound_{prior}": [values[f"{prior} {sigma}"] for sigma in SIGMAS] for prior in PRIORS}
    results["noisy_error"] = [noisy_error(model, X_test, y_test, sigma, seed) for sigma in SIGMAS]
    return {**results, "test_error": 1 - model.score(X_test.reshape(len(X_test), -1), y_test)}


def noisy_error(model, X: np.ndarray, y: np.ndarray, sigma: float, seed: int, n_draws: int = 20) -> float:
    """Mean error of a network with noise on its weights."""
    noisy = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(n_draws):
        with torch.no_grad():
            for weight, center in zip(noisy.module_.parameters(), model.module_.parameters(), strict=True):
                noise = torch.randn(center.shape, generator=generator, dtype=center.dtype, device="cpu")
                weight.copy_(center + sigma * noise.to(center.device))
        errors.append(1 - noisy.score(X.reshape(len(X), -1), y))
    return float(np.mean(errors))


def smallest(rows: pd.DataFrame, prior: str) -> pd.Series:
    return rows[f"bound_{prior}"].map(min)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, at the noise with the smallest bound."""
    lines = []
    for n_train, group in rows.groupby("n_train"):
        for prior in PRIORS:
            best = group[f"bound_{prior}"].map(np.argmin)
            noisy = [errors[i] for errors, i in zip(group["noisy_error"], best, strict=True)]
            bound = smallest(group, prior)
            lines.append(
                {
                    "training_digits": n_train,
                    "prior": prior,
                    "bound": bound.mean(),
                    "standard_error": bound.sem(),
                    "sigma": np.mean([SIGMAS[i] for i in best]),
                    "error_of_the_noisy_network": np.mean(noisy),
                    "error_without_noise": group["test_error"].mean(),
                }
            )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame, figure) -> None:
    sizes = list(rows["n_train"].unique())
    figure.set_size_inches(4 * len(sizes), 3.4)
    for ax, n_train in zip(figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0], sizes, strict=True):
        group = rows[rows["n_train"] == n_train]
        labels = {"bound_zero": "bound, prior at zero", "bound_initial": "bound, prior at the initial weights"}
        for column, label in {**labels, "noisy_error": "error of the noisy network"}.items():
            ax.plot(SIGMAS, np.mean(list(group[column]), axis=0), "o-", label=label)
        ax.axhline(group["test_error"].mean(), color="0.5", ls="--", label="error without noise")
        ax.set(xlabel="noise", xscale="log", ylabel="error on new digits", title=f"{n_train} digits")
    ax.legend(fontsize=8)


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """The bound holds and says something; the last three are not in the paper."""
    rows = rows.sort_values("seed")
    gaps = [
        min(
            bound - error
            for prior in PRIORS
            for bound, error in zip(row[f"bound_{prior}"], row.noisy_error, strict=True)
        )
        for row in rows.to_records()
    ]
    gap = pd.Series(gaps, index=rows["seed"]).groupby(level=0).min()
    bounds = {
        prior: pd.Series(smallest(rows, prior).to_numpy(), [rows["seed"], rows["n_train"]]).unstack()
        for prior in PRIORS
    }
    most, least = rows["n_train"].max(), rows["n_train"].min()
    return {
        "smallest distance from the error of the noisy network up to a bound": list(gap),
        f"prior at zero, {most} digits: bound below 1 by": list(1 - bounds["zero"][most]),
        f"prior at the initial weights, {most} digits: bound below that of the prior at zero by": list(
            bounds["zero"][most] - bounds["initial"][most]
        ),
        f"prior at the initial weights: bound falls from {least} to {most} digits by": list(
            bounds["initial"][least] - bounds["initial"][most]
        ),
    }


STUDY = Study(
    paper="[EG] PAC-Bayes bounds",
    statement="With high probability over the training data, the bound lies above the expected error of the network "
    "with noise on its weights.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    summarize=summarize,
)

if __name__ == "__main__":
    STUDY.main()
