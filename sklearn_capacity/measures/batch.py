"""The data that a measure receives: on the device, in chunks, with one forward pass shared by all measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Set
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._validation import NotDefinedError
from ..graph import Network, channels_last
from .memory import Budget, free_memory, held_bytes

__all__ = ["CPU_BYTES", "Batch", "is_out_of_memory"]

T = TypeVar("T")

# Above this size the allocator returns memory to the system on every call, which costs more than the arithmetic.
CPU_BYTES = 16 * 2**20

# Chunks of so many samples or more should fit a CPU's cache, too: a convolutional network took a quarter less time.
CACHED_SAMPLES, CACHE_BYTES = 128, 4 * 2**20


class Batch:
    """Samples and targets of one measurement.

    Parameters
    ----------
    network : Network
    X : Tensor of shape (n, ...) or None
    y : Tensor of shape (n,) of class indices, (n, C) of targets, or None
    loss : "cross_entropy", "hinge", "squared", "absolute" or None
    random_state : int
        Seed of every stochastic measure.
    batch_size : int or None
        Samples per chunk; None chooses by memory. When memory runs out, it is halved and the chunk is tried again.
    verbose : int
        1 shows the progress of slow measures.
    budget : Budget, default=None
        Memory that may be used; None is what is free.
    """

    def __init__(
        self,
        network: Network,
        X: Tensor | None = None,
        y: Tensor | None = None,
        *,
        loss: str | None = None,
        random_state: int = 0,
        batch_size: int | None = None,
        verbose: int = 0,
        budget: Budget | None = None,
    ):
        self.network = network
        # Converted once, not for every pass over the data.
        self._X = channels_last(X) if X is not None and network.takes_channels_last else X
        self._y = y
        self.loss = loss
        self.random_state = random_state
        self.verbose = verbose
        self._budget = budget
        self._batch_size = batch_size
        self._memo: dict[Any, Any] = {}

    @property
    def X(self) -> Tensor:
        if self._X is None:
            raise NotDefinedError("This measure needs data: pass X.")
        return self._X

    @property
    def y(self) -> Tensor:
        if self._y is None:
            raise NotDefinedError("This measure needs labels: pass y.")
        return self._y

    @property
    def has_samples(self) -> bool:
        return self._X is not None

    @property
    def has_labels(self) -> bool:
        return self._y is not None

    @property
    def n_samples(self) -> int:
        return self.X.shape[0]

    @property
    def chunk_size(self) -> int:
        """Number of samples that the network processes at once."""
        if self._batch_size is None:
            per_sample = max(1, self.network.activation_size * self.X.element_size())
            self._batch_size = max(1, min(self.n_samples, _chunk_size(self.X.device, per_sample)))
            if self.budget.given:  # a quarter for what the samples make, with second derivatives
                per_sample = 4 * self.network.activation_total * self.X.element_size()
                self._batch_size = max(1, min(self._batch_size, int(self.room / 4) // per_sample))
        return self._batch_size

    @property
    def room(self) -> float:
        """Bytes that may be allocated besides the network, its graph, the data, and what the call stores."""
        return max(0.0, self.budget.limit - self.held)

    @property
    def held(self) -> float:
        """Bytes of the network, its graph, the data, and what the call stores."""
        data = sum(t.numel() * t.element_size() for t in (self._X, self._y) if t is not None)
        # The copy of the network, its folded weights, and while they are traced one more copy.
        networks = 3 * self.network.size * self.network.dtype.itemsize
        return data + networks + held_bytes(self._memo) + held_bytes(self.network.kept)

    @property
    def budget(self) -> Budget:
        if self._budget is None:
            self._budget = Budget(None, self.network.device)
        return self._budget

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """The value of `compute`, cached for all measures of this call."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    @property
    def known(self) -> Set[Any]:
        """Keys of the values computed so far."""
        return self._memo.keys()

    def renewed(self, network: Network) -> Batch:
        """The same samples for another network of the same kind, without the cached values."""
        renewed = copy.copy(self)
        renewed.network = network
        renewed._memo = {}
        return renewed

    def generator(self) -> torch.Generator:
        """A fresh CPU generator with this batch's seed: one stream per measure, independent of other measures."""
        return torch.Generator(device="cpu").manual_seed(self.random_state)

    def map(self, function: Callable[..., T], *aligned: Tensor) -> list[T]:
        """`function(X, ...)` on consecutive chunks of X and of `aligned`, in order.

        When memory runs out, the chunk is halved and tried again; a chunk of one sample that does not fit raises.
        """
        results: list[T] = []
        start = 0
        while start < self.n_samples:
            stop = min(start + self.chunk_size, self.n_samples)
            try:
                results.append(function(self.X[start:stop], *(t[start:stop] for t in aligned)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.chunk_size == 1:
                    raise
                self._batch_size = max(1, self.chunk_size // 2)
                continue
            start = stop
            self.budget.tidy()
        return results

    def cat(self, function: Callable[..., Tensor], *aligned: Tensor) -> Tensor:
        """The results of `map`, one row per sample, joined."""
        return torch.cat(self.map(function, *aligned))

    @property
    def logits(self) -> Tensor:
        """Logits of all samples, (n, C), float64; one forward pass for all measures.

        Raises
        ------
        NotDefinedError
            If some of them are infinite or NaN.
        """

        def checked() -> Tensor:
            logits = self.once("outputs", lambda: self.cat(lambda X: self.network.logits(X).double()))
            missing = int((~logits.isfinite()).any(1).sum())
            if missing:
                raise NotDefinedError(
                    f"The logits of {missing} of {len(logits)} samples are not finite: the weights or X are too large, "
                    "or training has diverged."
                )
            return logits

        return self.once("logits", checked)

    def keep_logits(self, logits: Tensor) -> None:
        """Keep logits (n, C) that a sweep along the graph has computed, in place of a forward pass of the module.

        In single precision the folded weights give other digits, so there the module's logits stay the only ones.
        """
        if self.network.dtype == torch.float64:
            self.once("outputs", lambda: logits)

    @property
    def classes(self) -> Tensor:
        """Class indices of the samples; an error for regression targets."""
        if self.y.is_floating_point():
            raise NotDefinedError("This measure needs class labels, got regression targets.")
        return self.y


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports that memory ran out, on a device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _chunk_size(device: torch.device, per_sample: int) -> int:
    """Samples at once, of so many bytes: few on a CPU; on a GPU they take a sixteenth of what is free."""
    if device.type == "cuda":
        return max(CPU_BYTES, int(free_memory(device)) // 16) // per_sample
    return min(CPU_BYTES // per_sample, max(CACHED_SAMPLES, CACHE_BYTES // per_sample))
