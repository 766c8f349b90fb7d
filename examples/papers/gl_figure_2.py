"""
Plain SGD overfits a noisy quadratic function at any depth
==========================================================

[GL] figure 2: a network with one hidden layer, one with seven and a residual one with 119, all of some 36,000
parameters, fit 100 noisy values by full-batch gradient descent without regularisation. Inputs and targets are scaled,
so that larger learning rates than the paper's 1e-5 need fewer epochs; errors are in the units of the function.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from gl_shared import draw_curves, fit_curve
from study import Study

from sklearn_capacity import NetworkRegressor

NETWORKS = {
    "shallow": {"hidden_layer_sizes": (11_996,), "learning_rate": 1e-3},
    "deep": {"hidden_layer_sizes": (77,) * 7, "learning_rate": 0.05},
    "residual": {"module": "residual_mlp", "learning_rate": 1e-3},
}
COMMON = {"network": list(NETWORKS), "function": "quadratic"}
SCALES = {
    "tiny": {**COMMON, "n_epochs": 60},
    "small": {**COMMON, "n_epochs": 4000},
    "paper": {**COMMON, "n_epochs": 20_000},
}


def snapshots(n_epochs: int) -> list[int]:
    return [1, n_epochs // 20, n_epochs // 4, n_epochs]


def run(data, *, seed, device, network, function, n_epochs):
    model = NetworkRegressor(optimizer="sgd", momentum=0.0, device=device, random_state=seed, **NETWORKS[network])
    return fit_curve(model, function, seed, snapshots(n_epochs))


def draw(rows: pd.DataFrame, figure) -> None:
    draw_curves(rows, figure, snapshots(rows["n_epochs"].iloc[0]), "network")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    results = {}
    for network, group in rows.groupby("network"):
        clean = np.log10(np.array(group["clean_mse"].tolist()))
        train = np.array(group["train_mse"].tolist())
        results[f"{network}: decades from the smallest error against the true function to the last one"] = list(
            clean[:, -1] - clean.min(1) - 0.01
        )
        results[f"{network}: decades of the last training error below the noise"] = list(2 - np.log10(train[:, -1]))
    return results


STUDY = Study(
    paper="[GL] figure 2",
    statement="Networks of any depth that plain SGD trains for long overfit in the end.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="At scale small the shallow network is far from having fitted the data, and the deeper ones have only begun "
    "to overfit: the paper trains five times as long.",
)

if __name__ == "__main__":
    STUDY.main()
