"""Run checks within a limit of time, and report the outcome of each."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["CHECKS", "Skip", "check", "device_context", "run"]


class Skip(Exception):
    """A check does not apply to a device; the message gives the reason."""


@dataclass(frozen=True)
class Check:
    """A function of a device that returns what it measured, or raises."""

    name: str
    function: Callable[[torch.device], str]


CHECKS: dict[str, Check] = {}


def check(function: Callable[[torch.device], str]) -> Callable[[torch.device], str]:
    """Enter a function into the table of checks, in the order of definition."""
    CHECKS[function.__name__] = Check(function.__name__, function)
    return function


def device_context(name: str) -> tuple[Any, torch.device]:
    """A context in which the device exists, and the device."""
    if name == "pretend":
        from pretend_device import pretend_device

        pretend = pretend_device()
        return pretend, pretend.device
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("`--device` is cuda, but torch sees no GPU here. Try `--device cpu` or `--device pretend`.")
    return nullcontext(), device


def describe(name: str) -> str:
    """The machine in one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(name))
        return f"{versions}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{versions}, {platform.processor() or platform.machine()}"


def run(checks: Iterable[Check], device_name: str, minutes: float) -> int:
    """Run the checks until the time is over; the number of those that failed or did not run."""
    print(describe(device_name), flush=True)
    deadline = time.monotonic() + 60 * minutes
    failures = 0
    for entry in checks:
        start = time.monotonic()
        if start > deadline:
            outcome, text = "NOT RUN", f"the {minutes:g} minutes were over"
        else:
            outcome, text = _outcome(entry, device_name)
        failures += outcome in ("FAILED", "NOT RUN")
        print(f"{outcome:8} {entry.name} ({time.monotonic() - start:.0f} s): {text}", flush=True)
    print(f"{failures} failed" if failures else "all passed", flush=True)
    return failures


def _outcome(entry: Check, device_name: str) -> tuple[str, str]:
    context, device = device_context(device_name)
    try:
        with context:
            return "passed", entry.function(device)
    except Skip as reason:
        return "skipped", str(reason)
    except Exception:  # a check's failure is what this program reports
        return "FAILED", traceback.format_exc().strip()
