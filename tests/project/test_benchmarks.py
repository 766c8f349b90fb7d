"""The benchmark runner: fair pairs, honest verdicts."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

from benchmarks import timing
from benchmarks.__main__ import benchmark_names, main, table, verdict
from benchmarks.timing import measure_row, paired_medians


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
