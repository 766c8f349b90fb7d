"""`python -m benchmarks.soak`: a thousand fits and scorings in one process must not leak.

Relative to the state after the first hundred rounds, resident memory may grow by 5 %; open files, threads and cached
source text may not grow at all, and Python's objects by less than one per round. `--classes` uses as many models of
different classes.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import linecache
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil
import torch
from sklearn.datasets import make_classification, make_regression
from torch import nn
from tqdm import tqdm

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    capacity_report,
    measure_capacity,
)
from sklearn_capacity.storage import references

from .soak_classes import one_class

GROWTH = 0.05
trace = importlib.import_module("sklearn_capacity.graph.trace")  # `graph.trace` is the function


class Usage(NamedTuple):
    """Resources of the process: resident bytes, open files and sockets, threads, source texts, Python's containers."""

    memory: int
    files: int
    threads: int
    sources: int
    objects: int


def usage() -> Usage:
    """The current usage of this process, after garbage collection.

    Bounded caches are emptied first, since it takes hundreds of rounds until they are full: sympy's of the symbols of
    torch.export, the hundred programs of this package, and what a thousand functions read.
    """
    sympy = sys.modules.get("sympy.core.cache")
    if sympy is not None:
        sympy.clear_cache()
    references._read_by.cache_clear()
    trace._PROGRAMS.clear()
    gc.collect()
    process = psutil.Process()
    held = process.memory_info().rss, process.num_fds(), process.num_threads()
    return Usage(*held, len(linecache.cache), len(gc.get_objects()))


def faults(settled: Usage, final: Usage, rounds: int, growth: float = GROWTH) -> list[str]:
    """Sentences on what has grown between two states, some rounds apart."""
    result = []
    if final.memory > settled.memory * (1 + growth):
        result.append(f"resident memory grew from {settled.memory / 2**20:.1f} to {final.memory / 2**20:.1f} MiB")
    if final.files > settled.files:
        result.append(f"open files grew from {settled.files} to {final.files}")
    if final.threads > settled.threads:
        result.append(f"threads grew from {settled.threads} to {final.threads}")
    if final.sources > settled.sources:
        result.append(f"source texts in linecache grew from {settled.sources} to {final.sources}")
    if final.objects >= settled.objects + rounds:  # a leak per round is at least one object
        result.append(f"Python's objects grew from {settled.objects} to {final.objects} in {rounds} rounds")
    return result


def conv_net(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """A small net with batch norm and pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(n_outputs),
    )


def one_round(turn: int) -> None:
    """Fit one estimator and measure it, in one of four ways; data and network differ each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)  # a network after two epochs does not separate the data
        _one_round(turn)


def _one_round(turn: int) -> None:
    X, y = make_classification(60, 16, n_informative=6, n_classes=3, random_state=turn)
    X = X.astype(np.float32)
    kind = turn % 4
    if kind == 0:
        model = JacobianRegularizedClassifier((8,), max_epochs=2, random_state=turn).fit(X, y)
        CapacityScorer(["accuracy", "l2_path_norm", "margin"])(model, X, y)
    elif kind == 1:
        model = NetworkClassifier(module=conv_net, input_shape=(1, 4, 4), max_epochs=2, random_state=turn).fit(X, y)
        drawn = {"sharpness": ("expected_sharpness", {"n_draws": 10})}
        plain = {name: name for name in ("spectral_norm", "path_norm", "fisher_rao_norm")}
        measure_capacity(model, X, y, plain | drawn)
    elif kind == 2:
        X, y = make_regression(60, 16, n_targets=2, random_state=turn)
        model = JacobianRegularizedRegressor((8,), "tanh", max_epochs=2, random_state=turn).fit(X, y / y.std())
        measure_capacity(model, X, y, ["frobenius_norm", "jacobian_frobenius"])
    else:
        model = NetworkClassifier((8,), early_stopping=True, max_epochs=3, random_state=turn).fit(X, y)
        measures = ["l2_path_capacity", "lipschitz_l2", "jacobian_spectral", "margin"]
        capacity_report(model, X, y, measures, per_layer=True)


def soak(
    rounds: int,
    settle: int,
    *,
    growth: float = GROWTH,
    progress: bool = True,
    one_round: Callable[[int], None] = one_round,
) -> tuple[Usage, Usage, list[str]]:
    """Usage after `settle` rounds, after all rounds, and sentences on what has grown in between."""
    settled = usage()
    for turn in tqdm(range(rounds), unit="round", disable=not progress):
        if turn == settle:
            settled = usage()
        one_round(turn)
    final = usage()
    return settled, final, faults(settled, final, rounds - settle, growth)


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds; the exit status is 1 if something has grown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--classes", action="store_true", help="models of 300 classes, refused ones among them")
    parser.add_argument("--rounds", type=int, help="default: 1000, or 300 classes")
    parser.add_argument("--settle", type=int, help="default: 100, or 48 classes")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (300 if options.classes else 1000)
    settle = options.settle or (48 if options.classes else 100)
    torch.set_num_threads(1)
    settled, final, result = soak(rounds, settle, one_round=one_class if options.classes else one_round)
    for number, held in ((settle, settled), (rounds, final)):
        print(
            f"after {number} rounds: {held.memory / 2**20:.1f} MiB, {held.files} files, {held.threads} threads, "
            f"{held.sources} source texts, {held.objects} objects"
        )
    growth = 100 * (final.memory / settled.memory - 1)
    print("\n".join(result) or f"memory changed by {growth:+.1f} %; nothing was left behind")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
