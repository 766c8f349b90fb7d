"""
Per-layer Jacobian penalty in a wide ResNet
===========================================

[JR] table IV: a wide ResNet with and without the per-layer Jacobian penalty (eq. 52), of strength 1 and 0.1 in the
paper. It has 22 layers of width 5 there, and 10 layers of width 1 at scale small, with 1,000 images and 10 epochs. Data
augmentation, which the paper has for all 50,000 images only, is left out. Table V and figure 5 are on ImageNet, which
cannot be fetched.
"""

from __future__ import annotations

import pandas as pd
from jr_shared import accuracies, comparison, draw_methods, train
from study import Study

GRID = [{"method": "none", "strength": 0.0}, {"method": "Jacobian", "strength": [0.1, 1.0]}]
SCALES = {
    "tiny": [{"n_train": [40], "depth": 10, "widen": 1, "max_epochs": 2, **part} for part in GRID],
    "small": [{"n_train": [1000], "depth": 10, "widen": 1, "max_epochs": 10, **part} for part in GRID],
    "paper": [{"n_train": [2500, 10000, 50000], "depth": 22, "widen": 5, "max_epochs": 125, **part} for part in GRID],
}


def run(data, *, seed, device, n_train, depth, widen, max_epochs, method, strength):
    model = train(
        method,
        strength,
        module="wrn_22_5",
        module_params={"depth": depth, "widen": widen},
        jacobian_norm="per_layer",
        jacobian_output="softmax",
        batch_size=64,
        learning_rate=0.05,
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
    paper="[JR] table IV",
    statement="The ResNet with Jacobian regularisation outperforms the standard ResNet.",
    remark="At scale small the networks misclassify most training images when training ends: they underfit, and a "
    "penalty against overfitting cannot help much. The paper trains twelve times as long, on more images.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
