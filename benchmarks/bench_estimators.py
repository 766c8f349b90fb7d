"""Fitting and predicting beside scikit-learn's and skorch's networks: one architecture, optimiser and batch size."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier, MLPRegressor
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from benchmarks.timing import measure_row, ratio_row
from sklearn_capacity import JacobianRegularizedClassifier, NetworkClassifier, NetworkRegressor, measure_capacity

HIDDEN, RATE = 100, 1e-3


class Fit(NamedTuple):
    """A task and the settings of a fit, the same for every package."""

    name: str
    X: np.ndarray
    y: np.ndarray
    epochs: int
    batch_size: int
    hidden: tuple[int, ...] = (HIDDEN,)
    solver: str = "adam"

    @property
    def is_regression(self) -> bool:
        return self.y.dtype.kind == "f"


def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def table(n: int = 100_000, d: int = 50, n_classes: int = 2, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Normal features and the classes of a linear map, or for no classes the sum of five features."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n, d)).astype(dtype)
    if not n_classes:
        return X, X[:, :5].sum(axis=1)
    return X, (X @ generator.normal(size=(d, n_classes))).argmax(axis=1)


def fits() -> Iterator[Fit]:
    """Wide and narrow data, large and small batches."""
    yield Fit("digits, 20 epochs", *digits(), epochs=20, batch_size=128)
    yield Fit("100,000 x 50, 1 epoch", *table(), epochs=1, batch_size=200)
    yield Fit("500 x 20, batches of 32", *table(500, 20), epochs=20, batch_size=32)
    yield Fit("5,000 x 100, SGD, batches of 32", *table(5000, 100, 10), epochs=4, batch_size=32, solver="sgd")
    wide = table(2000, 500, 100)
    yield Fit("2,000 x 500, 100 classes, 256-256", *wide, epochs=3, batch_size=64, hidden=(256, 256))
    yield Fit("500 x 20, regression, float64", *table(500, 20, 0, "float64"), epochs=20, batch_size=32, hidden=(50,))


def ours(fit: Fit) -> NetworkClassifier | NetworkRegressor:
    return (NetworkRegressor if fit.is_regression else NetworkClassifier)(
        hidden_layer_sizes=fit.hidden, optimizer=fit.solver, max_epochs=fit.epochs, batch_size=fit.batch_size,
        learning_rate=RATE, momentum=0.9, random_state=0,
    )  # fmt: skip


def sklearns(fit: Fit) -> MLPClassifier | MLPRegressor:
    """Early stopping by the loss is off, so that it runs as many epochs."""
    return (MLPRegressor if fit.is_regression else MLPClassifier)(
        hidden_layer_sizes=fit.hidden, solver=fit.solver, max_iter=fit.epochs, batch_size=fit.batch_size,
        learning_rate_init=RATE, momentum=0.9, nesterovs_momentum=False, alpha=0, tol=0, random_state=0,
        n_iter_no_change=fit.epochs,
    )  # fmt: skip


def skorchs(fit: Fit) -> NeuralNetClassifier | NeuralNetRegressor:
    n_outputs = 1 if fit.is_regression else len(np.unique(fit.y))
    widths = (fit.X.shape[1], *fit.hidden, n_outputs)
    layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    settings = {"optimizer__momentum": 0.9} if fit.solver == "sgd" else {}
    return (NeuralNetRegressor if fit.is_regression else NeuralNetClassifier)(
        nn.Sequential(*layers).to(torch.from_numpy(fit.X).dtype),
        criterion=nn.MSELoss if fit.is_regression else nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD if fit.solver == "sgd" else torch.optim.Adam, lr=RATE, max_epochs=fit.epochs,
        batch_size=fit.batch_size, iterator_train__shuffle=True, train_split=None, verbose=0, **settings,
    )  # fmt: skip


def quietly(call: Callable[..., object], *args: object) -> Callable[[], None]:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args)

    return run


def fit_rows() -> Iterator[dict]:
    for fit in fits():
        X, y = fit.X, fit.y
        theirs = sklearns(fit)
        mine, name = quietly(ours(fit).fit, X, y), type(theirs).__name__
        yield measure_row(f"fit, {fit.name}: {name}", mine, quietly(theirs.fit, X, y), target=1.2, repeats=5)
        targets = y[:, None] if fit.is_regression else y.astype(np.int64)
        peer = quietly(skorchs(fit).fit, X, targets)
        yield measure_row(f"fit, {fit.name}: skorch", mine, peer, target=1.0, repeats=3)


def predict_rows() -> Iterator[dict]:
    """One large call, and many small ones, where scikit-learn's checks of X take as long as the forward pass."""
    for (X, y), name, n_calls in ((table(), "100,000 x 50", 1), (table(1000, 64, 10), "1,000 x 64", 100)):
        model = ours(Fit(name, X, y, epochs=1, batch_size=1000)).fit(X[:2000], y[:2000])
        peer = sklearns(Fit(name, X, y, epochs=1, batch_size=1000))
        quietly(peer.fit, X[:2000], y[:2000])()
        module, tensor = model.module_, torch.from_numpy(X)

        def forward(module: nn.Module = module, tensor: torch.Tensor = tensor) -> None:
            with torch.no_grad():
                module(tensor)

        mine = repeated(model.predict, n_calls, X)
        note = "over a forward pass"
        yield measure_row(f"predict, {name}", mine, repeated(forward, n_calls), target=1.1, note=note)
        yield measure_row(f"predict, {name}: MLPClassifier", mine, repeated(peer.predict, n_calls, X), target=1.2)


def repeated(call: Callable[..., object], n_calls: int, *args: object) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n_calls):
            call(*args)

    return run


def penalized(epochs: int, X: np.ndarray, y: np.ndarray, **options: object) -> Callable[[], None]:
    """A fit of one step an epoch."""
    model = JacobianRegularizedClassifier(
        hidden_layer_sizes=(784, 784), max_epochs=epochs, batch_size=len(X), random_state=0, **options
    )
    return quietly(model.fit, X, y)


def fixed_costs(X: np.ndarray, y: np.ndarray, *options: dict[str, object], repeats: int = 5) -> list[float]:
    """Processor times of fits without their steps, in turn: that of one step, less what a further step adds."""
    seconds: list[dict[int, list[float]]] = [{1: [], 5: []} for _ in options]
    for _ in range(repeats + 1):
        for times, settings in zip(seconds, options, strict=True):
            for epochs in times:
                start = time.process_time()
                penalized(epochs, X, y, **settings)()
                times[epochs].append(time.process_time() - start)
    medians = [[statistics.median(values[1:]) for values in times.values()] for times in seconds]
    return [one - (five - one) / 4 for one, five in medians]


def fixed_rows() -> Iterator[dict]:
    """What a penalty adds to a fit before its first step, and a scorer to the forward pass."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(128, 784)).astype(np.float32), np.arange(128) % 10
    norms = ("projection", "per_layer", "frobenius", "spectral")
    settings = [{"jacobian_penalty": 0.1, "jacobian_norm": norm} for norm in norms]
    plain, *costs = fixed_costs(X, y, {"jacobian_penalty": 0.0}, *settings)
    for norm, cost in zip(norms, costs, strict=True):
        kernel = f"fit with penalty, {norm}: before the first step"
        yield ratio_row(kernel, cost, plain, target=1.3, note="over a plain fit's")


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
    note = f"over torch, scikit-learn and skorch: {mine - theirs:.2f} s more, target 0.3"
    return ratio_row("import", mine, theirs, target=(theirs + 0.3) / theirs, note=note)


def run() -> Iterator[dict]:
    """Rows for fit, predict, the fixed costs of fits and scorers, and the import."""
    yield from fit_rows()
    yield from predict_rows()
    yield from fixed_rows()
    yield scorer_row()
    yield import_row()
