"""A csv file with one row per finished fit, so that a stopped study can resume."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


class ResultTable:
    """Rows of a csv file: the settings that identify a fit, and its results.

    Several processes may share the file: each row is appended by one write.
    """

    def __init__(self, path: str | Path, settings: Iterable[str], results: Iterable[str]) -> None:
        self.path, self.settings, self.results = Path(path), tuple(settings), tuple(results)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self) -> list[dict[str, str]]:
        """All complete rows, as text, without truncated lines."""
        if not self.path.exists():
            return []
        names = [*self.settings, *self.results]
        with self.path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if len(line) == len(names) and line != names]
        return [dict(zip(names, line, strict=True)) for line in lines]

    def find(self, **settings: object) -> dict[str, float] | None:
        """The results of a fit, or None if it has not run yet."""
        wanted = [str(settings[name]) for name in self.settings]
        for row in self.rows():
            if [row[name] for name in self.settings] == wanted:
                return {name: float(row[name]) for name in self.results}
        return None

    def add(self, settings: dict[str, object], results: dict[str, float]) -> None:
        """Append a row; it is on disk when this method returns."""
        text = ",".join(str(settings[name]) for name in self.settings)
        text += "," + ",".join(f"{results[name]:.6g}" for name in self.results) + "\n"
        if not self.path.exists():
            text = ",".join([*self.settings, *self.results]) + "\n" + text
        elif not self.path.read_bytes().endswith(b"\n"):
            text = "\n" + text  # the last line was truncated
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (nan for a single value)."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
