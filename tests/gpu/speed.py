"""Ratios on the device: a step with each penalty over a plain step, measures over a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sklearn_capacity import measure_capacity
from sklearn_capacity.architectures import make_network
from sklearn_capacity.penalties import PENALTIES
from tests.gpu.runner import Skip, check

STRENGTH, CLASSES, REPEATS = 0.01, 10, 7


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median wall time of a function, with all of its kernels done."""
    times = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first run traces and loads kernels


def _cases(device: torch.device) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    torch.manual_seed(0)
    y = torch.randint(CLASSES, (128,)).to(device)
    mlp = make_network("mlp", 784, CLASSES, hidden_layer_sizes=(784, 784)).to(device)
    resnet = make_network("resnet20", (3, 32, 32), CLASSES).eval().to(device)
    return [
        ("MLP", mlp, torch.randn(128, 784).to(device), y),
        ("ResNet-20", resnet, torch.randn(64, 3, 32, 32).to(device), y[:64]),
    ]


@check
def speed_of_penalties(device: torch.device) -> str:
    """Forward, loss, penalty and backward over forward, loss and backward."""
    if device.type == "meta":
        raise Skip("a pretended device has no speed")
    rows = []
    for name, module, X, y in _cases(device):

        def step(penalty=None, module=module, X=X, y=y) -> None:
            module.zero_grad()
            loss = cross_entropy(module(X), y)
            (loss if penalty is None else loss + STRENGTH * penalty(module, X)).backward()

        plain = _seconds(step, device)
        for norm, entry in PENALTIES.items():
            options = {"generator": torch.Generator().manual_seed(0)} if entry.random else {}

            def penalty(module, X, entry=entry, options=options) -> Tensor:
                return entry.function(module, X, **options)

            rows.append(f"{name} {norm} {_seconds(lambda penalty=penalty: step(penalty), device) / plain:.2f}")
    return "; ".join(rows) + " plain steps"


@check
def speed_of_measures(device: torch.device) -> str:
    """One measure at a time over a forward pass without gradients, tracing included."""
    if device.type == "meta":
        raise Skip("a pretended device has no speed")
    rows = []
    for name, module, X, y in _cases(device):
        module.eval()

        def forward(module=module, X=X) -> None:
            with torch.no_grad():
                module(X)

        base = _seconds(forward, device)
        for measure in ("margin", "fisher_rao_norm", "jacobian_spectral", "spectral_norm"):
            seconds = _seconds(lambda m=measure, module=module, X=X, y=y: measure_capacity(module, X, y, [m]), device)
            rows.append(f"{name} {measure} {1000 * seconds:.0f} ms = {seconds / base:.1f}")
    return "; ".join(rows) + " forward passes"
