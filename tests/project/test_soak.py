"""The check that long runs leave nothing behind: a short run, and leaks that it must detect."""

from __future__ import annotations

import linecache
import mmap
import os
import threading

import psutil
import pytest

from benchmarks import soak
from benchmarks.soak import Usage, faults
from benchmarks.soak_classes import FORWARDS, class_of, one_class


def test_a_short_run_leaves_no_files_or_threads():
    # Memory needs more rounds to settle than a test has time for; `make soak` holds it to 5 %.
    settled, final, result = soak.soak(24, 12, growth=0.15, progress=False)
    assert result == []
    assert settled.memory > 0 and final.threads >= 1


@pytest.mark.filterwarnings("ignore")  # which would be kept by pytest
def test_nothing_is_kept_of_the_classes_of_models():
    kinds = len(FORWARDS)
    _, _, result = soak.soak(4 * kinds, 2 * kinds, growth=0.15, progress=False, one_round=one_class)
    assert result == []


def test_no_two_classes_are_one():
    classes = {class_of(number) for number in range(3 * len(FORWARDS))}
    assert len(classes) == len({cls.__qualname__ for cls in classes}) == 3 * len(FORWARDS)


@pytest.mark.parametrize(
    ("final", "complaint"),
    [
        (Usage(106, 5, 2, 7, 1000), "memory grew"),
        (Usage(100, 6, 2, 7, 1000), "open files grew from 5 to 6"),
        (Usage(100, 5, 3, 7, 1000), "threads grew from 2 to 3"),
        (Usage(100, 5, 2, 8, 1000), "linecache grew from 7 to 8"),
        (Usage(100, 5, 2, 7, 1020), "objects grew from 1000 to 1020 in 20 rounds"),
    ],
)
def test_growth_is_noticed(final, complaint):
    assert faults(Usage(100, 5, 2, 7, 1000), Usage(105, 5, 2, 7, 1019), 20) == []
    (fault,) = faults(Usage(100, 5, 2, 7, 1000), final, 20)
    assert complaint in fault


def test_planted_leaks_are_noticed():
    kept, stop, size = [], threading.Event(), psutil.Process().memory_info().rss // 20

    def leak(turn):
        block = mmap.mmap(-1, size)  # from the system: an allocator may hold that much that other tests have freed
        block.write(bytes([1]) * size)
        kept.append((block, os.open(os.devnull, os.O_RDONLY), threading.Thread(target=stop.wait)))
        kept[-1][2].start()
        linecache.cache[f"planted {turn}"] = (0, None, [], "")

    try:
        _, _, result = soak.soak(8, 2, progress=False, one_round=leak)
    finally:
        stop.set()
        for name in [name for name in linecache.cache if name.startswith("planted")]:
            del linecache.cache[name]
        for _, file, thread in kept:
            os.close(file)
            thread.join()
    assert len(result) == 5
