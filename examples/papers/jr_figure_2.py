"""
Margins at the input and at the output
======================================

[JR] figure 2: decision regions of a small network in the input space, and its decision boundary at the output. The
network is measured early and late in training: the margin of the logits, and the distance from a sample to the class
boundary at the input (definition 2), of which the attack gives an upper end and theorem 4 a lower one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import make_moons
from study import Study

from sklearn_capacity import NetworkClassifier, measure_capacity

COMMON = {"width": 50, "noise": 0.1}
SCALES = {
    "tiny": {**COMMON, "n_train": 40, "n_epochs": [20, 60]},
    "small": {**COMMON, "n_train": 200, "n_epochs": [100, 1000]},
    "paper": {**COMMON, "n_train": 1000, "n_epochs": [100, 1000]},
}
AXES = np.meshgrid(np.linspace(-1.5, 2.5, 81), np.linspace(-1, 1.5, 51))
MEASURES = {
    "output_margin": ("margin", {"percentile": 50}),
    "attack": ("input_margin_bound", {"method": "attack", "percentile": 50}),
    "certified": ("input_margin_bound", {"method": "spectral", "percentile": 50}),
}


def run(data, *, seed, device, width, noise, n_train, n_epochs):
    X, y = make_moons(n_train, noise=noise, random_state=seed)
    model = NetworkClassifier((width,), max_epochs=n_epochs, device=device, random_state=seed).fit(X, y)
    grid = np.column_stack([axis.ravel() for axis in AXES])
    logits = np.log(model.predict_proba(X))
    return {
        "train_accuracy": model.score(X, y),
        **measure_capacity(model, X, y, MEASURES),
        "regions": model.predict(grid),
        "score": logits[:, 1] - logits[:, 0],
    }


def draw(rows: pd.DataFrame, figure) -> None:
    first = rows[rows["seed"] == rows["seed"].min()]
    figure.set_size_inches(8, 3 * len(first))
    for line, row in zip(figure.subplots(len(first), 2, squeeze=False), first.itertuples(), strict=True):
        X, y = make_moons(row.n_train, noise=row.noise, random_state=row.seed)
        regions = np.reshape(row.regions, AXES[0].shape)
        line[0].contourf(*AXES, regions, levels=1, colors=["C0", "C1"], alpha=0.2)
        line[0].scatter(*X.T, c=np.array(["C0", "C1"])[y], s=8)
        line[0].set(title=f"input, epoch {row.n_epochs}", xlabel="first feature", ylabel="second feature")
        for label in (0, 1):
            line[1].hist(np.array(row.score)[y == label], bins=20, alpha=0.6)
        line[1].axvline(0, color="black")
        line[1].set(title="output", xlabel="difference of the logits", ylabel="samples")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Decades from the early to the late network."""
    table = rows.pivot(index="seed", columns="n_epochs")
    early, late = rows["n_epochs"].min(), rows["n_epochs"].max()
    growth = {name: np.log10(table[name][late] / table[name][early]) for name in MEASURES}
    return {
        "growth of the median margin at the output": list(growth["output_margin"]),
        "the same minus the growth of the median distance at the input": list(
            growth["output_margin"] - growth["attack"]
        ),
        "distance of the attack over the certified radius, late": list(
            np.log10(table["attack"][late] / table["certified"][late])
        ),
    }


STUDY = Study(
    paper="[JR] figure 2",
    statement="Training optimises the decision boundary at the output of the network, which does not necessarily "
    "imply a large classification margin at the input.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
