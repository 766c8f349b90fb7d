"""
True and random labels: norms over margins, MLP on MNIST
========================================================

[EG] figure 1 with a multilayer perceptron in place of the VGG network: networks that fit
training sets of several sizes with true or random labels, and four products of norms divided by the squared margin
(its 5th percentile), without factors that depend on depth and widths only. Differences are logarithms of ratios.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from eg_shared import NORMS, train
from study import Study

from sklearn_capacity import measure_capacity
from sklearn_capacity.datasets import randomize_labels

COMMON = {"labels": ["true", "random"], "width": 256, "max_epochs": 500}
SCALES = {
    "tiny": {**COMMON, "n_train": [50, 200], "width": 64, "stop_below": 0.05},
    "small": {**COMMON, "n_train": [500, 1000, 2000, 4000], "stop_below": 0.01},
    "paper": {**COMMON, "n_train": [2000, 5000, 10000, 20000, 50000], "width": 1000, "stop_below": 1e-4},
}


def run(data, *, seed, device, labels, width, max_epochs, n_train, stop_below):
    network = {"hidden_layer_sizes": (width, width)}
    stop = {"max_epochs": max_epochs, "stop_below": stop_below}
    return fit_and_measure(data, n_train, labels, {**network, **stop, "device": device, "random_state": seed})


def fit_and_measure(data, n_train, labels, settings):
    """Errors and norms of a network that has learnt the true or random labels."""
    seed = settings["random_state"]
    X, y, X_test, y_test = data.split(n_train, min(2000, len(data.y) // 5), seed)
    if labels == "random":
        y = randomize_labels(y, 1.0, random_state=seed)
    model = train(X, y, settings)
    errors = {"train_error": 1 - model.score(X, y), "test_error": 1 - model.score(X_test, y_test)}
    return {**errors, **measure_capacity(model, X, y, NORMS)}


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(12, 3.2)
    for ax, norm in zip(figure.subplots(1, len(NORMS)), NORMS, strict=True):
        for labels, color in {"true": "C0", "random": "C3"}.items():
            group = rows[rows["labels"] == labels]
            curve = group[norm].groupby(group["n_train"]).agg(["mean", "sem"])
            ax.errorbar(curve.index, curve["mean"], curve["sem"], color=color, marker=".", capsize=3, label=labels)
        ax.set(xlabel="training size", yscale="log", title=norm.replace("_", " "))
    ax.legend(title="labels")


def claims(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Decimal logarithm of the ratio of random to true labels: its mean over the sizes, and its growth."""
    results = {}
    for norm in NORMS:
        table = rows.pivot(index="seed", columns=["labels", "n_train"], values=norm).map(np.log10)
        ratio = table["random"] - table["true"]
        results[f"{norm}: log10 of random over true labels"] = ratio.mean(axis=1)
        results[f"{norm}: its growth with the size"] = ratio[ratio.columns.max()] - ratio[ratio.columns.min()]
    return results


STUDY = Study(
    paper="[EG] figure 1 (MLP)",
    statement="All four norms over the margin are larger for networks that fit random labels than for true labels, and "
    "the difference grows with the size of the training set.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
