"""The kernels of attention come back as they were, whichever thread ends first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sklearn_capacity.derivatives.double_backward import twice_differentiable
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.process_state import math_attention

PATIENCE = 60


def kernels():
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch._C._get_overrideable_sdp_enabled(),
    )


GUARDS = [math_attention, twice_differentiable, lambda: evaluating(nn.Linear(1, 1))]


@pytest.mark.parametrize("first", GUARDS)
@pytest.mark.parametrize("second", GUARDS)
def test_overlapping_guards_put_attention_back(first, second):
    before = kernels()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with second():
            entered.set()
            assert leave.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        with first():
            ending = pool.submit(other)
            assert entered.wait(PATIENCE)
        assert kernels() == (False, False, False, True, False)  # the other is still inside
        leave.set()
        ending.result(PATIENCE)
    assert kernels() == before


def test_attention_comes_back_as_the_user_had_it():
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        before = kernels()
        with math_attention(), math_attention():
            pass
        assert kernels() == before
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
