"""What the studies of [GL] have in common: curves fitted to noisy polynomials, and ResNets on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from skorch.callbacks import Callback

from sklearn_capacity import GeneralizationLayerClassifier, NetworkClassifier
from sklearn_capacity.datasets import make_noisy_cubic, make_noisy_quadratic

__all__ = ["GRID", "accuracy_claim", "draw_accuracies", "draw_curves", "fit_curve", "fit_resnet"]

MAKERS = {"quadratic": make_noisy_quadratic, "cubic": make_noisy_cubic}
GRID = np.linspace(-8, 8, 161)[:, None]
INNER = np.abs(GRID[:, 0]) <= 2  # where the paper tests


class Snapshots(Callback):
    """Record the network's curve over the grid after these epochs."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = epochs

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch = len(net.history)
        if epoch in self.epochs:
            net.history.record("curve", net.predict(GRID / 8).ravel().tolist())


def fit_curve(model: Any, function: str, seed: int, snapshots: Sequence[int]) -> dict[str, Any]:
    """Fit a regressor of scaled data; errors in units of y after each snapshot, against data and true function."""
    X, y = MAKERS[function](100, random_state=seed)
    clean = MAKERS[function](len(GRID), noise=0.0)[1]
    mean, scale = y.mean(), y.std()
    model.set_params(callbacks=[Snapshots(snapshots)], batch_size=len(y), max_epochs=snapshots[-1])
    model.fit(X / 8, (y - mean) / scale)
    curves = np.array([mean + scale * np.array(row["curve"]) for row in model.history_ if "curve" in row])
    errors = (curves - clean) ** 2
    fitted = np.array([np.interp(X[:, 0], GRID[:, 0], curve) for curve in curves])
    return {
        "train_mse": ((fitted - y) ** 2).mean(1),
        "clean_mse": errors.mean(1),
        "inner_mse": errors[:, INNER].mean(1),
        "roughness": np.abs(np.diff(curves, n=2)).sum(1),
        "curves": curves,
    }


def draw_curves(rows: pd.DataFrame, figure: Any, snapshots: Sequence[int], by: str) -> None:
    """A row of pictures per kind of network, a column per snapshot, for the first seed."""
    first = rows[rows["seed"] == rows["seed"].min()]
    figure.set_size_inches(3 * len(snapshots), 2.4 * len(first))
    axes = figure.subplots(len(first), len(snapshots), squeeze=False, sharex=True)
    for line, row in zip(axes, first.itertuples(), strict=True):
        X, y = MAKERS[row.function](100, random_state=row.seed)
        for ax, epoch, curve in zip(line, snapshots, row.curves, strict=True):
            ax.plot(X, y, ".", color="0.6", ms=3, label="data")
            ax.plot(GRID, MAKERS[row.function](len(GRID), noise=0.0)[1], "k--", lw=0.8, label="function")
            ax.plot(GRID, curve, color="C3", lw=1, label="network")
            ax.set_title(f"{row.function}, {getattr(row, by)}, epoch {epoch}", fontsize="medium")
    for ax in axes[-1]:
        ax.set_xlabel("x")
    for ax in axes[:, 0]:
        ax.set_ylabel("y")
    axes[0, 0].legend(fontsize="small", loc="upper center")


def fit_resnet(
    data: Any,
    *,
    seed: int,
    device: str,
    layer: str,
    dropout: float,
    depth: int,
    width: int,
    n_train: int,
    max_epochs: int,
) -> dict[str, float]:
    """A ResNet with a generalization layer of the given kind ("none", "skip" or "dropout"), trained as the paper says.

    Learning rate 0.1, a tenth after half of the epochs, a hundredth after three quarters; weight decay 1e-4, crops and
    flips; the regime of section 4.1.1 for the layer with a skip.
    """
    n_test = min(2000, len(data.y) // 5)
    X, y, X_test, y_test = data.standardized().split(n_train, n_test, seed)
    params = {"depth": depth, "width": width}
    if layer != "none":
        params |= {"generalization_layer": layer, "layer_dropout": dropout}
    settings = {
        "module": "resnet20",
        "module_params": params,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "learning_rate_schedule": [(max_epochs / 2, 0.1), (3 * max_epochs / 4, 0.1)],
        "weight_decay": 1e-4,
        "augmentation": "crop_flip",
        "max_epochs": max_epochs,
        "device": device,
        "random_state": seed,
    }
    if layer == "skip":
        model = GeneralizationLayerClassifier(variant="skip", position=None, slow_after=0.1, **settings)
    else:  # the layer with dropout needs no regime
        model = NetworkClassifier(**settings)
    model.fit(X, y)
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.module_.parameters()),
        "train_accuracy": model.score(X[:n_test], y[:n_test]),
        "test_accuracy": model.score(X_test, y_test),
    }


def names(rows: pd.DataFrame) -> pd.Series:
    """The networks as in the paper's table 1."""
    plain = "ResNet" + rows["depth"].astype(str)
    kinds = {"none": "", "skip": " GL"}
    return plain + [kinds.get(layer, f" GLD {p:g}") for layer, p in zip(rows["layer"], rows["dropout"], strict=True)]


def draw_accuracies(rows: pd.DataFrame, figure: Any) -> None:
    """Test accuracy of every network and seed, with mean and standard error."""
    figure.set_size_inches(5, 3.4)
    ax = figure.subplots()
    groups = list((100 * rows["test_accuracy"]).groupby(names(rows), sort=False))
    for place, (_, values) in enumerate(groups):
        ax.plot([place] * len(values), values, "o", color="C0", alpha=0.5)
        ax.errorbar([place], [values.mean()], [values.sem()], fmt="_k", capsize=5, markersize=20)
    ax.set_xticks(range(len(groups)), [name for name, _ in groups])
    ax.set_ylabel("test accuracy (%)")
    ax.margins(x=0.2)


def accuracy_claim(rows: pd.DataFrame, layer: str, dropout: float, slack: float = 0.0) -> dict[str, list[float]]:
    """The network with this layer is more accurate than the plain one, or at most `slack` per cent less."""
    accuracies = 100 * rows.set_index("seed")["test_accuracy"]
    plain = accuracies[(rows["layer"] == "none").to_numpy()]
    other = accuracies[((rows["layer"] == layer) & (rows["dropout"] == dropout)).to_numpy()]
    kind = "GL" if layer == "skip" else f"GLD {dropout:g}"
    text = f"test accuracy (%) of the network with {kind} minus that of the plain one"
    return {text + (f", plus {slack:g}" if slack else ""): list(other - plain + slack)}
