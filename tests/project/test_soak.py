"""The check that long runs leave nothing behind: a short run of it, and what it must notice."""

from __future__ import annotations

import mmap
import os
import threading

import psutil
import pytest

from benchmarks import soak
from benchmarks.soak import Usage, faults


def test_a_short_run_leaves_no_files_or_threads():
    # Memory needs more rounds to settle than a test has time for; `make soak` holds it to 5 %.
    settled, final, found = soak.soak(24, 12, growth=0.15, progress=False)
    assert found == []
    assert settled.memory > 0 and final.threads >= 1


@pytest.mark.parametrize(
    ("final", "complaint"),
    [
        (Usage(106, 5, 2), "memory grew"),
        (Usage(100, 6, 2), "open files grew from 5 to 6"),
        (Usage(100, 5, 3), "threads grew from 2 to 3"),
    ],
)
def test_growth_is_noticed(final, complaint):
    assert faults(Usage(100, 5, 2), Usage(105, 5, 2)) == []
    (fault,) = faults(Usage(100, 5, 2), final)
    assert complaint in fault


def test_planted_leaks_are_noticed(monkeypatch):
    kept, stop, size = [], threading.Event(), psutil.Process().memory_info().rss // 20

    def leak(turn):
        block = mmap.mmap(-1, size)  # from the system: an allocator may hold that much that other tests have freed
        block.write(bytes([1]) * size)
        kept.append((block, os.open(os.devnull, os.O_RDONLY), threading.Thread(target=stop.wait)))
        kept[-1][2].start()

    monkeypatch.setattr(soak, "one_round", leak)
    try:
        _, _, found = soak.soak(8, 2, progress=False)
    finally:
        stop.set()
        for _, file, thread in kept:
            os.close(file)
            thread.join()
    assert len(found) == 3
