"""
Natural gradient on an ill-conditioned problem
==============================================

[FR] figure 7: a linear map learns the changes of slope of piecewise linear curves. Gradient descent hardly moves in the
directions of small curvature; natural gradient preconditions them. Learning rates are chosen by the error on a
validation set; the reported error is on a third set. Batches of 500: the curvature of one batch must hold for others.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from study import Study

from sklearn_capacity import DivergenceError, NetworkRegressor
from sklearn_capacity.datasets import make_piecewise_linear_curves

NEWTON = {"damping": 1e-6, "max_kl": None, "update_interval": 2}
OPTIMIZERS = {
    "gradient descent": {"optimizer": "sgd", "momentum": 0.9},
    "natural gradient": {"optimizer": "kfac", "momentum": 0.0, "optimizer_params": NEWTON},
}
RATES = {"gradient descent": [1e-4, 3e-4, 1e-3, 3e-3], "natural gradient": [0.1, 0.3, 1.0]}
SCALES = {
    "tiny": {"optimizer": list(OPTIMIZERS), "n_points": 20, "n_train": 200, "max_epochs": 10},
    "small": {"optimizer": list(OPTIMIZERS), "n_points": 100, "n_train": 2000, "max_epochs": 40},
    "paper": {"optimizer": list(OPTIMIZERS), "n_points": 100, "n_train": 10000, "max_epochs": 1000},
}


def run(data, *, seed, device, optimizer, n_points, n_train, max_epochs):
    X, y = make_piecewise_linear_curves(n_train + 2000, n_points=n_points, random_state=seed)
    train, valid, test = slice(n_train), slice(n_train, n_train + 1000), slice(n_train + 1000, None)
    models = {}
    for rate in RATES[optimizer]:
        settings = {**OPTIMIZERS[optimizer], "learning_rate": rate, "max_epochs": max_epochs}
        model = NetworkRegressor((), batch_size=500, device=device, random_state=seed, **settings)
        try:
            models[rate] = model.fit(X[train], y[train])
        except DivergenceError:  # this rate is not chosen
            continue
    errors = {rate: np.mean((model.predict(X[valid]) - y[valid]) ** 2) for rate, model in models.items()}
    rate = min(errors, key=errors.get)
    return {
        "learning_rate": rate,
        "test_mse": np.mean((models[rate].predict(X[test]) - y[test]) ** 2),
        "mean_square": np.mean(y[test] ** 2),
        "train_losses": models[rate].history_[:, "train_loss"],
    }


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(5, 3.6)
    ax = figure.subplots()
    for (optimizer, group), color in zip(rows.groupby("optimizer"), ("C3", "C0"), strict=True):
        for losses in group["train_losses"]:
            ax.plot(range(1, len(losses) + 1), losses, color=color, label=optimizer)
    ax.axhline(rows["mean_square"].mean(), color="k", linestyle=":", label="constant 0")
    ax.set(xlabel="epoch", ylabel="training mean squared error", yscale="log")
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(unique.values(), unique.keys())


def claims(rows: pd.DataFrame) -> dict[str, pd.Series]:
    table = rows.pivot(index="seed", columns="optimizer", values=["test_mse", "mean_square"]).map(np.log10)
    error = table["test_mse"]
    return {
        "log10 test error of gradient descent over natural gradient, minus 1": (
            error["gradient descent"] - error["natural gradient"] - 1
        ),
        "log10 mean square of the targets over the error of natural gradient, minus 1": (
            table["mean_square"]["natural gradient"] - error["natural gradient"] - 1
        ),
    }


STUDY = Study(
    paper="[FR] figure 7",
    statement="Natural gradient learns the changes of slope of piecewise linear curves, at which gradient descent "
    "fails in the same number of epochs (read as: an error at least ten times smaller).",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
