"""Processes forked while another thread measures: none finds a lock held, and all have the same scores."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from torch import nn

from sklearn_capacity import CapacityScorer, NetworkClassifier
from sklearn_capacity.derivatives.double_backward import twice_differentiable
from sklearn_capacity.process_state import computing, undisturbed

PATIENCE = 300  # a child that hangs fails its test
X, y = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3
SCORER = CapacityScorer(["accuracy", "l2_path_norm", "fisher_rao_norm", "margin"])
forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")


@pytest.fixture(scope="module")
def model():
    return NetworkClassifier((8,), max_epochs=2, random_state=0).fit(X, y)


def score(model):
    return SCORER(model, X, y)


@contextlib.contextmanager
def all_the_time(work):
    """Another thread does `work` over and over, and has begun."""
    stop, begun = threading.Event(), threading.Event()

    def loop():
        while not stop.is_set():
            begun.set()
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)


def in_a_fork(function):
    """What a function returns in a forked process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(function()))
    process.start()
    try:
        assert ours.poll(PATIENCE), "the forked process hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@forks
def test_forked_children_score_while_a_thread_scores(model):
    expected = score(model)
    with all_the_time(lambda: score(model)):
        for _ in range(8):
            assert in_a_fork(lambda: score(model)) == expected


@forks
def test_forked_children_find_no_trace_under_way():
    call = nn.Module.__call__

    def change():
        nn.Module.__call__ = lambda *args: None
        threading.Event().wait(0.01)
        nn.Module.__call__ = call

    with all_the_time(lambda: undisturbed(change)):
        for _ in range(20):
            assert in_a_fork(lambda: nn.Module.__call__ is call)


@forks
def test_forked_children_can_trace_whatever_the_parent_was_in(model):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with twice_differentiable():
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(PATIENCE)
    try:
        with computing():
            assert in_a_fork(lambda: undisturbed(lambda: 7)) == 7
        assert in_a_fork(_attention_after_a_guard) == (True, True)  # the other thread is not in the child
    finally:
        leave.set()
        thread.join(PATIENCE)


@forks
@pytest.mark.parametrize("package", ["cuda", "mtia", "xpu"])
def test_forked_children_find_no_lock_of_torch_held(package):
    """Another thread holds it for a moment, as in `torch.manual_seed`, and the child needs it."""
    lock = getattr(getattr(torch, package), "_initialization_lock", None)
    if lock is None:
        pytest.skip(f"torch.{package} of this release has no lock")
    held, leave = threading.Event(), threading.Event()

    def seed():
        with lock:
            held.set()
            leave.wait(0.3)

    thread = threading.Thread(target=seed)
    thread.start()
    assert held.wait(PATIENCE)
    try:
        assert in_a_fork(lambda: lock.acquire(timeout=1))
    finally:
        leave.set()
        thread.join(PATIENCE)


def _attention_after_a_guard():
    before = torch.backends.cuda.flash_sdp_enabled()
    with twice_differentiable():
        pass
    return before, torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("backend", ["multiprocessing", "loky"])
def test_joblib_scores_while_a_thread_scores(model, backend):
    expected = score(model)
    with all_the_time(lambda: score(model)):
        assert Parallel(2, backend=backend, timeout=PATIENCE)(delayed(score)(model) for _ in range(4)) == [expected] * 4


@forks
def test_a_forked_child_computes_after_the_parent_shared_a_sum_between_threads():
    """In a separate interpreter, since the number of threads belongs to the process."""
    script = """
    import multiprocessing, torch
    import sklearn_capacity

    def total():
        return torch.log_softmax(torch.ones(300, 400), -1).sum() + (torch.ones(300, 300) @ torch.ones(300, 300)).sum()

    torch.set_num_threads(2)
    total()
    process = multiprocessing.get_context("fork").Process(target=total)
    process.start()
    process.join({patience})
    print(process.exitcode, torch.get_num_threads())
    process.kill()
    """
    script = textwrap.dedent(script).replace("{patience}", str(PATIENCE))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "2"], run.stderr
