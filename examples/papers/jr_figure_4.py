"""
Depth and width of weight-normalised networks
=============================================

[JR] figure 4: networks with weight normalisation and without other regularisation: accuracy, smallest score of the
training images (eq. 33), and the largest spectral norm of the softmax's Jacobian on training and test images.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from study import Study

from sklearn_capacity import NetworkClassifier, measure_capacity

SCALES = {
    "tiny": {"n_layers": [2, 3], "width": [32, 64], "n_train": 50, "max_epochs": 20},
    "small": {"n_layers": [2, 3, 4], "width": [128, 384], "n_train": 1000, "max_epochs": 120},
    "paper": {
        "n_layers": [2, 3, 4, 5],
        "width": [784, 1568, 2352, 3136, 3920, 4704],
        "n_train": 5000,
        "max_epochs": 120,
    },
}
JACOBIAN = {"jacobian_norm": ("jacobian_spectral", {"output": "softmax"})}
PANELS = {
    "test_accuracy": "test accuracy",
    "score": "smallest training score",
    "train_jacobian": "largest Jacobian norm, training",
    "test_jacobian": "largest Jacobian norm, test",
}


def run(data, *, seed, device, n_layers, width, n_train, max_epochs):
    n_test = min(2000, len(data.y) // 5)
    X, y, X_test, y_test = data.split(n_train, n_test, seed)
    model = NetworkClassifier(
        (width,) * (n_layers - 1),
        weight_norm=True,
        optimizer="sgd",
        learning_rate=0.1,
        learning_rate_schedule=[(max_epochs / 3, 0.1), (2 * max_epochs / 3, 0.1)],
        max_epochs=max_epochs,
        device=device,
        random_state=seed,
    ).fit(X, y)
    train = measure_capacity(model, X, y, {"score": "softmax_score", **JACOBIAN})
    test = measure_capacity(model, X_test, y_test, JACOBIAN)
    return {
        "train_accuracy": model.score(X, y),
        "test_accuracy": model.score(X_test, y_test),
        "score": train["score"],
        "train_jacobian": train["jacobian_norm"],
        "test_jacobian": test["jacobian_norm"],
    }


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(14, 3.2)
    for ax, (name, title) in zip(figure.subplots(1, 4), PANELS.items(), strict=True):
        for n_layers, group in rows.groupby("n_layers"):
            curve = group[name].groupby(group["width"]).agg(["mean", "sem"])
            ax.errorbar(curve.index, curve["mean"], curve["sem"], fmt="o-", capsize=3, label=n_layers)
        ax.set(xlabel="width", title=title)
    figure.legend(*ax.get_legend_handles_labels(), title="layers", loc="outside right center")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Per seed, the change from the shallowest to the deepest network and from the narrowest to the widest."""
    results = {}
    for name, sign in (("test_accuracy", 1), ("score", 1), ("train_jacobian", -1), ("test_jacobian", 1)):
        direction = "rise" if sign > 0 else "fall"
        for by in ("n_layers", "width"):
            if (name, by) == ("test_jacobian", "width"):
                continue  # the paper says "slightly"
            means = rows.groupby(["seed", by])[name].mean().unstack()
            change = means[means.columns.max()] - means[means.columns.min()]
            results[f"{PANELS[name]}: {direction} with {by.replace('n_layers', 'depth')}"] = list(
                sign * np.asarray(change)
            )
    return results


STUDY = Study(
    paper="[JR] figure 4",
    statement="Accuracy and smallest score rise with depth and width, and the Jacobian's largest norm falls on the "
    "training set and rises with depth on the test set.",
    remark="Test accuracy rises from two layers to three and falls with the fourth: on so few digits, depth does "
    "not help.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
