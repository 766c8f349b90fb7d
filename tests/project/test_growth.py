"""The benchmark of growth: its slopes, its verdicts and its table."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import AXES, COLUMNS, TASKS, Point
from benchmarks.memory import STATUS


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "growth.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def faults(rows: list[dict[str, str]]) -> list[str]:
    """What is wrong with the form of a table."""
    wrong = [] if all(tuple(row) == COLUMNS for row in rows) else ["columns"]
    if [(row["task"], row["axis"]) for row in rows] != [(task, name) for task in TASKS for name in AXES]:
        wrong.append("a row for every task and axis, in their order")
    for row in rows:
        excess = {q: float(row[f"{q} exponent"]) - float(row[f"expected {q} exponent"]) for q in ("time", "memory")}
        above = [quantity for quantity, slope in excess.items() if slope > growth.TOLERANCE]
        # an exponent is rounded to a hundredth, so that one at the tolerance may be either
        at_it = any(abs(slope - growth.TOLERANCE) < 0.011 for slope in excess.values())
        if not at_it and row["verdict"] != (f"{' and '.join(above)} above" if above else "ok"):
            wrong.append(f"verdict of {row}")
        if not 0 < float(row["from"]) < float(row["to"]) or float(row["memory at the end [MB]"]) <= 0:
            wrong.append(f"sizes of {row}")
    return wrong


def test_the_exponent_is_that_of_the_last_decade():
    assert doctest.testmod(growth).failed == 0


@pytest.mark.parametrize(
    ("time", "memory", "verdict"),
    [(1, 1, "ok"), (2, 1, "time above"), (1, 2, "memory above"), (2, 3, "time and memory above"), (0, 0, "ok")],
)
def test_what_grows_faster_is_said(time, memory, verdict):
    points = [Point(size, 1e-3 * size**time, 2.0 * size**memory) for size in (1, 3, 10, 32, 100)]
    row = growth.row("fit", "depth", AXES["depth"], points)
    assert row["verdict"] == verdict
    assert (row["time exponent"], row["memory exponent"]) == (f"{time:.2f}", f"{memory:.2f}")
    assert (row["from"], row["to"], row["time at the end [ms]"]) == (1, 100, f"{100**time:.1f}")


def test_values_span_two_decades():
    for name, axis in AXES.items():
        sizes = [growth.size_of(axis, value, growth.USUAL)[1] for value in axis.values]
        assert sizes[-1] >= 80 * sizes[0], name


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from Linux's /proc")
def test_a_quick_run_writes_table_and_plot(tmp_path):
    growth.main(["--quick", "--output", str(tmp_path)])
    assert faults(table(tmp_path)) == []
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_one_task_anew_keeps_the_points_of_the_others(tmp_path, monkeypatch):
    kept = {(task, name): [Point(10, 2.0, 3.0), Point(100, 4.0, 5.0)] for task in TASKS for name in AXES}
    growth.write(kept, tmp_path)
    assert growth.read_points(tmp_path / growth.POINTS) == kept
    anew = [Point(10, 7.0, 3.0), Point(100, 70.0, 3.0)]
    monkeypatch.setattr(growth, "in_a_process", lambda task, axis: anew)
    monkeypatch.setattr(growth, "plot", lambda measured, path: None)
    growth.main(["--only", "cheap", "--output", str(tmp_path)])
    expected = {key: anew if key[0] == "cheap" else points for key, points in kept.items()}
    assert growth.read_points(tmp_path / growth.POINTS) == expected
    assert {row["time exponent"] for row in table(tmp_path) if row["task"] == "cheap"} == {"1.00"}


def test_the_shown_table_is_that_of_the_shown_points(tmp_path):
    growth.write(growth.read_points(growth.FOLDER / growth.POINTS), tmp_path)
    assert table(tmp_path) == table(growth.FOLDER)


def test_the_shown_table_has_the_form():
    assert faults(table(growth.FOLDER)) == []
