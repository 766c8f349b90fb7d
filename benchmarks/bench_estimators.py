"""Fitting and predicting beside scikit-learn's and skorch's networks: one architecture, optimiser and batch size."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn

from benchmarks.timing import measure_row
from sklearn_capacity import JacobianRegularizedClassifier, NetworkClassifier, measure_capacity

HIDDEN, RATE = 100, 1e-3


def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def table() -> tuple[np.ndarray, np.ndarray]:
    """100,000 samples of 50 features in two classes."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(100_000, 50)).astype(np.float32)
    return X, (X[:, :5].sum(axis=1) > 0).astype(np.int64)


def ours(epochs: int, batch_size: int) -> NetworkClassifier:
    return NetworkClassifier(
        hidden_layer_sizes=(HIDDEN,), max_epochs=epochs, batch_size=batch_size, learning_rate=RATE, random_state=0
    )


def sklearns(epochs: int, batch_size: int) -> MLPClassifier:
    """Early stopping by the loss is off, so that it runs as many epochs."""
    return MLPClassifier(
        (HIDDEN,), max_iter=epochs, batch_size=batch_size, learning_rate_init=RATE, alpha=0, tol=0, random_state=0,
        n_iter_no_change=epochs,
    )  # fmt: skip


def skorchs(epochs: int, batch_size: int, n_features: int, n_classes: int) -> NeuralNetClassifier:
    layers = functools.partial(nn.Sequential, nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_classes))
    return NeuralNetClassifier(
        layers, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=RATE, max_epochs=epochs,
        batch_size=batch_size, iterator_train__shuffle=True, train_split=None, verbose=0,
    )  # fmt: skip


def quietly(call: Callable[..., object], *args: object) -> Callable[[], None]:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args)

    return run


def fit_rows() -> Iterator[dict]:
    for name, (X, y), epochs, batch_size, repeats in (
        ("digits, 20 epochs", digits(), 20, 128, 5),
        ("100,000 x 50, 1 epoch", table(), 1, 200, 3),
    ):
        mine = quietly(ours(epochs, batch_size).fit, X, y)
        theirs = quietly(sklearns(epochs, batch_size).fit, X, y)
        yield measure_row(f"fit, {name}: MLPClassifier", mine, theirs, target=1.2, repeats=repeats)
        theirs = quietly(skorchs(epochs, batch_size, X.shape[1], len(np.unique(y))).fit, X, y.astype(np.int64))
        yield measure_row(f"fit, {name}: skorch", mine, theirs, target=1.0, repeats=repeats)


def predict_row() -> dict:
    X, y = table()
    model = ours(1, 1000).fit(X[:2000], y[:2000])
    module, tensor = model.module_, torch.from_numpy(X)

    def forward() -> None:
        with torch.no_grad():
            module(tensor)

    return measure_row(
        "predict, 100,000 x 50", lambda: model.predict(X), forward, target=1.1, note="over a forward pass"
    )


def penalized(epochs: int, X: np.ndarray, y: np.ndarray, **options: object) -> Callable[[], None]:
    """A fit of one step an epoch."""
    model = JacobianRegularizedClassifier(
        hidden_layer_sizes=(784, 784), max_epochs=epochs, batch_size=len(X), random_state=0, **options
    )
    return quietly(model.fit, X, y)


def fixed_cost(X: np.ndarray, y: np.ndarray, repeats: int = 5, **options: object) -> float:
    """Processor time of a fit without its steps: that of one step, less what a further step adds."""
    seconds: dict[int, list[float]] = {1: [], 5: []}
    for _ in range(repeats + 1):
        for epochs, times in seconds.items():
            start = time.process_time()
            penalized(epochs, X, y, **options)()
            times.append(time.process_time() - start)
    one, five = (statistics.median(times[1:]) for times in seconds.values())
    return one - (five - one) / 4


def fixed_rows() -> Iterator[dict]:
    """What a penalty adds to a fit before its first step, and a scorer to the forward pass."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(128, 784)).astype(np.float32), np.arange(128) % 10
    plain = fixed_cost(X, y, jacobian_penalty=0.0)
    for norm in ("projection", "per_layer", "frobenius", "spectral"):
        cost = fixed_cost(X, y, jacobian_penalty=0.1, jacobian_norm=norm)
        parts = {"ours": cost, "peer": plain, "ratio": cost / plain, "target": 1.3}
        yield {"kernel": f"fit with penalty, {norm}: before the first step", **parts, "note": "over a plain fit's"}


def scorer_row() -> dict:
    X = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    module, tensor = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)), torch.from_numpy(X)

    def floor() -> None:
        """10 ms, and half as much again as a forward pass."""
        start = time.process_time()
        with torch.no_grad():
            module(tensor)
        until = time.process_time() + 0.01 + 0.5 * (time.process_time() - start)
        while time.process_time() < until:
            pass

    def score() -> None:
        measure_capacity(module, X, measures=["parameter_count", "frobenius_norm", "l2_path_norm"])

    return measure_row("scorer call, measures of weights", score, floor, target=1.0, note="over 10 ms + 1.5 forwards")


def import_row() -> dict:
    """The processor time of importing the package, over that of what it stands on."""
    peers = "torch, skorch, sklearn.base, sklearn.model_selection, sklearn.metrics, pandas, scipy.sparse.linalg"

    def seconds(modules: str, cache: str) -> float:
        """With compiled files in a folder, as an installation has them."""
        code = f"import time; import {modules}; print(time.process_time())"
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        variables["PYTHONPYCACHEPREFIX"] = cache
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)

    with tempfile.TemporaryDirectory() as cache:
        pairs = [(seconds(f"{peers}, sklearn_capacity", cache), seconds(peers, cache)) for _ in range(5)][1:]
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    note = f"{mine - theirs:.2f} s more, target 0.3"
    return {
        "kernel": "import", "ours": mine, "peer": theirs, "ratio": mine / theirs, "target": (theirs + 0.3) / theirs,
        "note": f"over torch, scikit-learn and skorch: {note}",
    }  # fmt: skip


def run() -> Iterator[dict]:
    """Rows for fit, predict, the fixed costs of fits and scorers, and the import."""
    yield from fit_rows()
    yield predict_row()
    yield from fixed_rows()
    yield scorer_row()
    yield import_row()
