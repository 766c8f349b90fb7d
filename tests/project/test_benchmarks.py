"""The benchmark runner: fair pairs, honest verdicts."""

from __future__ import annotations

import csv
import doctest
import importlib
import inspect
import math
from pathlib import Path

import pytest

from benchmarks import __main__ as main_module
from benchmarks import bench_fit, bench_sam, timing
from benchmarks.__main__ import COLUMNS, PACKAGES, benchmark_names, cells, main, table, verdict, versions_path
from benchmarks.timing import measure_row, memory_row, paired_medians
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


def test_a_row_of_memory_shows_megabytes():
    row = memory_row("search", 3e6, 2e6, target=1.4, note="two workers")
    assert cells("dask", row) == ("dask", "search", "3.00", "2.00", "1.50", "1.40", "MISSED", "MB, two workers")


@pytest.mark.parametrize(("ratio", "target", "expected"), [(1.2, 1.2, "ok"), (1.21, 1.2, "MISSED"), (9.0, None, "")])
def test_verdict(ratio, target, expected):
    row = {"kernel": "k", "ours": 0.5, "peer": 0.25, "ratio": ratio, "target": target}
    assert verdict(row) == expected
    assert f"{ratio:.2f}" in table([cells("sam", row)])
    assert "500.00" in table([cells("sam", row)])


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


LOST = {"kernel": "a, b", "ours": 0.3, "peer": 0.1, "ratio": 3.0, "target": 1.2, "note": "by hand"}


def replaced(monkeypatch, bench, *rows):
    """Give a benchmark these rows instead of its own."""
    monkeypatch.setattr(bench, "run", lambda: iter(rows))


def test_the_table_is_written_with_its_versions(monkeypatch, tmp_path, capsys):
    replaced(monkeypatch, bench_sam, LOST, LOST | {"ratio": 0.5, "target": None, "note": "", "ours": math.nan})
    assert main(["--only", "sam", "--output", str(tmp_path / "t.csv")]) == 0
    assert lines_of(tmp_path / "t.csv") == [
        list(COLUMNS),
        ["sam", "a, b", "300.00", "100.00", "3.00", "1.20", "MISSED", "by hand"],
        ["sam", "a, b", "", "100.00", "0.50", "", "", ""],
    ]
    header, *installed = lines_of(tmp_path / "t_versions.csv")
    assert header == ["package", "version"]
    assert dict(installed)["torch"] == importlib.import_module("torch").__version__.partition("+")[0]
    assert "1 of 2 rows missed their target:\n  a, b (by hand)" in capsys.readouterr().out
    assert main(["--only", "sam", "--strict"]) == 1


def test_a_run_replaces_its_rows_and_keeps_the_others(monkeypatch, tmp_path, capsys):
    output = ["--output", str(tmp_path / "t.csv")]
    replaced(monkeypatch, bench_sam, LOST)
    replaced(monkeypatch, bench_fit, LOST | {"ratio": 1.0})
    main(["--only", "sam", *output])
    main(["--only", "fit", *output])
    replaced(monkeypatch, bench_sam, LOST | {"ratio": 2.0})
    capsys.readouterr()
    main(["--only", "sam", *output])
    rows = [(line[0], line[4]) for line in lines_of(tmp_path / "t.csv")[1:]]
    assert rows == [("fit", "1.00"), ("sam", "2.00")]
    shown = capsys.readouterr().out
    assert "by hand" in shown and "1.00" in shown and "2.00" in shown


def test_a_run_that_was_stopped_goes_on(monkeypatch, tmp_path):
    names, seen = ["fit", "sam"], []
    monkeypatch.setattr(main_module, "benchmark_names", lambda: names)
    options = ["--output", str(tmp_path / "t.csv"), "--resume"]

    def stopped():
        yield LOST
        raise KeyboardInterrupt

    def once(name):
        seen.append(name)
        return [LOST]

    monkeypatch.setattr(bench_fit, "run", lambda: once("fit"))
    monkeypatch.setattr(bench_sam, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(options)
    monkeypatch.setattr(bench_sam, "run", lambda: once("sam"))
    main(options)
    main(options)
    assert seen == ["fit", "sam"]
    assert [line[0] for line in lines_of(tmp_path / "t.csv")[1:]] == ["fit", "sam"]


def test_what_cannot_be_resumed_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--resume"])
    assert "--resume needs the --output" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("kernel,time\nx,1\n")
    with pytest.raises(SystemExit, match="has other columns than benchmark, kernel"):
        main(["--output", str(tmp_path / "t.csv"), "--only", "sam"])
    assert (tmp_path / "t.csv").read_text() == "kernel,time\nx,1\n"


def test_the_shown_table_says_which_rows_lose():
    header, *rows = lines_of(SHOWN)
    assert header == list(COLUMNS)
    assert {name for name, *_ in rows} == set(benchmark_names())
    for _, kernel, _, _, ratio, target, shown, _ in rows:
        # both are rounded to a hundredth, so that equal ones may be either
        if target and ratio != target:
            assert shown == ("ok" if float(ratio) < float(target) else "MISSED"), kernel
        assert bool(target) == bool(shown), kernel
    assert {package for package, _ in lines_of(versions_path(SHOWN))[1:]} >= set(PACKAGES)
