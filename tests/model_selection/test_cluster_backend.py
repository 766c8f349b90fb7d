"""Whatever dies, a search on Dask ends: with the serial results, or soon and with one error that gives the reason."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.model_selection import dask_backend

distributed = pytest.importorskip("dask.distributed", reason="needs the `distributed` extra")

LIMIT = 240  # seconds for what takes a few on an idle machine: it fails then, and hangs no more
N_TASKS = 8
data = np.arange(5000.0)


@pytest.fixture(autouse=True, scope="module")
def by_value():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@contextlib.contextmanager
def cluster(n_workers=2, *, processes=True):
    options = {"threads_per_worker": 1, "processes": processes, "protocol": "tcp", "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=n_workers, host="127.0.0.1", **options) as started:
        with distributed.Client(started, set_as_default=False) as client:
            yield started, client


def in_time(function):
    """The outcome of a call in a separate thread: its result or its error."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "it hangs"
    return outcome[0]


def until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.05)


def started(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def task(data, number, folder, pause=0.0):
    (Path(folder) / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(pause)
    return number + data.sum()


def run_tasks(client, folder, pause=0.0, **options):
    with dask_backend(client, scatter=[data], **options):
        return Parallel()(delayed(task)(data, number, folder, pause) for number in range(N_TASKS))


expected = [number + data.sum() for number in range(N_TASKS)]


def broken(client, folder, how, **options):
    """The end of a call during which something breaks."""

    def breaker():
        until(lambda: len(started(folder)) >= 3)
        how()

    thread = threading.Thread(target=breaker, daemon=True)
    thread.start()
    end = in_time(lambda: run_tasks(client, folder, pause=0.5, **options))
    thread.join(LIMIT)
    return end


# ---- workers ---------------------------------------------------------------------------------------------------------


def test_workers_killed_one_after_another_and_all_at_once(tmp_path):
    def kill(workers):
        for worker in workers:
            os.kill(worker.process.pid, signal.SIGKILL)

    with cluster() as (local, client):

        def one_then_all():
            kill(list(local.workers.values())[:1])
            until(lambda: len(client.ncores()) == 2)  # the nanny starts another, which does not have the data
            kill(local.workers.values())

        assert broken(client, tmp_path, one_then_all) == expected
        assert len(client.ncores()) > 0
    # what was done stayed done: each kill costs the tasks that ran, one per worker, and the results that it held
    assert N_TASKS < len(started(tmp_path)) <= N_TASKS + 2 * 3


def suicide(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_task_that_kills_its_workers():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local:
        local.scheduler.allowed_failures = 0

        def run():
            with distributed.Client(local, set_as_default=False) as client, dask_backend(client):
                Parallel()(delayed(suicide)(number) for number in range(4))

        end = in_time(run)
    assert isinstance(end, distributed.KilledWorker) and "all those workers died" in str(end)


def test_no_workers(tmp_path):
    with cluster(processes=False) as (local, client):
        end = broken(client, tmp_path, lambda: local.scale(0), wait_for_workers_timeout=2)
        assert isinstance(end, TimeoutError)
        assert str(end).startswith("`wait_for_workers_timeout`: the Dask cluster at tcp:")
        assert "had no worker for 2 seconds. Start workers" in str(end)
        # nor are there any at the start
        again = in_time(lambda: run_tasks(client, tmp_path, wait_for_workers_timeout=1))
        assert isinstance(again, TimeoutError) and "had no worker for 1 seconds" in str(again)
        local.scale(2)
        assert in_time(lambda: run_tasks(client, tmp_path)) == expected


def test_a_lone_worker_is_used_all_the_same(tmp_path):
    with cluster(1) as (_, client):
        assert in_time(lambda: run_tasks(client, tmp_path)) == expected
        assert {int(name.split("-")[1]) for name in started(tmp_path)} == set(client.run(os.getpid).values())


# ---- client and scheduler --------------------------------------------------------------------------------------------


def test_a_client_that_is_closed(tmp_path):
    with cluster(processes=False) as (local, client):
        end = broken(client, tmp_path, client.close)
        assert isinstance(end, ConnectionError)
        assert str(end).startswith("The Dask client was closed, or lost its scheduler at tcp:")
        n_started = len(started(tmp_path))
        assert n_started < N_TASKS
        with pytest.raises(ValueError, match="`client` must be open, got one that is closed: create a Client"):
            run_tasks(client, tmp_path)
        with distributed.Client(local, set_as_default=False) as another:
            assert in_time(lambda: run_tasks(another, tmp_path)) == expected
        assert len(started(tmp_path)) <= n_started + 2 + N_TASKS  # what the first one waited for was cancelled


def test_a_client_that_is_closed_between_two_calls(tmp_path):
    def two_calls():
        with dask_backend(client):
            Parallel()(delayed(abs)(number) for number in range(3))
            client.close()
            Parallel()(delayed(abs)(number) for number in range(3))

    with cluster(1, processes=False) as (_, client):
        end = in_time(two_calls)
    assert isinstance(end, ConnectionError) and "The Dask client was closed" in str(end)


class CountedEpochs(Callback):
    """Notes each epoch in a folder, and takes its time."""

    def __init__(self, folder, pause):
        self.folder, self.pause = folder, pause

    def on_epoch_end(self, net, **kwargs):
        (Path(self.folder) / str(time.monotonic_ns())).touch()
        time.sleep(self.pause)


CLUSTER = """
import sys, time
from dask.distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=':0') as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(600)
"""


def test_a_scheduler_that_is_killed_and_the_search_run_again(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    epochs, checkpoints, n_epochs = tmp_path / "epochs", tmp_path / "checkpoints", 6
    epochs.mkdir()

    def search(client):
        network = NetworkClassifier(
            (4,), max_epochs=n_epochs, random_state=0, callbacks=[CountedEpochs(str(epochs), 0.2)]
        ).set_params(checkpoint_dir=str(checkpoints))
        candidates = {"weight_decay": [0.0, 0.1, 0.2]}
        with contextlib.nullcontext() if client is None else dask_backend(client, scatter=[X, y]):
            return GridSearchCV(network, candidates, cv=2, refit=False).fit(X, y).cv_results_

    (tmp_path / "run.py").write_text(CLUSTER)
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.PIPE, text=True)
    try:
        client = distributed.Client(process.stdout.readline().strip(), timeout=3, set_as_default=False)

        def breaker():
            until(lambda: len(list(checkpoints.glob("*/finished*"))) >= 2)
            process.kill()  # the scheduler; its workers follow

        threading.Thread(target=breaker, daemon=True).start()
        end = in_time(lambda: search(client))
    finally:
        process.kill()
        process.communicate()
    assert isinstance(end, ConnectionError) and "lost its scheduler at tcp://127.0.0.1:" in str(end)
    client.close()
    done = len(started(epochs))
    assert 2 * n_epochs <= done < 6 * n_epochs

    with cluster() as (_, another):
        results = in_time(lambda: search(another))
    # an epoch that ended but was not written yet is trained again, one for each worker
    assert 6 * n_epochs <= len(started(epochs)) <= 6 * n_epochs + 2
    serial = search(None)  # reads what is there
    np.testing.assert_array_equal(results["mean_test_score"], serial["mean_test_score"])
    assert len(started(epochs)) <= 6 * n_epochs + 2


# ---- errors of the tasks and data ------------------------------------------------------------------------------------


def nested(number):
    return sum(Parallel()(delayed(pow)(number, exponent) for exponent in range(3)))


def wrong(number):
    raise LookupError(f"number {number}")


def test_tasks_of_tasks_and_errors():
    lock = threading.Lock()

    def call(client, function, *args):
        with dask_backend(client):
            return Parallel()(delayed(function)(number, *args) for number in range(3))

    with cluster(processes=False) as (_, client):
        assert in_time(lambda: call(client, nested)) == [1, 3, 7]
        error = in_time(lambda: call(client, wrong))
        assert type(error) is LookupError and "in wrong" in error.__notes__[0]  # the worker's traceback
        unsent = in_time(lambda: call(client, pow, lock))
        assert isinstance(unsent, TypeError) and "Could not serialize" in str(unsent)
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "dask_backend"])


def manager_runs(number):
    return distributed.get_client().amm.running()


def test_no_copy_of_the_data_is_deleted_during_a_call():
    """Dask's memory manager pauses, which deletes those of idle workers every two seconds."""

    def call(client, function):
        with dask_backend(client):
            return Parallel()(delayed(function)(number) for number in range(3))

    with cluster(processes=False) as (_, client):
        assert client.amm.running()
        assert in_time(lambda: call(client, manager_runs)) == [False] * 3
        assert client.amm.running()
        assert isinstance(in_time(lambda: call(client, wrong)), LookupError)
        assert client.amm.running()
        client.amm.stop()  # by the user
        assert in_time(lambda: call(client, manager_runs)) == [False] * 3
        assert not client.amm.running()
