"""`python -m benchmarks`: run every `bench_*.py` of this folder and print one table of ratios.

Each file has ``run()``, which returns or yields rows with the keys kernel, ours and peer (seconds), ratio, target (the
largest acceptable ratio, or None) and note. It imports its peers itself, so that the other rows of the table do not
need them. Everything runs on one torch thread; milliseconds depend on the machine, ratios hardly do.
`--output FILE.csv` also writes the table, and what it ran with in `FILE_versions.csv`: the documentation shows both.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
COLUMNS = ("kernel", "ours [ms]", "peer [ms]", "ratio", "target", "verdict", "note")
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


def cells(row: dict) -> tuple[str, ...]:
    """The texts of a row, one per column."""
    target = row.get("target")
    return (
        str(row["kernel"]),
        *("" if math.isnan(row[side]) else f"{1000 * row[side]:.2f}" for side in ("ours", "peer")),
        f"{row['ratio']:.2f}",
        "" if target is None else f"{target:.2f}",
        verdict(row),
        str(row.get("note") or ""),
    )


def table(rows: Iterable[dict]) -> str:
    """The rows as aligned text."""
    texts = [COLUMNS, *map(cells, rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(COLUMNS))]
    lines = []
    for line in texts:
        numbers = [cell.rjust(width) for cell, width in zip(line[1:5], widths[1:5], strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *numbers, line[5].ljust(widths[5]), line[6]]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def versions() -> list[tuple[str, str]]:
    """What the rows depend on: the packages, Python and the instructions that torch uses."""

    def installed(package: str) -> str:
        try:
            return version(package).partition("+")[0]
        except PackageNotFoundError:
            return "not installed"

    surroundings = [("Python", sys.version.split()[0]), ("instructions", torch.backends.cpu.get_cpu_capability())]
    return [*((package, installed(package)) for package in PACKAGES), *surroundings]


def write(rows: Iterable[dict], path: Path) -> None:
    """The rows as csv, and in a second file beside it the versions."""
    tables = {path: [COLUMNS, *map(cells, rows)], versions_path(path): [("package", "version"), *versions()]}
    for file_path, lines in tables.items():
        with file_path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


def versions_path(path: Path) -> Path:
    """The file of versions that belongs to a table."""
    return path.with_name(f"{path.stem}_versions.csv")


def main(arguments: list[str] | None = None) -> int:
    """Run the selected benchmarks; the exit status is 1 with `--strict` if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=benchmark_names(), help="run this one (may be repeated)")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table to this file, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict] = []
    for name in options.only or benchmark_names():
        start = time.perf_counter()
        for row in importlib.import_module(f"benchmarks.bench_{name}").run():
            rows.append(row)
            print(f"{row['kernel']}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if options.output is not None:  # after each, so that a run that is stopped leaves what it has
            write(rows, options.output)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread; ratios are ours / peer, medians of pairs\n")
    print(table(rows))
    missed = [row["kernel"] for row in rows if verdict(row) == "MISSED"]
    if missed:
        print(f"\n{len(missed)} of {len(rows)} rows missed their target: {', '.join(map(str, missed))}")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
