"""
The Fisher-Rao norm over the depth
==================================

[FR] figure 3: networks of one width and growing depth on CIFAR-10, trained by gradient descent and by natural gradient.
The Fisher-Rao norm is measured in units of the number of weight layers, L + 1. Scale small averages images down to
8 x 8.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from fr_shared import NAMES, OPTIMIZERS, draw_sample, errors_and_norms, train
from study import Study

UNITS = {
    "norm": "fisher_rao_norm",
    "norm_per_layer": ("fisher_rao_norm", {"per_layer": True}),
    "spectral": "spectral_norm",
    "l2_path": "l2_path_norm",
}
COMMON = {"optimizer": ["sgd", "kfac"]}
SCALES = {
    "tiny": {**COMMON, "depth": [1, 2], "width": 32, "n_train": 100, "n_test": 200, "pixels": 4, "max_epochs": 20},
    "small": {
        **COMMON,
        "depth": [1, 2, 3, 4, 5],
        "width": 100,
        "n_train": 1000,
        "n_test": 2000,
        "pixels": 8,
        "max_epochs": 50,
    },
    "paper": {
        **COMMON,
        "depth": [1, 2, 3, 4, 5],
        "width": 500,
        "n_train": 50000,
        "n_test": 10000,
        "pixels": 32,
        "max_epochs": 200,
    },
}


def run(data, *, seed, device, optimizer, depth, width, n_train, n_test, pixels, max_epochs):
    X, y, X_test, y_test = draw_sample(data, n_train, n_test, pixels, 0.0, seed)
    model = train(X, y, optimizer, (width,) * depth, max_epochs, device, seed)
    return errors_and_norms(model, X, y, X_test, y_test, UNITS)


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(12, 3.2)
    for ax, name in zip(figure.subplots(1, len(UNITS)), UNITS, strict=True):
        for optimizer, color in OPTIMIZERS.items():
            curve = rows[rows["optimizer"] == optimizer].groupby("depth")[name].agg(["mean", "sem"])
            ax.errorbar(curve.index, curve["mean"], curve["sem"], color=color, capsize=3, label=NAMES[optimizer])
        title = {"norm": "Fisher-Rao norm", "norm_per_layer": "Fisher-Rao norm / (L + 1)"}.get(name, name)
        ax.set(xlabel="hidden layers L", title=title.replace("_", " "), yscale="log")
    ax.legend()


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    results = {}
    for optimizer, name in NAMES.items():
        groups = [group for _, group in rows[rows["optimizer"] == optimizer].groupby("seed")]
        results[f"{name}: norm / (L + 1) varies by less than a factor of 1.5, log"] = [
            np.log(1.5) - np.ptp(np.log(group["norm_per_layer"])) for group in groups
        ]
        results[f"{name}: it varies less than the spectral norm, log"] = [
            np.ptp(np.log(group["spectral"])) - np.ptp(np.log(group["norm_per_layer"])) for group in groups
        ]
    return results


STUDY = Study(
    paper="[FR] figure 3",
    statement="At fixed width, the Fisher-Rao norm in units of L + 1 is essentially the same for all depths.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="The empirical Fisher-Rao norm goes to zero with the training loss, since it is L + 1 times the root mean "
    "square of the derivative of the loss along the logits. In equally many epochs, deeper networks reach smaller "
    "losses; the comparison over depths is one of losses as well.",
)

if __name__ == "__main__":
    STUDY.main()
