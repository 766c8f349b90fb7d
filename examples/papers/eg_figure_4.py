"""
Networks of growing width
=========================

[EG] figure 4: two-layer perceptrons of growing width on MNIST, trained to zero error. The test error goes on falling
beyond the width that suffices; a measure that explains this must fall too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from eg_shared import NORMS, draw_errors_norms_curves, perturbed, train
from study import Study

from sklearn_capacity import measure_capacity

FITS, TURNS = 32, 128  # the paper's widths: enough for the training data, and where some norms turn up
COMMON = {"max_epochs": 1000}
SCALES = {
    "tiny": {**COMMON, "width": [32, 128, 256], "n_train": 200, "stop_below": 0.05, "n_steps": 50, "n_draws": 10},
    "small": {
        **COMMON,
        "width": [8, 16, 32, 64, 128, 256, 512, 1024],
        "n_train": 2000,
        "stop_below": 0.01,
        "n_steps": 1000,
        "n_draws": 20,
    },
    "paper": {
        **COMMON,
        "width": [8, 16, 32, 64, 128, 256, 512, 1024, 2048],
        "n_train": 60000,
        "stop_below": 1e-4,
        "n_steps": 2000,
        "n_draws": 1000,
    },
}


def run(data, *, seed, device, max_epochs, width, n_train, stop_below, n_steps, n_draws):
    X, y, X_test, y_test = data.split(n_train, min(2000, len(data.y) // 5), seed)
    network = {"hidden_layer_sizes": (width,), "device": device, "random_state": seed}
    model = train(X, y, {**network, "max_epochs": max_epochs, "stop_below": stop_below})
    return {
        "train_error": 1 - model.score(X, y),
        "test_error": 1 - model.score(X_test, y_test),
        **measure_capacity(model, X, y, NORMS),
        **perturbed(model, X, y, n_steps, n_draws),
    }


def draw(rows: pd.DataFrame, figure) -> None:
    for ax in draw_errors_norms_curves(rows, figure, "width", NORMS):
        ax.set(xlabel="hidden units", xscale="log")


def claims(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Decimal logarithms of ratios between widths."""
    widest = rows["width"].max()

    def fall(name: str, narrow: int, wide: int) -> pd.Series:
        table = rows.pivot(index="seed", columns="width", values=name).map(np.log10)
        return table[narrow] - table[wide]

    return {
        f"test error falls from {FITS} to {widest}": fall("test_error", FITS, widest),
        **{f"{norm} falls from {FITS} to {TURNS}": fall(norm, FITS, TURNS) for norm in NORMS},
        **{
            f"{norm} grows from {TURNS} to {widest}": -fall(norm, TURNS, widest)
            for norm in ("frobenius_capacity", "l1_path_capacity")
        },
        f"l2_path_capacity falls from {TURNS} to {widest}": fall("l2_path_capacity", TURNS, widest),
        f"divergence at equal sharpness falls from {FITS} to {TURNS}": fall("divergence_at_level", FITS, TURNS),
    }


STUDY = Study(
    paper="[EG] figure 4",
    statement="The test error falls with the width beyond the one that fits the data. Norms over the margin and the "
    "divergence at equal sharpness fall too up to width 128; beyond, only the l2 path norm goes on falling, and the "
    "Frobenius and l1 path norms grow.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="With few samples the initial weights are a large part of the learnt ones, and their Frobenius and l1 path "
    "norms grow with the width from the start; the paper trains on 60,000 digits to a loss of 1e-4.",
)

if __name__ == "__main__":
    STUDY.main()
