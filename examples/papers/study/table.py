"""A csv file with one row per finished cell, so that a stopped study can resume."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CellTable"]


class CellTable:
    """Rows of a csv file: the settings that identify a cell, then its results.

    Numbers and lists of numbers are written as JSON with 8 digits. A row is on disk when `add` returns; one that was
    cut off by a crash is removed when the file is opened again.
    """

    def __init__(self, path: Path, settings: list[str]) -> None:
        self.path, self.settings = path, settings
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        if not text.endswith(b"\n") and text:
            os.truncate(path, text.rfind(b"\n") + 1)
        self._header: list[str] = []
        self._rows: dict[tuple[str, ...], list[str]] = {}
        self._read()

    def _read(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open(newline="") as file:
            self._header, *lines = csv.reader(file)
        if self._header[: len(self.settings)] != self.settings:
            raise ValueError(
                f"{self.path} must have the settings {', '.join(self.settings)} in its first columns, got "
                f"{', '.join(self._header)}. It is of another version of the study: pass another --output."
            )
        self._rows = {tuple(line[: len(self.settings)]): line[len(self.settings) :] for line in lines}

    def find(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The results of a cell, or None if it has not run yet."""
        values = self._rows.get(self._key(settings))
        if values is None:
            return None
        names = self._header[len(self.settings) :]
        return {name: json.loads(value) for name, value in zip(names, values, strict=True)}

    def add(self, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Append a cell."""
        header = [*self.settings, *results]
        if self._header and header != self._header:
            raise ValueError(f"{self.path} must get the results {self._header}, got {header}: pass another --output.")
        key, values = self._key(settings), [json.dumps(_rounded(value)) for value in results.values()]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(([] if self._header else [header]) + [[*key, *values]])
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.getvalue().encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._header, self._rows[key] = header, values

    def _key(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(settings[name]) for name in self.settings)


def _rounded(value: Any) -> Any:
    if np.ndim(value):
        return [_rounded(part) for part in value]
    return float(f"{float(value):.8g}")
