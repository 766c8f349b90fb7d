"""After the first step, a training step with a penalty takes no new memory from the system."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

STEPS = """
import platform, resource, sys, torch
from sklearn_capacity.penalties import JacobianPenalty
if platform.libc_ver()[0] != "glibc":
    sys.exit("no glibc")
module = torch.nn.Sequential(torch.nn.Linear(784, 784), torch.nn.ReLU(), torch.nn.Linear(784, 784), torch.nn.ReLU(),
                             torch.nn.Linear(784, 10))
penalty, X = JacobianPenalty("per_layer"), torch.randn(128, 784)
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


def test_steps_without_page_faults():
    done = subprocess.run([sys.executable, "-c", STEPS], text=True, capture_output=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("only glibc's allocator learns from the blocks that are freed")
    assert done.returncode == 0, done.stderr
    gradients = 10 * 2 * 784 * 784 * 4 / resource.getpagesize()  # pages that ten steps would take anew
    assert int(done.stdout) < gradients / 4
