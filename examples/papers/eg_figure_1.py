"""
True and random labels: norms over margins, MLP on MNIST
========================================================

[EG] figure 1 with a multilayer perceptron in place of the VGG network (``eg_figure_1_vgg.py``): networks that fit
training sets of several sizes with true or random labels, and four products of norms divided by the squared margin
(its 5th percentile), without factors that depend on depth and widths only.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from study import Study

from sklearn_capacity import NetworkClassifier, measure_capacity
from sklearn_capacity.datasets import randomize_labels

MEASURES = ["frobenius_capacity", "spectral_capacity", "l1_path_capacity", "l2_path_capacity"]
COMMON = {"labels": ["true", "random"], "width": 256, "max_epochs": 500}
SCALES = {
    "tiny": {**COMMON, "n_train": [50, 200], "width": 64, "stop_below": 0.05},
    "small": {**COMMON, "n_train": [500, 1000, 2000, 4000], "stop_below": 0.01},
    "paper": {**COMMON, "n_train": [2000, 5000, 10000, 20000, 50000], "width": 1000, "stop_below": 1e-4},
}


def run(data, *, seed, device, labels, width, max_epochs, n_train, stop_below):
    n_test = min(2000, len(data.y) // 5)
    X, y, X_test, y_test = data.split(n_train, n_test, seed)
    if labels == "random":
        y = randomize_labels(y, 1.0, random_state=seed)
    model = NetworkClassifier(
        (width, width),
        optimizer="sgd",
        batch_size=64,
        max_epochs=max_epochs,
        stop_below=stop_below,
        device=device,
        random_state=seed,
    ).fit(X, y)
    values = measure_capacity(model, X, y, MEASURES)
    return {"train_error": 1 - model.score(X, y), "test_error": 1 - model.score(X_test, y_test), **values}


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(12, 3.2)
    for ax, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
        for (labels, group), color in zip(rows.groupby("labels"), ("C3", "C0"), strict=True):
            curve = np.log(group[measure]).groupby(group["n_train"]).agg(["mean", "sem"])
            ax.errorbar(
                curve.index, np.exp(curve["mean"]), np.exp(curve["mean"]) * curve["sem"], color=color, label=labels
            )
        ax.set(xlabel="training size", yscale="log", title=measure.replace("_", " "))
    ax.legend(title="labels")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Log ratio of random over true labels: its mean over the sizes, and its growth with the size."""
    found = {}
    for measure in MEASURES:
        table = rows.pivot(index="seed", columns=["labels", "n_train"], values=measure).map(np.log)
        ratio = table["random"] - table["true"]
        found[f"log10 of random over true, {measure}"] = list(ratio.mean(axis=1) / np.log(10))
        found[f"its growth with the training size, {measure}"] = list(
            (ratio[ratio.columns.max()] - ratio[ratio.columns.min()]) / np.log(10)
        )
    return found


STUDY = Study(
    paper="[EG] figure 1",
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
