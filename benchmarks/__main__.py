"""`python -m benchmarks`: run every `bench_*.py` of this folder and print one table of ratios.

Each file has ``run()``, which returns or yields rows with the keys kernel, ours and peer (seconds), ratio, target (the
largest acceptable ratio, or None) and note. It imports its peers itself, so that the other rows of the table do not
need them. Everything runs on one torch thread; milliseconds depend on the machine, ratios hardly do.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
COLUMNS = ("kernel", "ours [ms]", "peer [ms]", "ratio", "target", "", "note")


def benchmark_names(folder: Path = FOLDER) -> list[str]:
    """Names of the benchmarks: the parts of the file names after `bench_`."""
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def verdict(row: dict) -> str:
    """Whether a row met its target."""
    if row.get("target") is None:
        return ""
    return "ok" if row["ratio"] <= row["target"] else "MISSED"


def table(rows: Iterable[dict]) -> str:
    """The rows as aligned text."""
    cells = [COLUMNS]
    for row in rows:
        target = row.get("target")
        cells.append(
            (
                str(row["kernel"]),
                f"{1000 * row['ours']:.2f}",
                f"{1000 * row['peer']:.2f}",
                f"{row['ratio']:.2f}",
                "" if target is None else f"{target:.2f}",
                verdict(row),
                str(row.get("note") or ""),
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = []
    for line in cells:
        numbers = [cell.rjust(width) for cell, width in zip(line[1:5], widths[1:5], strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *numbers, line[5].ljust(widths[5]), line[6]]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    """Run the selected benchmarks; the exit status is 1 with `--strict` if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=benchmark_names(), help="run this one (may be repeated)")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict] = []
    for name in options.only or benchmark_names():
        start = time.perf_counter()
        for row in importlib.import_module(f"benchmarks.bench_{name}").run():
            rows.append(row)
            print(f"{row['kernel']}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread; ratios are ours / peer, medians of pairs\n")
    print(table(rows))
    missed = [row["kernel"] for row in rows if verdict(row) == "MISSED"]
    if missed:
        print(f"\n{len(missed)} of {len(rows)} rows missed their target: {', '.join(map(str, missed))}")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
