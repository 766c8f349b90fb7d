"""
Long skips: SGD keeps a simple function, Adam does not
======================================================

[GL] figure 4: residual networks of 119 layers with a skip over every seventh fit noisy polynomials by full-batch
gradient descent or by Adam. Data and errors as in ``gl_figure_2.py``. The roughness of a curve is its total second
difference.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from gl_shared import draw_curves, fit_curve
from study import Study

from sklearn_capacity import NetworkRegressor

COMMON = {"optimizer": ["adam", "sgd"], "function": ["quadratic", "cubic"]}
SCALES = {
    "tiny": {**COMMON, "n_epochs": 20},
    "small": {**COMMON, "n_epochs": 3000},
    "paper": {**COMMON, "n_epochs": 20_000},
}


def snapshots(n_epochs: int) -> list[int]:
    return [n_epochs // 10, n_epochs]


def run(data, *, seed, device, optimizer, function, n_epochs):
    model = NetworkRegressor(
        module="residual_mlp",
        module_params={"skip": 7},
        optimizer=optimizer,
        learning_rate=1e-3,
        momentum=0.0 if optimizer == "sgd" else 0.9,
        device=device,
        random_state=seed,
    )
    return fit_curve(model, function, seed, snapshots(n_epochs))


def draw(rows: pd.DataFrame, figure) -> None:
    draw_curves(rows, figure, snapshots(rows["n_epochs"].iloc[0]), "optimizer")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Logarithms to base 10, per seed, at the first or the last snapshot."""
    results = {}
    for function, group in rows.groupby("function"):
        parts = {name: part.sort_values("seed") for name, part in group.groupby("optimizer")}
        log = {
            (name, column): np.log10(np.array(part[column].tolist()))
            for name, part in parts.items()
            for column in ("clean_mse", "roughness")
        }
        results[f"{function}: roughness of Adam's last curve over SGD's"] = list(
            log["adam", "roughness"][:, -1] - log["sgd", "roughness"][:, -1]
        )
        results[f"{function}: error of SGD's first curve over Adam's"] = list(
            log["sgd", "clean_mse"][:, 0] - log["adam", "clean_mse"][:, 0]
        )
        results[f"{function}: error of Adam's last curve over its first: it overfits"] = list(
            log["adam", "clean_mse"][:, -1] - log["adam", "clean_mse"][:, 0]
        )
    return results


STUDY = Study(
    paper="[GL] figure 4",
    statement="With long skips SGD keeps a piecewise linear function; Adam recovers the function early and overfits "
    "later.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
