"""Threads that overlap restore the random numbers that the first one met."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_capacity import NetworkClassifier, measure_capacity
from sklearn_capacity.process_state import RandomNumbers, keeps_random_numbers


def _state():
    return torch.random.default_generator.get_state()


@pytest.mark.parametrize("first_to_leave", [0, 1])
@pytest.mark.parametrize("restores", [(True, True), (True, False), (False, True)])
def test_threads_that_overlap_restore_what_the_first_has_met(first_to_leave, restores):
    torch.manual_seed(3)
    before = _state()
    numbers = [RandomNumbers(), RandomNumbers()]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads = (one, other)
        for thread, own in zip(threads, numbers, strict=True):
            thread.submit(own.enter).result()
            thread.submit(torch.rand, 3).result()
        for index in (first_to_leave, 1 - first_to_leave):
            threads[index].submit(numbers[index].leave, restore=restores[index]).result()
            threads[index].submit(numbers[index].leave, restore=restores[index]).result()  # as after an interrupt
    assert torch.equal(_state(), before)


def test_numbers_that_nobody_restores_are_drawn():
    torch.manual_seed(3)
    before = _state()
    numbers = RandomNumbers()
    numbers.enter()
    assert not numbers.changed()
    torch.rand(3)
    assert numbers.changed()
    numbers.leave(restore=False)
    assert not torch.equal(_state(), before)


def test_a_thread_that_is_inside_restores_what_it_has_met():
    torch.manual_seed(3)
    before = _state()
    with keeps_random_numbers():
        torch.rand(2)
        expected = torch.rand(3, generator=torch.Generator().set_state(_state()))
        with keeps_random_numbers():
            torch.rand(7)
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(_state(), before)


class _Waits(nn.Module):
    """A network whose forward pass fails once another thread has trained its network."""

    begun, ended = threading.Event(), threading.Event()  # of the class, since measuring copies the network

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        torch.rand(2)
        self.begun.set()
        assert self.ended.wait(60)
        raise ValueError("It fails.")


def test_a_measurement_that_fails_beside_a_fit_changes_no_random_numbers():
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    torch.manual_seed(3)
    fitting, network = threading.Event(), _Waits()
    before = _state()

    class Pauses(Callback):
        def on_epoch_end(self, net, **_):
            fitting.set()
            assert network.begun.wait(60)

    def fit():
        NetworkClassifier((2,), max_epochs=1, random_state=0, callbacks=[Pauses()]).fit(X, np.arange(20) % 2)
        network.ended.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(fit)
        assert fitting.wait(60)
        with pytest.raises(ValueError, match="It fails"):
            measure_capacity(network, X, measures=["frobenius_norm", "jacobian_frobenius"])
        done.result()
    assert torch.equal(_state(), before)
