"""
Generalization layers as the only regulariser
=============================================

[GL] figure 7: a residual network of 90 hidden layers, of which the last three blocks are generalization layers, and one
without such layers, fit noisy values of a cubic function by full-batch gradient descent. The skips of these layers fall
from 1 to 0.1 until half of the epochs, and their weights learn at a tenth of the rate. Data and errors as in
``gl_figure_2.py``, which also says why the learning rate is larger than the paper's 1e-7.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from gl_shared import draw_curves, fit_curve
from study import Study

from sklearn_capacity import GeneralizationLayerRegressor, NetworkRegressor

COMMON = {"layers": ["plain", "generalization"], "function": "cubic"}
SCALES = {
    "tiny": {**COMMON, "n_epochs": 20},
    "small": {**COMMON, "n_epochs": 2000},
    "paper": {**COMMON, "n_epochs": 20_000},
}


def snapshots(n_epochs: int) -> list[int]:
    return [n_epochs // 20, n_epochs // 5, n_epochs // 2, n_epochs]


def run(data, *, seed, device, layers, function, n_epochs):
    settings = {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.0, "device": device, "random_state": seed}
    if layers == "plain":
        model = NetworkRegressor(module="residual_mlp", module_params={"n_hidden_layers": 91}, **settings)
    else:
        model = GeneralizationLayerRegressor(
            module="residual_mlp_gl", position=None, nu_decay_fraction=0.5, slow_after=20, **settings
        )
    return fit_curve(model, function, seed, snapshots(n_epochs))


def draw(rows: pd.DataFrame, figure) -> None:
    draw_curves(rows, figure, snapshots(rows["n_epochs"].iloc[0]), "layers")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    parts = {name: part.sort_values("seed") for name, part in rows.groupby("layers")}
    clean = {name: np.log10(np.array(part["clean_mse"].tolist())) for name, part in parts.items()}
    layers = clean["generalization"]
    return {
        "decades of the last error without the layers over the one with them": list(
            clean["plain"][:, -1] - layers[:, -1]
        ),
        "decades of the last error below the variance of the noise": list(2 - layers[:, -1]),
        "0.1 minus the decades by which the error has risen since the best snapshot": list(
            0.1 - (layers[:, -1] - layers.min(1))
        ),
    }


STUDY = Study(
    paper="[GL] figure 7",
    statement="With generalization layers as the only regulariser plain SGD recovers the function that generated the "
    "data.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="At scale small the network with the layers still underfits: its training error is above the noise too, "
    "since the weights of the layers learn at a tenth of the rate and their skips have weakened. The function "
    "that the paper prints jumps at 0, which adds to the error of every smooth curve.",
)

if __name__ == "__main__":
    STUDY.main()
