"""Peak memory of this process, as Linux reports it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["STATUS", "reset_peak", "resident"]

STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Let the high-water mark begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """MB resident now (VmRSS) or at most so far (VmHWM)."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"The system does not report {field}.")
