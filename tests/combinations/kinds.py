"""The kinds of cases, and how they run."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator

from . import command_lines, estimators, extensions, functions, measures, searches
from .case import Case, Fault

KINDS: dict[str, Callable[[Case], None]] = {
    "estimators": estimators.run_case,
    "measures": measures.run_case,
    "functions": functions.run_case,
    "extensions": extensions.run_case,
    "searches": searches.run_case,
    "command_lines": command_lines.run_case,
}


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """In a separate folder, since some parameters name files."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run(kind: str, seed: int, numbers: Iterable[int]) -> tuple[list[tuple[int, str, str]], dict[str, int]]:
    """The faults of these cases, as (number, choices, what is wrong), and how many calls were answered and refused."""
    faults, totals = [], {"answered": 0, "refused": 0}
    with _elsewhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that torch no longer recommends
        for number in numbers:
            case = Case(seed, number)
            try:
                KINDS[kind](case)
            except Fault as fault:
                faults.append((number, ", ".join(case.choices), str(fault)))
            totals["answered"] += case.answered
            totals["refused"] += case.refused
    extensions.close_cluster()
    return faults, totals
