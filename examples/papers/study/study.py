"""A study: the cells of a grid, what one cell does, the figure and the claims.

Every script has the same options. Files in the folder ``--output``, for a script ``eg_figure_1.py`` at scale small:
``eg_figure_1_small.csv`` (a row per cell: its settings, results and CPU seconds), ``.png`` and ``.json`` (the verdict).
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from .images import load_images
from .table import CellTable
from .verdict import Verdict, judge

__all__ = ["Study"]

SCALES = ("tiny", "small", "paper")
SEEDS = {"tiny": [0, 1], "small": [0, 1, 2], "paper": [0, 1, 2, 3, 4]}


@dataclass(frozen=True)
class Study:
    """A figure or a table of a paper.

    Parameters
    ----------
    paper : str
        Where it is, such as "[EG] figure 1".
    statement : str
        What the paper says about it, in a sentence.
    data : {"mnist", "cifar10"}, tuple of these, or None
        Data set, or several, each with all cells. None: `run` generates its data, and gets None.
    scales : dict
        For each of tiny, small and paper, the settings: a value, or a list of the values of a grid. A list of such
        dicts is the union of their grids. A function ``settings(seed)`` gives each seed its cells.
    run : callable
        ``run(data, *, seed, device, **settings) -> dict`` of results: numbers and lists of numbers. One cell.
    draw : callable
        ``draw(rows, figure)`` fills a matplotlib figure from a DataFrame with one row per cell.
    claims : callable
        ``claims(rows) -> {text: one number per seed, positive if the claim holds}``.
    summarize : callable, optional
        ``summarize(rows) -> DataFrame``, written as ``<name>_<scale>_summary.csv``.
    remark : str, default=""
        What else a reader of the verdict should know, such as why a claim fails.
    """

    paper: str
    statement: str
    data: str | tuple[str, ...] | None
    scales: Mapping[str, Any]
    run: Callable[..., Mapping[str, Any]]
    draw: Callable[[pd.DataFrame, Any], None]
    claims: Callable[[pd.DataFrame], Mapping[str, Sequence[float]]]
    summarize: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    remark: str = ""

    @property
    def name(self) -> str:
        """The name of the script."""
        return Path(inspect.getfile(self.run)).stem

    def main(self, arguments: Sequence[str] | None = None) -> Verdict:
        """Run the cells that have not run yet, draw the figure and print the verdict."""
        options = self._parse(arguments)
        data = self._load(options.data or ("digits" if options.scale == "tiny" else "fetch"))
        cells = [
            {"scale": options.scale, "data": label, "seed": seed, **settings}
            for seed in options.seeds or SEEDS[options.scale]
            for settings in _grid(self.scales[options.scale], seed)
            for label in data
        ]
        stem = options.output / f"{self.name}_{options.scale}"
        table = CellTable(stem.with_suffix(".csv"), list(cells[0]))
        self._run_cells(cells, table, data, options)
        rows = pd.DataFrame([{**cell, **(table.find(cell) or {})} for cell in cells])
        self._plot(rows, stem.with_suffix(".png"))
        if self.summarize is not None:
            summary = self.summarize(rows)
            summary.to_csv(f"{stem}_summary.csv", index=False, float_format="%.6g", lineterminator="\n")
        verdict = judge(self.claims(rows))
        self._write(verdict, rows, stem.with_suffix(".json"))
        print(f"{self.paper}, {options.scale}: {verdict}\n{verdict.details()}", flush=True)
        return verdict

    def _parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        description = f"{self.paper}: {self.statement}".replace("%", "%%")  # argparse fills in %(prog)s
        parser = argparse.ArgumentParser(prog=f"{self.name}.py", description=description)
        parser.add_argument("--scale", choices=SCALES, default="small")
        parser.add_argument(
            "--data",
            metavar="fetch|digits|PATH",
            help="OpenML, scikit-learn's digits, an npz file with X and y, or a folder of mnist*.npz and cifar10*.npz "
            "(default: digits at scale tiny, else fetch; generated data needs none)",
        )
        parser.add_argument("--device", default="auto")
        parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
        parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2 at scale small")
        parser.add_argument("--output", type=Path, default=Path("studies"), help="folder for csv, figure and verdict")
        return parser.parse_args(arguments)

    def _load(self, source: str) -> dict[str, Any]:
        """The data sets by their labels."""
        if self.data is None:
            return {"generated": None}
        names = (self.data,) if isinstance(self.data, str) else self.data
        return {label: images for images, label in (load_images(name, source) for name in names)}

    def _run_cells(self, cells: list[dict], table: CellTable, data: dict, options: argparse.Namespace) -> None:
        todo = [cell for cell in cells if table.find(cell) is None]
        parallel = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")
        finished = parallel(
            joblib.delayed(_run_cell)(self.run, data[cell["data"]], options.device, cell) for cell in todo
        )
        progress = tqdm(finished, self.name, total=len(cells), initial=len(cells) - len(todo), unit="cell")
        for cell, results in progress:
            table.add(cell, results)

    def _plot(self, rows: pd.DataFrame, path: Path) -> None:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(rows, figure)
        with matplotlib.rc_context({"axes.formatter.min_exponent": 3}):  # 0.3, not 3 x 10^-1: such labels overlap
            figure.savefig(path, dpi=100)

    def _write(self, verdict: Verdict, rows: pd.DataFrame, path: Path) -> None:
        document = {
            "study": self.name,
            "paper": self.paper,
            "statement": self.statement,
            "scale": rows["scale"].iloc[0],
            "data": ", ".join(rows["data"].unique()),
            "seeds": sorted(map(int, rows["seed"].unique())),
            "cells": len(rows),
            "cpu_seconds": round(float(rows["cpu_seconds"].sum()), 1),
            **verdict._asdict(),
            "remark": self.remark,
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def _grid(settings: Any, seed: int) -> list[dict[str, Any]]:
    """All combinations; the last setting changes fastest."""
    if callable(settings):
        return _grid(settings(seed), seed)
    if not isinstance(settings, Mapping):
        return [cell for part in settings for cell in _grid(part, seed)]
    values = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*values)]


def _run_cell(run: Callable, data: Any, device: str, cell: dict[str, Any]) -> tuple[dict, dict]:
    settings = {name: value for name, value in cell.items() if name not in ("scale", "data")}
    start = time.process_time()
    results = dict(run(data, device=device, **settings))
    return cell, {**results, "cpu_seconds": time.process_time() - start}
