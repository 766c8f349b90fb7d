"""Warnings that one thread silences stay audible to the others."""

from __future__ import annotations

import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from sklearn.utils.parallel import Parallel, delayed

from sklearn_capacity.process_state import silenced, without_torch_warnings

PATIENCE = 60


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
