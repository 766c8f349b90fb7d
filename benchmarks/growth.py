"""`python -m benchmarks.growth`: how time and memory grow with the size of the problem.

Fits, the presets of measures and a training step with each Jacobian penalty, over width, depth, samples and classes of
a perceptron and the parameters of a convolutional network, two decades each where that takes seconds. An exponent is
the slope of a least squares line through the logarithms, over the last decade, where fixed costs weigh least. Beside it
stands the exponent that the work and the data must have. Writes `growth_points.csv`, and from it the table `growth.csv`
and the plot `growth.png`; `--only TASK` measures one task anew and keeps the points of the others.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.bench_penalties import Case, penalized
from benchmarks.memory import reset_peak, resident
from sklearn_capacity import NetworkClassifier, measure_capacity
from sklearn_capacity.architectures import make_network

POINTS = "growth_points.csv"
FOLDER = Path(__file__).parents[1] / "docs" / "results"
N_FEATURES, SIDE, BATCH_SIZE, EPOCHS = 32, 8, 128, 2
PENALTIES = {"frobenius", "projection", "spectral", "per_layer"}
#: The least MB that a resident size tells from none.
LEAST_MEMORY = 0.25
#: By how much a fitted exponent may exceed the expected one: caches and single processors bend the lines.
TOLERANCE = 0.2


class Sizes(NamedTuple):
    """A perceptron's sizes and the number of samples; with channels it is a convolutional network instead."""

    width: int = 64
    depth: int = 2
    samples: int = 1000
    classes: int = 10
    channels: int = 0


#: The sizes beside the one that an axis changes, and those of a quick run.
USUAL = Sizes()
QUICK = Sizes(width=16, samples=50)


class Axis(NamedTuple):
    """A field of `Sizes` with its values, and the exponents of time and memory if nothing is wasted."""

    field: str
    values: tuple[int, ...]
    time: float
    memory: float


#: The weights of a layer between two of equal width are its square; all else is counted once.
AXES = {
    "width": Axis("width", (16, 50, 160, 500, 1600), 2, 2),
    "depth": Axis("depth", (1, 3, 10, 32, 100), 1, 1),
    "samples": Axis("samples", (100, 320, 1000, 3200, 10_000), 1, 1),
    "classes": Axis("classes", (10, 32, 100, 320, 1000), 1, 1),
    "parameters": Axis("channels", (8, 14, 25, 45, 80), 1, 1),
}
TASKS = ("fit", "essential", "cheap", *sorted(PENALTIES))
COLUMNS = (
    "task", "axis", "from", "to", "time at the end [ms]", "time exponent", "expected time exponent",
    "memory at the end [MB]", "memory exponent", "expected memory exponent", "verdict",
)  # fmt: skip


class Point(NamedTuple):
    """Processor seconds and peak MB of a task at one size."""

    size: int
    seconds: float
    megabytes: float


#: A task and the name of an axis -> what was measured, in ascending order.
Series = dict[tuple[str, str], list[Point]]


def network(sizes: Sizes) -> nn.Module:
    """A perceptron of equal layers, or two equal convolutions after a first."""
    torch.manual_seed(0)
    if not sizes.channels:
        hidden = (sizes.width,) * sizes.depth
        return make_network("mlp", (N_FEATURES,), sizes.classes, hidden_layer_sizes=hidden)
    layers: list[nn.Module] = []
    for n_inputs in (1, sizes.channels, sizes.channels):
        layers += [nn.Conv2d(n_inputs, sizes.channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(SIDE), nn.Flatten(), nn.Linear(sizes.channels, sizes.classes))


def data(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Normal inputs with every class in turn."""
    shape = (1, SIDE, SIDE) if sizes.channels else (N_FEATURES,)
    X = np.random.default_rng(0).normal(size=(sizes.samples, *shape)).astype(np.float32)
    return X, np.arange(sizes.samples) % sizes.classes


def prepared(task: str, sizes: Sizes) -> Callable[[], object]:
    """The call that is timed: a fit, all measures of a preset, or one training step with a penalty."""
    X, y = data(sizes)
    if task == "fit":
        model = NetworkClassifier(
            module=lambda input_shape, n_outputs: network(sizes),
            max_epochs=EPOCHS, batch_size=BATCH_SIZE, random_state=0,
        )  # fmt: skip
        return lambda: model.fit(X, y)
    module = network(sizes)
    if task in PENALTIES:
        return penalized(Case("", module, torch.from_numpy(X), torch.from_numpy(y)), task)
    classes = np.arange(sizes.classes)
    return lambda: measure_capacity(module, X, y, task, classes=classes)


def size_of(axis: Axis, value: int, others: Sizes) -> tuple[Sizes, int]:
    """The sizes with one changed, and what is shown on the axis for it."""
    sizes = others._replace(**{axis.field: value})
    if axis.field == "channels":
        return sizes, sum(p.numel() for p in network(sizes).parameters())
    return sizes, value


def series(task: str, axis: Axis, repeats: int = 3, others: Sizes = USUAL) -> list[Point]:
    """Time and memory for all values, in ascending order so that the high-water mark is that of the last.

    Memory is what is resident at most, with data and network, above the process after a small call of the same kind.
    """
    points = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = Sizes(width=8, samples=20, channels=4 if axis.field == "channels" else 0)
        prepared(task, small)()
        reset_peak()
        base = resident("VmRSS")
        for sizes, size in (size_of(axis, value, others) for value in axis.values):
            call = prepared(task, sizes)
            call()
            megabytes = resident("VmHWM") - base
            points.append(Point(size, median_seconds(call, repeats), max(megabytes, LEAST_MEMORY)))
    return points


def in_a_process(task: str, axis: Axis) -> list[Point]:
    """The series from a new process, whose heap nothing has used."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as fresh:
        return fresh.apply(series, (task, axis))


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median processor time of calls."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size) by least squares, over the last decade.

    Examples
    --------
    >>> round(exponent([1, 10, 20, 100], [7, 100, 400, 10000]), 6)
    2.0
    """
    x, y = np.log(sizes), np.log(values)
    last = x >= x[-1] - np.log(10) * 1.01  # the steps of a decade are rounded
    return float(np.polyfit(x[last], y[last], 1)[0])


def row(task: str, name: str, axis: Axis, points: Sequence[Point]) -> dict[str, object]:
    """A line of the table."""
    sizes, seconds, megabytes = zip(*points, strict=True)
    slopes = exponent(sizes, seconds), exponent(sizes, megabytes)
    faster = [
        quantity
        for quantity, slope, expected in zip(("time", "memory"), slopes, axis[2:], strict=True)
        if slope > expected + TOLERANCE
    ]
    cells = (
        task, name, sizes[0], sizes[-1], f"{1000 * seconds[-1]:.1f}", f"{slopes[0]:z.2f}", f"{axis.time:g}",
        f"{megabytes[-1]:.1f}", f"{slopes[1]:z.2f}", f"{axis.memory:g}",
        f"{' and '.join(faster)} above" if faster else "ok",
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def read_points(path: Path) -> Series:
    """The points of earlier series; none without the file."""
    measured: Series = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                point = Point(int(line["size"]), float(line["seconds"]), float(line["megabytes"]))
                measured.setdefault((line["task"], line["axis"]), []).append(point)
    return measured


def write(measured: Series, folder: Path) -> None:
    """The points and the table."""
    order = [(task, name, axis) for task in TASKS for name, axis in AXES.items() if (task, name) in measured]
    rows = [row(task, name, axis, measured[task, name]) for task, name, axis in order]
    with (folder / "growth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with (folder / POINTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "axis", *Point._fields))
        for task, name, _ in order:
            writer.writerows((task, name, *point) for point in measured[task, name])


def plot(measured: Series, path: Path) -> None:
    """Time above, memory below, an axis a column, a line a task; dashed: the expected slope."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(AXES), 6.4), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharey="row")
    for column, (name, axis) in enumerate(AXES.items()):
        for above, (field, slope) in enumerate((("seconds", axis.time), ("megabytes", axis.memory))):
            ax = grid[above, column]
            tasks = [task for task in TASKS if (task, name) in measured]
            for task in tasks:
                points = measured[task, name]
                ax.loglog([p.size for p in points], [getattr(p, field) for p in points], ".-", label=task)
            ends = np.array([points[0].size, points[-1].size], dtype=float)
            top = max(getattr(measured[task, name][-1], field) for task in tasks)
            ax.loglog(ends, 1.5 * top * (ends / ends[1]) ** slope, "k--", linewidth=1, label="expected slope")
            ax.set_xlabel(name)
    grid[0, 0].set_ylabel("processor time [s]")
    grid[1, 0].set_ylabel("peak memory [MB]")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TASKS) + 1)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> None:
    """Measure all series and write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: docs/results")
    parser.add_argument("--only", action="append", choices=TASKS, help="measure this task anew (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="two small sizes an axis, all in this process")
    options = parser.parse_args(arguments)
    measured = read_points(options.output / POINTS) if options.only else {}
    for task in options.only or TASKS:
        for name, axis in AXES.items():
            two = axis._replace(values=axis.values[:2])
            points = series(task, two, 1, QUICK) if options.quick else in_a_process(task, axis)
            measured[task, name] = points
            cells = row(task, name, axis, points)
            print(", ".join(f"{column} {text}" for column, text in cells.items()), file=sys.stderr, flush=True)
            write(measured, options.output)  # after each, so that a run that is stopped leaves what it has
    plot(measured, options.output / "growth.png")


if __name__ == "__main__":
    main()
