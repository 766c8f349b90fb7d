"""The benchmark runner: fair pairs, honest verdicts."""

from __future__ import annotations

import csv
import doctest
import importlib
import inspect
import math
from pathlib import Path

import pytest

from benchmarks import bench_sam, timing
from benchmarks.__main__ import COLUMNS, PACKAGES, benchmark_names, main, table, verdict, versions_path
from benchmarks.timing import measure_row, paired_medians
from structure import ROOT

SHOWN = ROOT / "docs" / "results" / "benchmarks.csv"


class Clock:
    """A clock that moves only when a callable says how long it took."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def task(self, name, durations):
        durations = iter(durations)

        def run():
            self.order.append(name)
            self.now += next(durations)

        return run


def test_paired_medians_alternate_and_pair():
    clock = Clock()
    # The machine slows down a hundredfold in the second pair: the ratio of each pair stays 2.
    first = clock.task("first", [9, 2, 200, 2])
    second = clock.task("second", [9, 1, 100, 1])
    times = paired_medians(first, second, 3, clock=lambda: clock.now)
    assert times == (2, 1, 2)
    assert clock.order == ["first", "second"] + ["first", "second", "second", "first", "first", "second"]


def test_example_of_timing():
    assert doctest.testmod(timing).failed == 0


def test_a_row_has_the_agreed_keys():
    row = measure_row("sum", lambda: sum(range(1000)), lambda: sum(range(1000)), target=1e9, note="n", repeats=3)
    assert set(row) == {"kernel", "ours", "peer", "ratio", "target", "note"}
    assert verdict(row) == "ok"


@pytest.mark.parametrize(("ratio", "target", "expected"), [(1.2, 1.2, "ok"), (1.21, 1.2, "MISSED"), (9.0, None, "")])
def test_verdict(ratio, target, expected):
    row = {"kernel": "k", "ours": 0.5, "peer": 0.25, "ratio": ratio, "target": target}
    assert verdict(row) == expected
    assert f"{ratio:.2f}" in table([row])
    assert "500.00" in table([row])


def test_every_benchmark_file_has_run():
    for name in benchmark_names():
        run = importlib.import_module(f"benchmarks.bench_{name}").run
        assert not inspect.signature(run).parameters, name


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "no_such_thing"])
    assert "invalid choice" in capsys.readouterr().err


def lines_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_table_is_written_with_its_versions(monkeypatch, tmp_path, capsys):
    lost = {"kernel": "a, b", "ours": 0.3, "peer": 0.1, "ratio": 3.0, "target": 1.2, "note": "by hand"}
    monkeypatch.setattr(
        bench_sam, "run", lambda: iter([lost, lost | {"ratio": 0.5, "target": None, "note": "", "ours": math.nan}])
    )
    assert main(["--only", "sam", "--output", str(tmp_path / "t.csv")]) == 0
    assert lines_of(tmp_path / "t.csv") == [
        list(COLUMNS),
        ["a, b", "300.00", "100.00", "3.00", "1.20", "MISSED", "by hand"],
        ["a, b", "", "100.00", "0.50", "", "", ""],
    ]
    header, *installed = lines_of(tmp_path / "t_versions.csv")
    assert header == ["package", "version"]
    assert dict(installed)["torch"] == importlib.import_module("torch").__version__.partition("+")[0]
    assert "1 of 2 rows missed their target: a, b" in capsys.readouterr().out


def test_the_shown_table_says_which_rows_lose():
    header, *rows = lines_of(SHOWN)
    assert header == list(COLUMNS)
    for kernel, _, _, ratio, target, shown, _ in rows:
        # both are rounded to a hundredth, so that equal ones may be either
        if target and ratio != target:
            assert shown == ("ok" if float(ratio) < float(target) else "MISSED"), kernel
        assert bool(target) == bool(shown), kernel
    assert {package for package, _ in lines_of(versions_path(SHOWN))[1:]} >= set(PACKAGES)
