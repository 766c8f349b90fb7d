"""Searches on a Dask cluster of two real processes: the serial scores, one transfer of the data, workers that die."""

from __future__ import annotations

import decimal
import os
import pickle
import signal
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_capacity import CapacityScorer, NetworkClassifier, model_selection

distributed = pytest.importorskip("dask.distributed", reason="needs the `distributed` extra")

rng = np.random.default_rng(0)
X, y = rng.normal(size=(300, 12)), np.arange(300) % 3


class Pause(TransformerMixin, BaseEstimator):
    """Returns X unchanged; each task writes a file to show that it runs, and the first one waits to be killed."""

    def __init__(self, folder=None):
        self.folder = folder

    def fit(self, X, y=None):
        if self.folder is not None:
            try:
                with open(os.path.join(self.folder, "pid"), "x") as file:
                    file.write(str(os.getpid()))
                time.sleep(60)
            except FileExistsError:
                self.ran_ = True
        return self

    def __sklearn_is_fitted__(self):
        return True

    def transform(self, X):
        return X


MEASURES = {name: name for name in ("accuracy", "l2_path_norm", "fisher_rao_norm")}
MEASURES["mean_output"] = lambda module, X, y: module(X).mean()  # which no other process could import


def search(folder=None):
    network = NetworkClassifier((8,), max_epochs=3, random_state=0)
    return GridSearchCV(
        make_pipeline(Pause(folder), network),
        {"networkclassifier__weight_decay": [0.0, 0.1]},
        scoring=CapacityScorer(MEASURES),
        refit=False,
        cv=2,
        return_train_score=True,
    )


def assert_equal_scores(parallel, serial):
    columns = [key for key in serial if "_test_" in key or "_train_" in key]
    assert len(columns) == 4 * 2 * 4 + 4  # per measure and kind: 2 splits, mean, std; ranks
    assert np.isfinite([serial[key] for key in columns]).all()
    for key in columns:
        np.testing.assert_array_equal(parallel[key], serial[key], err_msg=key)


@pytest.fixture(scope="module")
def serial():
    return search().fit(X, y).cv_results_


@pytest.fixture(scope="module")
def client():
    # the functions of this file are known here only
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,  # without a current one the backend is refused
    ):
        yield client


def test_backend_needs_a_client():
    with pytest.raises(ValueError, match="`client` must be a Dask client if there is no current one"):
        model_selection.dask_backend()


@pytest.mark.parametrize("verbose", ["x", decimal.Decimal("0.5"), -1])
def test_a_verbosity_that_joblib_cannot_print_is_refused(client, verbose):
    with pytest.raises((TypeError, ValueError), match="`verbose` must"):
        model_selection.dask_backend(client, verbose=verbose)


def test_scores_equal_the_serial_ones_and_data_travel_once(client, serial, monkeypatch):
    sizes, sent, submit, scatter = [], [], client.submit, client.scatter

    def noted_task(function, *args, **kwargs):
        if "tasks" in kwargs:
            sizes.append(len(pickle.dumps(kwargs["tasks"], protocol=5)))
        return submit(function, *args, **kwargs)

    def noted_data(data, **kwargs):
        sent.extend(kwargs.get("broadcast", False) for item in data if item is X)
        return scatter(data, **kwargs)

    monkeypatch.setattr(client, "submit", noted_task)
    monkeypatch.setattr(client, "scatter", noted_data)
    pids = client.run(os.getpid)
    assert len(set(pids.values()) | {os.getpid()}) == 3
    with client.as_current(), parallel_config(backend="dask", scatter=[X, y]):
        assert_equal_scores(clone(search()).fit(X, y).cv_results_, serial)
    assert len(sizes) > 1 and max(sizes) < X.nbytes / 2  # tasks name the data and do not hold them
    assert sent == [True]  # which went to every worker at once, and never again


def test_a_dying_worker_costs_its_task_only(client, serial, tmp_path):
    died = []

    def kill():
        for _ in range(600):
            time.sleep(0.1)
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                died.append(int((tmp_path / "pid").read_text()))
                os.kill(died[0], signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    with model_selection.dask_backend(client, scatter=[X, y]):
        results = search(str(tmp_path)).fit(X, y).cv_results_
    killer.join()
    assert len(died) == 1
    assert_equal_scores(results, serial)


def test_backend_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match="needs Dask: pip install"):
        model_selection.dask_backend()
