"""
Jacobian penalty beside batch norm, All-CNN-C
=============================================

[JR] table III: All-CNN-C with batch norm, with and without the Jacobian penalty of the softmax (estimated by one random
projection). The first layers have 96 filters in the paper, 16 at scale small, with 1,000 images and 10 epochs.
"""

from __future__ import annotations

import pandas as pd
from jr_shared import accuracies, comparison, draw_methods, train
from study import Study

GRID = [{"method": "none", "strength": 0.0}, {"method": "Jacobian", "strength": [0.1, 1.0]}]
SCALES = {
    "tiny": [{"n_train": [40], "width": 4, "max_epochs": 2, **part} for part in GRID],
    "small": [{"n_train": [1000], "width": 16, "max_epochs": 10, **part} for part in GRID],
    "paper": [{"n_train": [2500, 10000, 50000], "width": 96, "max_epochs": 75, **part} for part in GRID],
}


def run(data, *, seed, device, n_train, width, max_epochs, method, strength):
    model = train(
        method,
        strength,
        module="all_cnn_c",
        module_params={"width": width},
        jacobian_norm="projection",
        jacobian_output="softmax",
        batch_size=64,
        learning_rate=0.1,
        max_epochs=max_epochs,
        device=device,
        random_state=seed,
    )
    return accuracies(model, data.standardized(), n_train, seed)


def draw(rows: pd.DataFrame, figure) -> None:
    draw_methods(rows, figure, "n_train")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    return comparison(rows, ["n_train"], "none")


STUDY = Study(
    paper="[JR] table III",
    statement="The Jacobian regularisation raises the accuracy of a batch-normalised network as well.",
    remark="At scale small the networks misclassify most training images when training ends: they underfit, and a "
    "penalty against overfitting cannot help much. The paper trains seven times as long.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
