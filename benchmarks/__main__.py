"""`python -m benchmarks`: run every `bench_*.py` of this folder and print one table of ratios.

Each file has ``run()``, which returns or yields rows with the keys kernel, ours and peer (seconds), ratio, target (the
largest acceptable ratio, or None) and note. It imports its peers itself, so that the other rows of the table do not
need them. Everything runs on one torch thread; milliseconds depend on the machine, ratios hardly do.

`--output FILE.csv` also writes the table, and what it ran with in `FILE_versions.csv`: the documentation shows both. It
is written after each benchmark, replaces the rows of those that run and keeps the others; with `--resume` those that
the file has do not run again. So a run that was stopped can go on, and one benchmark can be measured anew.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
COLUMNS = ("benchmark", "kernel", "ours [ms]", "peer [ms]", "ratio", "target", "verdict", "note")
#: The texts of a row, one per column.
Line = tuple[str, ...]
#: What the rows are computed with, by the names of the distributions.
PACKAGES = (
    "torch", "numpy", "scipy", "scikit-learn", "skorch", "curvlinops-for-pytorch", "backpack-for-pytorch", "nngeometry",
)  # fmt: skip


def benchmark_names(folder: Path = FOLDER) -> list[str]:
    """Names of the benchmarks: the parts of the file names after `bench_`."""
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def verdict(row: dict) -> str:
    """Whether a row met its target."""
    if row.get("target") is None:
        return ""
    return "ok" if row["ratio"] <= row["target"] else "MISSED"


def cells(name: str, row: dict) -> Line:
    """The texts of a row of a benchmark, one per column."""
    target = row.get("target")
    return (
        name,
        str(row["kernel"]),
        *("" if math.isnan(row[side]) else f"{1000 * row[side]:.2f}" for side in ("ours", "peer")),
        f"{row['ratio']:.2f}",
        "" if target is None else f"{target:.2f}",
        verdict(row),
        str(row.get("note") or ""),
    )


def table(lines: Sequence[Line]) -> str:
    """The lines as aligned text, numbers to the right."""
    texts = [COLUMNS, *lines]
    widths = [max(len(line[i]) for line in texts) for i in range(len(COLUMNS))]
    aligned = [
        "  ".join(
            text.rjust(width) if 2 <= i < 6 else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    ]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def versions() -> list[tuple[str, str]]:
    """What the rows depend on: the packages, Python and the instructions that torch uses."""

    def installed(package: str) -> str:
        try:
            return version(package).partition("+")[0]
        except PackageNotFoundError:
            return "not installed"

    surroundings = [("Python", sys.version.split()[0]), ("instructions", torch.backends.cpu.get_cpu_capability())]
    return [*((package, installed(package)) for package in PACKAGES), *surroundings]


def write(lines: Sequence[Line], path: Path) -> None:
    """The table as csv, and in a second file beside it the versions."""
    for file_path, content in ((path, [COLUMNS, *lines]), (versions_path(path), [("package", "version"), *versions()])):
        with file_path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(content)


def read(path: Path) -> list[Line]:
    """The lines of an earlier table; none without the file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = (tuple(line) for line in csv.reader(file))
    if header != COLUMNS:
        raise SystemExit(f"{path} has other columns than {', '.join(COLUMNS)}. Name another file, or remove it.")
    return lines


def versions_path(path: Path) -> Path:
    """The file of versions that belongs to a table."""
    return path.with_name(f"{path.stem}_versions.csv")


def main(arguments: list[str] | None = None) -> int:
    """Run the selected benchmarks; the exit status is 1 with `--strict` if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=benchmark_names(), help="run this one (may be repeated)")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table to this file, too")
    parser.add_argument("--resume", action="store_true", help="skip benchmarks whose rows are in the output already")
    options = parser.parse_args(arguments)
    if options.resume and options.output is None:
        parser.error("--resume needs the --output of the run that was stopped")
    torch.set_num_threads(1)
    lines = [] if options.output is None else read(options.output)
    done = {line[0] for line in lines} if options.resume else set()
    for name in options.only or benchmark_names():
        if name in done:
            continue
        start = time.perf_counter()
        measured = [_shown(cells(name, row)) for row in importlib.import_module(f"benchmarks.bench_{name}").run()]
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        lines = sorted([*(line for line in lines if line[0] != name), *measured], key=lambda line: line[0])
        if options.output is not None:
            write(lines, options.output)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread; ratios are ours / peer, medians of pairs\n")
    print(table(lines))
    missed = [f"{line[1]} ({line[-1]})" if line[-1] else line[1] for line in lines if line[-2] == "MISSED"]
    if missed:
        print(f"\n{len(missed)} of {len(lines)} rows missed their target:", *missed, sep="\n  ")
    return 1 if missed and options.strict else 0


def _shown(line: Line) -> Line:
    """The line, of which kernel and ratio are printed as soon as they are there."""
    print(f"{line[1]}: {line[4]}", file=sys.stderr, flush=True)
    return line


if __name__ == "__main__":
    sys.exit(main())
