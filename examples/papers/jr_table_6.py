"""
Time per batch with Jacobian penalties
======================================

[JR] table VI: seconds per batch of the convolutional network on MNIST without regularisation, with the exact penalty
(eq. 49), its estimate by one projection, and the per-layer penalty (eq. 52). The paper measures the per-layer penalty
on ImageNet, which cannot be fetched. A cell times whole epochs and takes the fastest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from study import Study

from sklearn_capacity import JacobianRegularizedClassifier

BATCH = 128
COMMON = {"penalty": ["none", "frobenius", "projection", "per_layer"]}
SCALES = {
    "tiny": {**COMMON, "n_batches": 1, "n_epochs": 2},
    "small": {**COMMON, "n_batches": 4, "n_epochs": 6},
    "paper": {**COMMON, "n_batches": 40, "n_epochs": 20},
}


def run(data, *, seed, device, penalty, n_batches, n_epochs):
    X, y, _, _ = data.split(n_batches * BATCH, 0, seed)
    model = JacobianRegularizedClassifier(
        module="conv",
        jacobian_penalty=0.0 if penalty == "none" else 0.1,
        jacobian_norm="frobenius" if penalty == "none" else penalty,
        optimizer="sgd",
        batch_size=BATCH,
        max_epochs=n_epochs,
        device=device,
        random_state=seed,
    ).fit(X, y)
    return {"seconds": min(model.history_[:, "dur"]) / n_batches}


def draw(rows: pd.DataFrame, figure) -> None:
    ax = figure.subplots()
    groups = (1000 * rows["seconds"]).groupby(rows["penalty"], sort=False).agg(["mean", "sem"])
    ax.bar(groups.index, groups["mean"], yerr=groups["sem"], capsize=4)
    ax.set(ylabel="milliseconds per batch")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Ratios of times, as logarithms to base 10."""
    table = np.log10(rows.pivot(index="seed", columns="penalty", values="seconds"))
    return {
        "exact penalty over none": list(table["frobenius"] - table["none"]),
        "exact penalty over the per-layer one": list(table["frobenius"] - table["per_layer"]),
        "exact penalty over one projection": list(table["frobenius"] - table["projection"]),
        "ten times (the paper's factor) no penalty over the exact penalty": list(
            1 + table["none"] - table["frobenius"]
        ),
    }


STUDY = Study(
    paper="[JR] table VI",
    statement="The exact penalty introduces additional computational time (a factor of 10 on MNIST), the per-layer "
    "penalty has a much smaller cost.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
