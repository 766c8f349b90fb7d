"""What belongs to the whole process: changed by one thread at a time, invisible to computations, and restored."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.utils.parallel import Parallel, delayed
from skorch.callbacks import Callback
from torch import nn
from torch.overrides import TorchFunctionMode

from process_settings import interrupt_at
from sklearn_capacity import NetworkClassifier, measure_capacity, process_state
from sklearn_capacity.derivatives.double_backward import _Elementary, twice_differentiable
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.derivatives.parameter_uses import _Uses
from sklearn_capacity.graph import trace
from sklearn_capacity.graph.network import _Results
from sklearn_capacity.graph.outputs import _BeforeEnding
from sklearn_capacity.process_state import (
    RandomNumbers,
    computed_once,
    computing,
    keeps_modes,
    keeps_random_numbers,
    math_attention,
    silenced,
    surely,
    undisturbed,
    without_torch_warnings,
)
from sklearn_capacity.scoring.probe import _Draws

rng = np.random.default_rng(0)
PATIENCE = 60


class Written(nn.Sequential):
    """A class of the user: its traces are exports."""


def conv_net(input_shape, n_outputs):
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.LazyLinear(3))


@contextlib.contextmanager
def tracing_all_the_time():
    """Another thread traces one network after the other; yields a list that counts them."""
    stop, traces = threading.Event(), []
    # Each has another structure, since equal ones are exported once; they are built here, since that draws numbers.
    nets = [Written(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3 + i)) for i in range(100)]

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
    monkeypatch.setattr(process_state, "TRACE_PATIENCE", 0.2)
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


class Written(torch.nn.Linear):  # which is exported
    pass


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


# ---- attention --------------------------------------------------------------------------------------------------


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


# ---- warnings ---------------------------------------------------------------------------------------------------


def test_only_the_silent_thread_is_silent():
    entered, leave = threading.Event(), threading.Event()

    def silent():
        with silenced():
            entered.set()
            assert leave.wait(PATIENCE)
            warnings.warn("not heard", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(silent)
            assert entered.wait(PATIENCE)
            with warnings.catch_warnings(record=True) as heard:  # copies the filters, the other's entry among them
                warnings.warn("heard", stacklevel=1)
                leave.set()
                ending.result(PATIENCE)
            assert [str(warning.message) for warning in heard] == ["heard"]
        assert warnings.filters == before


def test_silence_keeps_to_its_pattern_and_thread_in_other_processes_too():
    with silenced("a known one"), pytest.warns(UserWarning, match="another"):
        warnings.warn("a known one", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    with silenced():
        (_, pattern, *_), *_ = warnings.filters
        assert pattern.match("anything") is not None
        assert pickle.loads(pickle.dumps(pattern)).match("anything") is None
        copied = Parallel(n_jobs=2, backend="threading")(delayed(warned)() for _ in range(2))  # copies the filters
    assert copied == ["heard", "heard"]


def warned():
    with pytest.warns(UserWarning) as heard:
        warnings.warn("heard", stacklevel=1)
    return str(heard[0].message)


# ---- small parts ------------------------------------------------------------------------------------------------


def test_an_interrupted_undoing_starts_again():
    calls = []

    def undo(number):
        calls.append(number)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surely(undo, 3)
    assert calls == [3, 3]


def test_a_value_is_computed_once():
    class Thing:
        def __init__(self):
            self.calls = 0

        @computed_once
        def value(self):
            """Its value."""
            self.calls += 1
            return 7

    thing = Thing()
    assert thing.value == thing.value == 7 and thing.calls == 1
    assert Thing.value.__doc__ == "Its value."


# ---- modes ------------------------------------------------------------------------------------------------------


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


def test_another_threads_filter_makes_no_error_of_a_warning_of_torch():
    calls = []

    def traced():
        calls.append(0)
        if len(calls) < 3:  # as if by another thread, in the middle
            warnings.simplefilter("error")
        try:
            warnings.warn("as torch's", stacklevel=1)
        except UserWarning as warning:
            raise RuntimeError("torch hides it") from warning
        return 7

    with warnings.catch_warnings():
        before = list(warnings.filters)
        assert without_torch_warnings(traced) == 7 and len(calls) == 3
        del warnings.filters[0]
        assert warnings.filters == before
        with pytest.raises(ZeroDivisionError):
            without_torch_warnings(lambda: 1 / 0)


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


# ---- random numbers -------------------------------------------------------------------------------------------------


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
