"""Threads and processes that share estimators, torch's generators and GPUs get the serial answers."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed, parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pretend_device import Held, pretend_device
from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier, NetworkClassifier, measure_capacity
from sklearn_capacity.training import devices

rng = np.random.default_rng(0)
X, y = rng.normal(size=(60, 6)), np.arange(60) % 3


def network(**params):
    return JacobianRegularizedClassifier((8,), max_epochs=3, batch_size=16, dropout=0.2, batch_norm=True, **params)


def test_one_estimator_scored_from_eight_threads():
    model = make_pipeline(StandardScaler(), network(random_state=0)).fit(X, y)
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm", "l2_path_norm", "jacobian_frobenius", "margin"])
    cuts = [slice(i, i + 40) for i in range(8)]
    serial = [(scorer(model, X[cut], y[cut]), model.predict_proba(X[cut])) for cut in cuts]
    barrier = threading.Barrier(8)

    def score(cut):
        barrier.wait(60)
        return scorer(model, X[cut], y[cut]), model.predict_proba(X[cut])

    with ThreadPoolExecutor(8) as pool:
        for (scores, proba), (expected, expected_proba) in zip(pool.map(score, cuts), serial, strict=True):
            assert scores == expected
            np.testing.assert_array_equal(proba, expected_proba)


def test_fits_in_threads_have_the_serial_bits():
    def fit(seed):
        return network(random_state=seed).fit(X, y).predict_proba(X)

    serial = [fit(seed) for seed in range(6)]
    state = torch.random.get_rng_state()
    threaded = Parallel(n_jobs=6, backend="threading")(delayed(fit)(seed) for seed in range(6))
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(threaded, serial)


def test_a_search_in_threads_has_the_serial_scores():  # for processes see test_scorer.py and test_distributed.py
    scorer = CapacityScorer(["accuracy", "l2_path_norm", "margin"])
    grid = {"jacobian_penalty": [0.0, 0.1]}
    search = GridSearchCV(network(random_state=0), grid, scoring=scorer, refit=False, cv=2, return_train_score=True)
    serial = clone(search).fit(X, y).cv_results_
    with parallel_config(backend="threading", n_jobs=2):
        parallel = clone(search).fit(X, y).cv_results_
    for key in serial:
        if "_test_" in key or "_train_" in key:
            np.testing.assert_array_equal(parallel[key], serial[key])


def _device_of_worker():
    from unittest import mock

    with mock.patch("torch.cuda.device_count", return_value=2):
        return devices.worker_number(), str(devices.resolve_device("auto")), str(devices.resolve_device("cuda:1"))


def test_workers_take_the_gpus_in_turn():
    assert _device_of_worker() == (0, "cuda:0", "cuda:1")
    seen = dict()
    barrier_free = Parallel(n_jobs=2, backend="loky", batch_size=1)(delayed(_device_of_worker)() for _ in range(12))
    for number, automatic, named in barrier_free:
        seen[number] = automatic
        assert automatic == f"cuda:{number % 2}" and named == "cuda:1"
    assert seen


def test_scoring_leaves_nothing_on_the_device():
    model = NetworkClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    scorer_measures = ["l2_path_norm", "fisher_rao_norm", "margin"]
    with pretend_device() as pretend:
        values = measure_capacity(model, X, y, scorer_measures, device=pretend.device)
        assert {p.device.type for p in model.module_.parameters()} == {"cpu"}
        gc.collect()
        left = [t for t in gc.get_objects() if issubclass(type(t), Held)]
        assert left == []
    expected = measure_capacity(model, X, y, scorer_measures)
    assert values == pytest.approx(expected, rel=1e-10)
