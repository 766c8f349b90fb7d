"""Run a function in a separate process and kill it at a random moment, until it finishes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any


def run_and_kill(function: Callable[[], Any], n_kills: int, longest: float, seed: int = 0) -> int:
    """Kill (SIGKILL) `n_kills` processes that run the function, then let one finish; return how many were killed.

    Processes are forked, so that each starts at once with everything imported.
    """
    draw, killed = random.Random(seed), 0
    context = multiprocessing.get_context("fork")
    while True:
        process = context.Process(target=_quietly, args=(function,))
        process.start()
        if killed < n_kills:
            time.sleep(draw.uniform(0, longest))
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        if process.exitcode == -signal.SIGKILL:
            killed += 1
        elif process.exitcode == 0:
            return killed
        else:
            raise RuntimeError(f"the process ended with {process.exitcode}")


def _quietly(function: Callable[[], Any]) -> None:
    function()
    os._exit(0)  # nothing of the parent's is to be cleaned up twice
