"""After the first step, a training step with a penalty takes no new memory from the system."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

STEPS = """
import platform, resource, sys, torch
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from sklearn_capacity.penalties import JacobianPenalty
if platform.libc_ver()[0] != "glibc":
    sys.exit("no glibc")
module, X = {network}
penalty = JacobianPenalty("per_layer")
def step():
    module.zero_grad()
    shared = penalty.forward(module, X)
    (shared.logits.logsumexp(1).mean() + penalty(module, X, shared=shared)).backward()
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
#: A network with its batch, and the entries of what each step frees: its two large gradients, or activations.
NETWORKS = {
    "perceptron": (
        "Sequential(Linear(784, 784), ReLU(), Linear(784, 784), ReLU(), Linear(784, 10)), torch.randn(128, 784)",
        2 * 784 * 784,
    ),
    "convolutions": (
        "Sequential(Conv2d(1, 32, 5, padding=2), ReLU(), MaxPool2d(2), Conv2d(32, 32, 5, padding=2), ReLU(), "
        "Flatten(), Linear(6272, 10)), torch.randn(64, 1, 28, 28)",
        2 * 64 * 32 * 784,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_without_page_faults(name):
    network, entries = NETWORKS[name]
    code = STEPS.format(network=network)
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("only glibc's allocator learns from the blocks that are freed")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 * entries * 4 / resource.getpagesize() / 4
