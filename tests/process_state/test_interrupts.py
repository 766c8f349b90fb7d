"""An interrupt at any moment leaves no changed mode, filter or number behind."""

from __future__ import annotations

import contextlib
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from process_settings import interrupt_at
from sklearn_capacity import measure_capacity
from sklearn_capacity.derivatives.double_backward import _Elementary
from sklearn_capacity.derivatives.parameter_uses import _Uses
from sklearn_capacity.graph.network import _Results
from sklearn_capacity.graph.outputs import _BeforeEnding
from sklearn_capacity.process_state import keeps_modes, surely, undisturbed
from sklearn_capacity.scoring.probe import _Draws


def test_an_interrupted_undoing_starts_again():
    calls = []

    def undo(number):
        calls.append(number)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surely(undo, 3)
    assert calls == [3, 3]


def test_the_grad_mode_comes_back_though_torch_does_not_put_it_back(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    @keeps_modes
    def compute():
        with torch.no_grad():
            return 1

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(torch.no_grad, "__exit__", interrupted)
                compute()
            assert torch.is_grad_enabled() is enabled


@pytest.mark.parametrize("record", [False, True])
def test_the_filters_come_back_though_python_does_not_put_them_back(record, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    @keeps_modes
    def compute():
        with warnings.catch_warnings(record=record):
            warnings.simplefilter("error")

    with warnings.catch_warnings():
        filters, listed, show = warnings.filters, list(warnings.filters), warnings.showwarning
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(warnings.catch_warnings, "__exit__", interrupted)
            compute()
        assert warnings.filters is filters and warnings.filters == listed
        assert warnings.showwarning is show
        with pytest.warns(UserWarning, match="shown again"):
            warnings.warn("shown again", UserWarning, stacklevel=1)


def test_an_interrupted_mode_and_the_errors_of_numpy_come_back():
    mode, errors = TorchFunctionMode(), np.geterr()

    @keeps_modes
    def compute():
        mode.__enter__()
        np.seterr(over="raise" if errors["over"] != "raise" else "ignore")
        raise KeyboardInterrupt

    depth = torch._C._len_torch_function_stack()
    with pytest.raises(KeyboardInterrupt):
        compute()
    assert torch._C._len_torch_function_stack() == depth
    assert np.geterr() == errors


def test_filters_that_a_function_changes_stay_changed_without_an_interrupt():
    @keeps_modes
    def change(error=None):
        warnings.filters = [("error", None, UserWarning, None, 0)]
        if error is not None:
            raise error

    for error in (None, ValueError("It fails.")):
        with warnings.catch_warnings():
            with contextlib.suppress(ValueError):
                change(error)
            assert warnings.filters == [("error", None, UserWarning, None, 0)]


def test_an_interrupted_start_of_a_thread_is_an_interrupt(monkeypatch):
    """The interrupt may come between `start` taking a lock and Python knowing that it is held."""
    start, traced = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        try:
            raise KeyboardInterrupt("as if by Ctrl-C")
        finally:
            threading.Lock().release()  # RuntimeError: release unlocked lock

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt, match="as if by Ctrl-C"):
        undisturbed(lambda: traced.append(1))
    assert traced == [1]
    monkeypatch.undo()
    assert undisturbed(lambda: 3) == 3


def test_an_interrupted_measure_draws_no_random_numbers():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.error = nn.Linear(3, 2), KeyboardInterrupt("as if by Ctrl-C")

        def forward(self, x):
            if not torch.compiler.is_exporting():
                torch.rand(1)
                raise self.error
            return self.last(x)

    module = Dropped()
    before = torch.get_rng_state()
    for error in (KeyboardInterrupt, ValueError):
        module.error = error("ended")
        with pytest.raises(error, match="ended"):
            measure_capacity(module, np.eye(3), np.arange(3) % 2, ["margin"])
        assert torch.equal(torch.get_rng_state(), before)


def test_a_mode_that_torch_sets_aside_comes_back_after_an_interrupt_at_any_moment():
    module, X = _BeforeEnding(nn.Sequential(nn.ReLU(), nn.Softmax(dim=1)), "probabilities"), torch.ones(2, 3)
    compute, depth = keeps_modes(module), torch._C._len_torch_function_stack()
    with interrupt_at(0) as moments:
        compute(X)
    for number in range(1, moments[0] + 1):
        with pytest.raises(KeyboardInterrupt), interrupt_at(number):
            compute(X)
        assert torch._C._len_torch_function_stack() == depth, number


@pytest.mark.parametrize("mode", [_Elementary, _Results, _Draws, lambda: _Uses([torch.ones(3)], torch.ones(2))])
def test_a_mode_is_left_after_an_interrupt_as_it_begins_or_ends(mode):
    def within():
        with mode():
            pass

    def depths():
        return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()

    compute, before = keeps_modes(within), depths()
    for number in range(1, 200):
        with contextlib.suppress(KeyboardInterrupt), interrupt_at(number) as moments:
            compute()
        assert depths() == before, number
        if moments[0] < number:
            return
    pytest.fail("The call has too many moments.")
