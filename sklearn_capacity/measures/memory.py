"""The memory limit of a call: what is free, the peak of each measure, and how many samples are processed at once."""

from __future__ import annotations

import ctypes
import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._validation import check_integer, shown
from ..graph import Network
from ..process_state import computed_once

if TYPE_CHECKING:
    from .batch import Batch

__all__ = ["SKETCH", "Budget", "Peak", "free_memory", "held_bytes", "parse_bytes", "shown_bytes"]

#: Of what is free when a call first asks; the rest is left to everything else that runs.
SHARE_OF_FREE = 0.8
#: Bytes for the vectors of Hutch++, if so many are free. Fixed, so that an estimate does not depend on what is free.
SKETCH = 2**30
#: Bytes for which a call does not ask what is free, since that takes as long as a pass of a small network.
TRIFLE = 2**25
#: No machine addresses more bytes.
LARGEST = 2**63 - 1
UNITS = {"": 1, "B": 1, **{f"{letter}B": 1000**k for k, letter in enumerate("kMGT", start=1)}}
UNITS |= {f"{letter}iB": 1024**k for k, letter in enumerate("KMGT", start=1)}


@dataclass(frozen=True)
class Peak:
    """What a measure needs at its peak besides the network, its graph and the data, with chunks of the smallest size.

    Attributes
    ----------
    vectors : float
        Vectors in float64 with one number per trained parameter.
    layers : float
        Matrices in float64 as large as the largest weight.
    passes : float
        Copies of all that one sample makes on its way through the network: 2 with its gradients, 4 with second ones.
    outputs : float
        Arrays in float64 with one number per sample and output.
    inputs : float
        Copies of the data.
    more : callable, default=None
        Bytes besides these, ``f(network, batch, **params)``.
    """

    vectors: float = 0
    layers: float = 0
    passes: float = 1
    outputs: float = 0
    inputs: float = 0
    more: Callable[..., float] | None = None

    def bytes(self, network: Network, batch: Batch, params: dict[str, Any]) -> float:
        """The estimate for one network and data."""
        numbers = self.vectors * network.parameter_count + self.layers * network.largest_tensor
        if batch.has_samples:
            numbers += self.outputs * batch.n_samples * network.n_outputs
        total = 8.0 * numbers
        if batch.has_samples:
            total += self.inputs * batch.X.numel() * batch.X.element_size()
            total += self.passes * network.activation_total * batch.X.element_size()
        return total + (self.more(network, batch, **params) if self.more is not None else 0.0)


class Budget:
    """Bytes that one call may take.

    Parameters
    ----------
    max_memory : int, str or None
        None: what is free on the device, but for a fifth.
    device : torch.device
    """

    def __init__(self, max_memory: int | str | None, device: torch.device):
        self.given = max_memory is not None
        self._max_memory, self._device = max_memory, device
        self._resident_before = resident_memory() if device.type == "cpu" else math.inf

    @computed_once
    def limit(self) -> float:
        """The number of bytes."""
        if self._max_memory is None:
            return SHARE_OF_FREE * free_memory(self._device)
        return float(parse_bytes(self._max_memory))

    @computed_once
    def _resident_limit(self) -> float:
        return self._resident_before + self.limit / 4

    def _is_trifle(self, size: float) -> bool:
        return not self.given and size <= TRIFLE

    def refusal(self, needed: float) -> str | None:
        """Why this many bytes are too many; None if they are not."""
        if self._is_trifle(needed) or needed <= self.limit:
            return None
        if self.given:
            return f"needs {shown_bytes(needed)}, and `max_memory` is {shown_bytes(self.limit)}"
        return f"needs {shown_bytes(needed)}, and at most {shown_bytes(self.limit)} of the free memory may be used"

    def tidy(self) -> None:
        """Return free memory to the system once the process has grown by a quarter of the budget.

        The allocator of glibc keeps freed blocks of up to 32 MB. Because of small blocks between them, it can hold a
        multiple of the memory in use.
        """
        before = resident_memory()
        if self._is_trifle(before - self._resident_before) or before <= self._resident_limit:
            return
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is None:
            self._resident_limit = math.inf
            return
        trim(0)
        # If most of it is in use, the next attempt comes later.
        self._resident_limit = max(self._resident_limit, resident_memory() + self.limit / 8)


def resident_memory() -> float:
    """Bytes of the process that are in memory; 0 if the system does not report it."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0.0


def held_bytes(kept: Any) -> int:
    """Bytes of all tensors in a nest of containers."""
    leaves = torch.utils._pytree.tree_leaves(dict(kept))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))


def parse_bytes(max_memory: Any) -> int:
    """A number of bytes, or text such as "500MB" or "2GiB", as a number of bytes.

    Examples
    --------
    >>> from sklearn_capacity.measures.memory import parse_bytes
    >>> parse_bytes("1.5GB"), parse_bytes("1KiB")
    (1500000000, 1024)
    """
    what = 'a number of bytes, or text such as "500MB" or "2GiB"'
    if not isinstance(max_memory, str):
        if isinstance(max_memory, bool) or not isinstance(max_memory, numbers.Integral):
            raise TypeError(f"`max_memory` must be {what}, got {shown(max_memory)}.")
        return check_integer("max_memory", max_memory, 1, LARGEST)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", max_memory.lower())
    size = float(match[1]) * units[match[2]] if match is not None and match[2] in units else 0.0
    if not 1 <= size <= LARGEST:
        raise ValueError(f"`max_memory` must be {what}, got {shown(max_memory)}.")
    return int(size)


def shown_bytes(size: float) -> str:
    """A number of bytes for a reader, in at most three digits before the point."""
    power = min(max(int(math.log(max(size, 1), 1000)), 0), 4)
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def free_memory(device: torch.device) -> float:
    """Bytes that may be allocated on a device; for the CPU within the limits of the control groups, too.

    Beyond either, Linux kills the process without an error. Infinite if the system does not report it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min([_free_in_system(), *_free_in_groups()])


def _free_in_system() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:  # elsewhere half of all memory, since the free part is unknown
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, OSError, ValueError):
        return math.inf


def _free_in_groups() -> Iterator[float]:
    """What every control group around this process leaves: its limit less what it uses and cannot drop."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        below = root / path.lstrip("/")
        for group in (below, *below.parents):
            if group.is_relative_to(root):
                yield _free_in_group(group, *names)


def _free_in_group(group: Path, limit: str, usage: str, cache: str) -> float:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return math.inf
        used = int((group / usage).read_text())
        counts = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
        return max(0.0, int(most) - used + int(counts.get(cache, 0)))
    except (OSError, ValueError):  # no such group in this view of the file system, or no limit in it
        return math.inf
