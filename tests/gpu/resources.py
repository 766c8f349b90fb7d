"""Memory that runs out, and what travels between the device and the host."""

from __future__ import annotations

import torch
from torch import nn

from sklearn_capacity import NetworkClassifier, measure_capacity
from tests.gpu.runner import Skip, check
from tests.gpu.training import KINDS, X, fitted, y

#: Width of a layer whose activations fill the memory that `out_of_memory_halves_the_batch` leaves.
WIDE = 2**15


@check
def out_of_memory_halves_the_batch(device: torch.device) -> str:
    """With little memory left, a measure halves its chunks until they fit, and gets the value of small chunks."""
    if device.type != "cuda":
        raise Skip("no memory of a device can be filled here; a unit test does it with a planted error")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, WIDE), nn.ReLU(), nn.Linear(WIDE, 3)).to(device)
    samples, labels = torch.randn(2**14, 8, device=device), torch.arange(2**14) % 3
    expected = measure_capacity(module, samples, labels, ["margin"], batch_size=256)["margin"]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    in_use = torch.cuda.memory_reserved(device)
    # All samples at once need 2 GiB for the hidden layer alone, and twice that with its activation.
    torch.cuda.set_per_process_memory_fraction((in_use + 2**30) / total, device)
    try:
        got = measure_capacity(module, samples, labels, ["margin"], batch_size=len(samples))["margin"]
        retries = torch.cuda.memory_stats(device)["num_ooms"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
    assert retries > 0, "the memory did not run out"
    assert abs(got - expected) <= 1e-5 * abs(expected), (got, expected)
    return f"memory ran out {retries} times, margin {got:.6g} as with small chunks"


def _copies_to_host(function, device: torch.device) -> int:
    """Copies from the device that the profiler sees while a function runs."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        function()
        torch.cuda.synchronize(device)
    return sum(event.count for event in record.key_averages() if "Memcpy DtoH" in event.key)


@check
def no_copies_in_inner_loops(device: torch.device) -> str:
    """Training and measuring copy as often to the host with three times the batches."""
    if device.type != "cuda":
        raise Skip("the unit tests count the pretended device's transfers")
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).to(device)
    samples, labels = torch.as_tensor(X, dtype=torch.float32, device=device), torch.as_tensor(y)
    names = ["margin", "fisher_rao_norm", "jacobian_frobenius"]
    tasks = {
        **{kind.__name__: lambda size, kind=kind: fitted(kind, device, batch_size=size) for kind in KINDS},
        "measures": lambda size: measure_capacity(module, samples, labels, names, batch_size=size),
    }
    counts = {}
    for name, task in tasks.items():
        task(60)  # the first run loads kernels and traces
        few, many = (_copies_to_host(lambda size=size, task=task: task(size), device) for size in (60, 20))
        assert few == many, f"{name}: {few} copies to the host with 2 batches, {many} with 6"
        counts[name] = few
    return ", ".join(f"{name} {count}" for name, count in counts.items())


@check
def predictions_do_not_hold_the_data_twice(device: torch.device) -> str:
    """Predicting needs a chunk of the samples on the device, not all of them."""
    if device.type != "cuda":
        raise Skip("memory of a device is what is measured")
    model = NetworkClassifier((8,), max_epochs=1, random_state=0, device=device).fit(X, y)
    many = X.repeat(2000, axis=0)  # 30 MB
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model.predict(many)
    peak = torch.cuda.max_memory_allocated(device) - before
    assert peak < many.nbytes, f"{peak} bytes for {many.nbytes} of data"
    return f"{peak / 2**20:.1f} MiB for {many.nbytes / 2**20:.0f} MiB of data"
