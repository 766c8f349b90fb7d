"""
Generalization layers in a ResNet-20 on few CIFAR images
========================================================

ResNet-20 unchanged, with a generalization layer instead of its second stage ("GL"), and with a generalization layer
with dropout 0.75 after its encoder ("GLD"); [GL] figures 6 and 8 and table 1, with 10,000 images and 15 epochs instead
of 50,000 and 300, and every schedule shortened accordingly: learning rate 0.1, a tenth of it after half of the epochs
and a hundredth after three quarters; nu from 1 to 0.1 over 80 % of the epochs; the layer's own weights at a tenth of
the rate after a tenth of the epochs. Random crops and flips, weight decay 1e-4, momentum 0.9, batches of 128. Tested
on 2,000 other images.

Rows are written as fits finish, and finished ones are skipped: it can be stopped and restarted at any time, also in
several processes. ``--images 2000 --epochs 10 --seeds 0`` is a small version.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from results import DATA, ResultTable, mean_and_error
from torch import nn

from sklearn_capacity import GeneralizationLayerClassifier, NetworkClassifier
from sklearn_capacity.architectures import make_network

METHODS = {"plain": "resnet20", "GL": "resnet20_gl", "GLD 0.75": "resnet20_gld"}
N_POOL, N_TEST = 10_000, 2000
SETTINGS = ("n_train", "seed", "method", "epochs")
RESULTS = ("accuracy", "train_accuracy", "train_loss", "seconds")


def channels_last(name: str, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """The network in the memory format in which convolutions on a CPU are fastest."""
    return make_network(name, input_shape, n_outputs).to(memory_format=torch.channels_last)


def make_model(method: str, epochs: int, seed: int) -> NetworkClassifier | GeneralizationLayerClassifier:
    settings = dict(
        module=functools.partial(channels_last, METHODS[method]),
        optimizer="sgd",
        learning_rate=0.1,
        learning_rate_schedule=[(epochs / 2, 0.1), (3 * epochs / 4, 0.1)],
        weight_decay=1e-4,
        augmentation="crop_flip",
        max_epochs=epochs,
        random_state=seed,
    )
    if method == "GL":
        return GeneralizationLayerClassifier(variant="skip", position=None, slow_after=0.1, **settings)
    return NetworkClassifier(**settings)  # GLD needs no regime: the named architecture has the layer


def load(path: Path, n_train: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images drawn by the seed from the first 10,000, and the last 2,000; standardised by channel."""
    with np.load(path / "cifar10_12k.npz") as file:
        X, y = file["X"].astype(np.float32) / 255, file["y"]
    drawn = np.random.default_rng(seed).permutation(N_POOL)[:n_train]
    mean, deviation = X[drawn].mean((0, 2, 3), keepdims=True), X[drawn].std((0, 2, 3), keepdims=True)
    X = (X - mean) / deviation
    return X[drawn], y[drawn], X[-N_TEST:], y[-N_TEST:]


def fit(table: ResultTable, data: tuple, n_train: int, seed: int, method: str, epochs: int) -> None:
    settings = dict(n_train=n_train, seed=seed, method=method, epochs=epochs)
    if table.find(**settings) is not None:
        return
    X, y, X_test, y_test = data
    start = time.process_time()
    model = make_model(method, epochs, seed).fit(X, y)
    seconds = time.process_time() - start
    results = dict(
        accuracy=model.score(X_test, y_test),
        train_accuracy=model.score(X[:N_TEST], y[:N_TEST]),
        train_loss=model.history_[-1, "train_loss"],
        seconds=seconds,
    )
    table.add(settings, results)
    print(settings, results, flush=True)


def summary(table: ResultTable, n_train: int, epochs: int) -> dict[str, list[float]]:
    """Test accuracies in per cent of each method's seeds."""
    rows = [row for row in table.rows() if (int(row["n_train"]), int(row["epochs"])) == (n_train, epochs)]
    found = {method: [100 * float(row["accuracy"]) for row in rows if row["method"] == method] for method in METHODS}
    return {method: values for method, values in found.items() if values}


def draw(found: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 3.5))
    for place, values in enumerate(found.values()):
        axes.plot([place] * len(values), values, "o", color="C0", alpha=0.5)
        axes.errorbar([place], *([value] for value in mean_and_error(values)), fmt="_k", capsize=5, markersize=20)
    axes.set(xticks=range(len(found)), xticklabels=list(found), ylabel="test accuracy (%)")
    axes.margins(x=0.2)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds cifar10_12k.npz")
    parser.add_argument("--output", type=Path, default=Path("study_gl_cifar"), help="folder for csv and figure")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args(arguments)
    table = ResultTable(options.output / "results.csv", SETTINGS, RESULTS)
    for seed in options.seeds:
        data = load(options.data, options.images, seed)
        for method in METHODS:
            fit(table, data, options.images, seed, method, options.epochs)
    found = summary(table, options.images, options.epochs)
    for method, values in found.items():
        accuracy, error = mean_and_error(values)
        print(f"{method:9s} {accuracy:6.2f} +- {error:.2f} %  ({len(values)} seeds)")
    draw(found, options.output / "accuracy.png")


if __name__ == "__main__":
    main(sys.argv[1:])
