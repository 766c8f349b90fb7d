"""Rows of the table, and timing two callables fairly: interleaved runs, medians, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["PairedMedians", "measure_row", "memory_row", "paired_medians", "ratio_row"]


class PairedMedians(NamedTuple):
    """Median seconds of two callables and the median of their paired ratios."""

    first: float
    second: float
    ratio: float


def paired_medians(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int = 7,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> PairedMedians:
    """Time two callables in turn, so that a slow phase of the machine affects both.

    Which one goes first alternates; the ratio is the median over the pairs, not the ratio of the medians, since the two
    runs of a pair stand closest in time. The clock counts the processor's time: on one thread that is what the wall
    clock of a quiet machine shows, and others' work on the same cores moves it by per cents rather than by half.

    Examples
    --------
    >>> ticks = iter(range(100))
    >>> paired_medians(lambda: None, lambda: None, 3, clock=lambda: next(ticks))
    PairedMedians(first=1, second=1, ratio=1.0)
    """
    for _ in range(warm_up):
        first()
        second()
    pairs = []
    for turn in range(repeats):
        seconds = [0.0, 0.0]
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = clock()
            (first, second)[which]()
            seconds[which] = clock() - start
        pairs.append(seconds)
    return PairedMedians(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def measure_row(
    kernel: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    target: float | None = None,
    note: str = "",
    repeats: int = 7,
) -> dict[str, object]:
    """One row of the table: our time over the peer's, and the ratio it must not exceed."""
    times = paired_medians(ours, peer, repeats)
    row = ratio_row(kernel, times.first, times.second, target=target, note=note)
    return {**row, "ratio": times.ratio}


def ratio_row(
    kernel: str, ours: float, peer: float, *, target: float | None = None, note: str = ""
) -> dict[str, object]:
    """One row of the table, from seconds that are known."""
    return {"kernel": kernel, "ours": ours, "peer": peer, "ratio": ours / peer, "target": target, "note": note}


def memory_row(
    kernel: str, ours: float, peer: float, *, target: float | None = None, note: str = ""
) -> dict[str, object]:
    """One row of the table, from bytes: MB stand in the columns of milliseconds."""
    return ratio_row(kernel, ours / 1e9, peer / 1e9, target=target, note=f"MB, {note}")
