"""Traces and computations keep apart: a trace changes settings of the process that no computation may see."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from networks import Exported
from sklearn_capacity import NetworkClassifier, measure_capacity, process_state
from sklearn_capacity.graph import trace
from sklearn_capacity.process_state import computing, undisturbed

rng = np.random.default_rng(0)
PATIENCE = 60


def conv_net(input_shape, n_outputs):
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.LazyLinear(3))


@contextlib.contextmanager
def tracing_all_the_time():
    """Another thread traces one network after the other; yields a list that counts them."""
    stop, traces = threading.Event(), []
    # Each has another structure, since equal ones are exported once; they are built here, since that draws numbers.
    nets = [Exported(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3 + i)) for i in range(100)]

    def work():
        for net in nets:
            if not stop.is_set():
                traces.append(trace(net, (1, 8, 8)))

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(work)
        try:
            yield traces
        finally:
            stop.set()
            ending.result(PATIENCE)


def test_convolutional_fits_keep_their_bits_while_another_thread_traces():
    X, y = rng.normal(size=(32, 1, 8, 8)).astype(np.float32), np.arange(32) % 3

    def fit():
        model = NetworkClassifier(module=conv_net, input_shape=(1, 8, 8), max_epochs=2, batch_size=8, random_state=0)
        return model.fit(X, y).predict_proba(X)

    alone = fit()
    with tracing_all_the_time() as traces:
        for _ in range(8):
            np.testing.assert_array_equal(fit(), alone)
        assert len(traces) > 1


def test_convolutional_measures_keep_their_bits_while_another_thread_traces():
    model, X = conv_net((1, 8, 8), 3).eval(), rng.normal(size=(16, 1, 8, 8)).astype(np.float32)
    model(torch.from_numpy(X))
    measures = ["spectral_norm", "margin", "fisher_rao_norm", "jacobian_frobenius"]
    alone = measure_capacity(model, X, np.arange(16) % 3, measures)
    with tracing_all_the_time():
        for _ in range(5):
            assert measure_capacity(model, X, np.arange(16) % 3, measures) == alone


def test_nobody_computes_while_something_is_undisturbed():
    inside, seen, computing_now, stop = threading.Event(), [], [], threading.Event()

    def compute():
        while not stop.is_set():
            with computing():
                computing_now.append(0)
                if inside.is_set():
                    seen.append(0)
                computing_now.pop()

    def change():
        inside.set()
        busy = len(computing_now)
        inside.clear()
        return busy

    with ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(compute) for _ in range(3)]
        try:
            assert [undisturbed(change) for _ in range(30)] == [0] * 30
        finally:
            stop.set()
        for thread in threads:
            thread.result(PATIENCE)
    assert seen == []


def test_threads_that_trace_within_computations_do_not_wait_for_each_other():
    barrier = threading.Barrier(4)

    def work(number):
        for _ in range(5):
            barrier.wait(PATIENCE)
            with computing(), computing():
                assert undisturbed(lambda: number) == number
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4), timeout=PATIENCE)) == [0, 1, 2, 3]


def test_a_thread_that_waits_for_the_callers_lock_ends_the_wait(monkeypatch):
    monkeypatch.setattr(process_state.traces, "TRACE_PATIENCE", 0.2)
    users, computes = threading.Lock(), threading.Event()

    def other():
        with computing():
            computes.set()
            with users:
                return "done"

    with ThreadPoolExecutor(1) as pool:
        with users:
            ending = pool.submit(other)
            assert computes.wait(PATIENCE)
            assert undisturbed(lambda: 1) == 1
        assert ending.result(PATIENCE) == "done"


def test_errors_and_nested_traces_pass_through():
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 / 0)
    assert undisturbed(lambda: undisturbed(lambda: threading.current_thread().name)) == "sklearn_capacity.uninterrupted"


OWNER_OF_THE_GUARD = """
import sys
import threading

import torch
from sklearn_capacity.graph import trace
from sklearn_capacity.graph.outputs import _BeforeEnding

owners, register = [], torch._C._ensureCUDADeviceGuardSet


class Written(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).roll(1, 1)  # which no recording knows, so that it is exported


def record():
    owners.append(threading.current_thread())
    register()


torch._C._ensureCUDADeviceGuardSet = record
for _ in range(2):
    thread = threading.Thread(target=trace, args=(Written(2, 3), (2,)))
    thread.run() if sys.argv[1] == "main thread" else thread.start()
    thread.ident and thread.join()
assert owners[0].is_alive(), owners[0]
weight = torch.ones(2, requires_grad=True)
weight.sum().backward()
"""


@pytest.mark.skipif(not hasattr(torch._C, "_ensureCUDADeviceGuardSet"), reason="this torch has nothing of the kind")
@pytest.mark.parametrize("caller", ["main thread", "other thread"])
def test_what_stands_in_for_a_gpu_outlives_the_trace(caller):
    # Freed memory is overwritten at once; without a GPU, a backward pass that uses some ends the process.
    variables = {"CUDA_VISIBLE_DEVICES": "", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "MALLOC_PERTURB_": "165"}
    command = [sys.executable, "-c", OWNER_OF_THE_GUARD, caller]
    ended = subprocess.run(command, env=os.environ | variables, text=True, capture_output=True, timeout=4 * PATIENCE)
    assert ended.returncode == 0, ended.stderr
