"""
Different global minima: a confusion set of growing size
========================================================

[EG] figure 3 with an MLP on MNIST: networks trained on the union of a training set and of a confusion set with random
labels. All have zero error on the training set; the larger the confusion set, the larger the test error. Measures are
taken on the training set.
"""

from __future__ import annotations

import pandas as pd
from eg_shared import NORMS, draw_errors_norms_curves, perturbed, train
from scipy.stats import kendalltau
from study import Study

from sklearn_capacity import measure_capacity
from sklearn_capacity.datasets import make_confusion_set

COMMON = {"max_epochs": 500, "width": 256}
SCALES = {
    "tiny": {
        **COMMON,
        "n_train": 100,
        "n_confusion": [0, 50, 100],
        "width": 64,
        "stop_below": 0.05,
        "n_steps": 50,
        "n_draws": 10,
    },
    "small": {
        **COMMON,
        "n_train": 1000,
        "n_confusion": [0, 250, 500, 1000, 2000],
        "stop_below": 0.01,
        "n_steps": 1000,
        "n_draws": 30,
    },
    "paper": {
        **COMMON,
        "n_train": 10000,
        "n_confusion": [0, 1000, 2000, 3000, 4000, 5000],
        "width": 1000,
        "stop_below": 1e-4,
        "n_steps": 2000,
        "n_draws": 1000,
    },
}


def run(data, *, seed, device, max_epochs, width, n_train, n_confusion, stop_below, n_steps, n_draws):
    n_test = min(2000, len(data.y) // 5)
    X, y, in_train = make_confusion_set(data.X[:-n_test], data.y[:-n_test], n_train, n_confusion, random_state=seed)
    network = {"hidden_layer_sizes": (width, width), "device": device, "random_state": seed}
    model = train(X, y, {**network, "max_epochs": max_epochs, "stop_below": stop_below})
    X, y = X[in_train], y[in_train]
    return {
        "train_error": 1 - model.score(X, y),
        "test_error": 1 - model.score(data.X[-n_test:], data.y[-n_test:]),
        **measure_capacity(model, X, y, NORMS),
        **perturbed(model, X, y, n_steps, n_draws),
    }


def draw(rows: pd.DataFrame, figure) -> None:
    for ax in draw_errors_norms_curves(rows, figure, "n_confusion", [*NORMS, "max_sharpness"]):
        ax.set(xlabel="size of the confusion set")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Kendall's tau over the sizes of the confusion set."""
    groups = [group for _, group in rows.groupby("seed")]

    def tau(x: str, y: str) -> list[float]:
        return [kendalltau(group[x], group[y]).statistic for group in groups]

    norms = {f"{norm} and test error: tau": tau(norm, "test_error") for norm in NORMS}
    sharpness = tau("max_sharpness", "test_error")
    best = [max(values) for values in zip(*norms.values(), strict=True)]
    return {
        "test error and size of the confusion set: tau": tau("test_error", "n_confusion"),
        **norms,
        "divergence at equal sharpness and test error: tau": tau("divergence_at_level", "test_error"),
        "sharpness and test error: tau below that of the best norm by": [
            norm - value for norm, value in zip(best, sharpness, strict=True)
        ],
    }


STUDY = Study(
    paper="[EG] figure 3",
    statement="The test error grows with the confusion set, and so do the norms over the margin and the divergence at "
    "equal expected sharpness; sharpness alone orders the networks worse.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
