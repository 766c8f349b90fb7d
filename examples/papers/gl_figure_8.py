"""
A generalization layer with dropout after the encoder of a ResNet
=================================================================

[GL] figure 8: ResNet-20 on CIFAR-10, and with a generalization layer with dropout 0.75 after its last stage. At scale
small the network has 8 layers, half as wide, and trains on 3,000 images for 12 epochs, with all schedules shortened
accordingly.
"""

from __future__ import annotations

import pandas as pd
from gl_shared import accuracy_claim, draw_accuracies, fit_resnet
from study import Study

GRID = [{"layer": "none", "dropout": 0.0}, {"layer": "dropout", "dropout": 0.75}]
SIZES = {
    "tiny": {"depth": 8, "width": 2, "n_train": 40, "max_epochs": 2},
    "small": {"depth": 8, "width": 8, "n_train": 3000, "max_epochs": 12},
    "paper": {"depth": 20, "width": 16, "n_train": 50_000, "max_epochs": 300},
}
SCALES = {scale: [{**part, **sizes} for part in GRID] for scale, sizes in SIZES.items()}


def run(data, **settings):
    return fit_resnet(data, **settings)


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    return accuracy_claim(rows, "dropout", 0.75)


STUDY = Study(
    paper="[GL] figure 8",
    statement="The network with the layer outperforms the original one by quite a margin.",
    remark="At scale small the networks misclassify half of the training images when training ends, nearly as many "
    "as new images: they underfit, and dropout has little overfitting to prevent. The paper trains 25 times "
    "as long.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw_accuracies,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
