"""
Jacobian penalty against weight decay on few digits: table II of Sokolic et al.
===============================================================================

The convolutional network of table II learns 1,000 (or 5,000) MNIST digits without regularisation, with weight decay,
and with the Jacobian penalty (one random projection per sample and step). The strength is selected on a held-out fifth
of the training digits; the network is then trained again on all of them and tested on 2,000 others. Each seed has
different training digits, weights and order of batches.

Rows are written as fits finish, and finished ones are skipped: it can be stopped and restarted at any time, also in
several processes. 60 epochs (the paper has 120), SGD with momentum 0.9, batches of 128, learning rate 0.01, a tenth of
it from epoch 40 on, as in the paper.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from results import DATA, ResultTable, mean_and_error
from torch import nn

from sklearn_capacity import JacobianRegularizedClassifier
from sklearn_capacity.architectures import make_network

STRENGTHS = {"none": [0.0], "weight decay": [1e-4, 1e-3, 1e-2], "Jacobian": [0.01, 0.05, 0.2]}
N_POOL, N_TEST = 6000, 2000
SETTINGS = ("n_train", "seed", "method", "strength", "stage", "epochs")
RESULTS = ("accuracy", "train_loss", "seconds")


def channels_last(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """The network in the memory format in which convolutions on a CPU are fastest."""
    return make_network("conv", input_shape, n_outputs).to(memory_format=torch.channels_last)


def make_model(method: str, strength: float, epochs: int, seed: int) -> JacobianRegularizedClassifier:
    return JacobianRegularizedClassifier(
        module=channels_last,
        jacobian_penalty=strength if method == "Jacobian" else 0.0,
        jacobian_norm="projection",
        weight_decay=strength if method == "weight decay" else 0.0,
        optimizer="sgd",
        learning_rate=0.01,
        learning_rate_schedule=[(40, 0.1), (80, 0.1)],
        max_epochs=epochs,
        random_state=seed,
    )


def load(path: Path, n_train: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training digits drawn by the seed from the first 6,000, and the last 2,000 to test on."""
    with np.load(path / "mnist_8k.npz") as file:
        X, y = file["X"][:, None].astype(np.float32) / 255, file["y"]
    drawn = np.random.default_rng(seed).permutation(N_POOL)[:n_train]
    return X[drawn], y[drawn], X[-N_TEST:], y[-N_TEST:]


def fit(
    table: ResultTable, data: tuple, n_train: int, seed: int, method: str, strength: float, stage: str, epochs: int
) -> float:
    """Accuracy of one fit: on the held-out digits ("choose") or on the test digits ("test")."""
    settings = dict(n_train=n_train, seed=seed, method=method, strength=strength, stage=stage, epochs=epochs)
    done = table.find(**settings)
    if done is None:
        X, y, X_test, y_test = data
        if stage == "choose":
            kept = n_train * 4 // 5
            X, y, X_test, y_test = X[:kept], y[:kept], X[kept:], y[kept:]
        start = time.process_time()
        model = make_model(method, strength, epochs, seed).fit(X, y)
        seconds = time.process_time() - start
        done = dict(accuracy=model.score(X_test, y_test), train_loss=model.history_[-1, "train_loss"], seconds=seconds)
        table.add(settings, done)
        print(settings, done, flush=True)
    return done["accuracy"]


def best_strength(table: ResultTable, data: tuple, n_train: int, seed: int, method: str, epochs: int) -> float:
    """The strength with the highest accuracy on the held-out digits; the largest of ties."""
    strengths = STRENGTHS[method]
    if len(strengths) == 1:
        return strengths[0]
    scores = [fit(table, data, n_train, seed, method, strength, "choose", epochs) for strength in strengths]
    return max(zip(scores, strengths, strict=True))[1]


def summary(table: ResultTable, epochs: int) -> list[tuple[int, str, int, float, float]]:
    """Size, method, number of seeds, mean test accuracy in per cent and its standard error."""
    rows = [row for row in table.rows() if row["stage"] == "test" and int(row["epochs"]) == epochs]
    lines = []
    for n_train in sorted({int(row["n_train"]) for row in rows}):
        for method in STRENGTHS:
            values = [
                100 * float(row["accuracy"])
                for row in rows
                if int(row["n_train"]) == n_train and row["method"] == method
            ]
            if values:
                lines.append((n_train, method, len(values), *mean_and_error(values)))
    return lines


def draw(lines: list[tuple[int, str, int, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5))
    for method in STRENGTHS:
        chosen = [line for line in lines if line[1] == method]
        axes.errorbar(
            [line[0] for line in chosen],
            [line[3] for line in chosen],
            [line[4] for line in chosen],
            fmt="o-",
            capsize=3,
            label=method,
        )
    axes.set(xscale="log", xlabel="training digits", ylabel="test accuracy (%)")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds mnist_8k.npz")
    parser.add_argument("--output", type=Path, default=Path("study_sokolic_table2"), help="folder for csv and figure")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args(arguments)
    table = ResultTable(options.output / "results.csv", SETTINGS, RESULTS)
    for n_train in options.sizes:
        for seed in options.seeds:
            data = load(options.data, n_train, seed)
            for method in STRENGTHS:
                strength = best_strength(table, data, n_train, seed, method, options.epochs)
                fit(table, data, n_train, seed, method, strength, "test", options.epochs)
    lines = summary(table, options.epochs)
    for n_train, method, n_seeds, accuracy, error in lines:
        print(f"{n_train:6d} digits  {method:13s} {accuracy:6.2f} +- {error:.2f} %  ({n_seeds} seeds)")
    draw(lines, options.output / "accuracy.png")


if __name__ == "__main__":
    main(sys.argv[1:])
