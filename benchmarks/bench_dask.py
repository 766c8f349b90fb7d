"""A search of 200 candidates on a Dask cluster of two processes against joblib's two: wall time and memory.

The fits are short, so that what a task costs beside its fit is seen. Wall time, since the work is done elsewhere.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from benchmarks.timing import memory_row, ratio_row
from sklearn_capacity import NetworkClassifier
from sklearn_capacity.model_selection import dask_backend

N_CANDIDATES, N_SPLITS, N_WORKERS = 200, 2, 2
#: Targets: seconds of overhead for each task, and by how much a worker's memory may grow in the second half.
OVERHEAD, GROWTH = 0.05, 1.05


def search(n_candidates: int, cv: Any = N_SPLITS) -> GridSearchCV:
    """A search over strengths of weight decay."""
    model = NetworkClassifier(hidden_layer_sizes=(16,), max_epochs=1, random_state=0, device="cpu")
    grid = {"weight_decay": np.geomspace(1e-6, 1e-2, n_candidates).tolist()}
    return GridSearchCV(model, grid, cv=cv, refit=False, error_score="raise")


def data() -> tuple[np.ndarray, np.ndarray]:
    """2,000 samples of 500 features, 4 MB: to send these with each of the tasks would take seconds."""
    X, y = make_classification(2000, 500, n_informative=10, random_state=0)
    return X.astype(np.float32), y


def images() -> tuple[np.ndarray, np.ndarray]:
    """10,000 images of 3 x 32 x 32, 123 MB."""
    return np.random.default_rng(0).normal(size=(10_000, 3, 32, 32)).astype(np.float32), np.arange(10_000) % 10


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident(dask_worker: Any) -> int:
    """Bytes of a worker's process."""
    return dask_worker.monitor.proc.memory_info().rss


def sent(dask_worker: Any) -> int:
    """Bytes that a worker has sent to others."""
    return sum(transfer["total"] for transfer in dask_worker.transfer_outgoing_log)


def image_rows(client: Any) -> Iterator[dict]:
    """Rows for images, of which each fit takes a few: what the workers receive, and their memory."""
    X, y = images()
    cv = ShuffleSplit(N_SPLITS, train_size=200, test_size=100, random_state=0)
    before, memory = sum(client.run(sent).values()), []
    for _ in range(2):
        with dask_backend(client):
            search(N_CANDIDATES // 2, cv).fit(X, y)
        memory.append(max(client.run(resident).values()))
    # the client sends one copy, and the workers pass it on
    ours, once = sum(client.run(sent).values()) - before + 2 * X.nbytes, 2 * N_WORKERS * X.nbytes
    note = "two searches of 100 candidates; peer: once to each worker"
    yield memory_row("search on Dask, images sent to workers", ours, once, target=GROWTH, note=note)
    yield growth_row("search on Dask, images: memory of a worker", *memory)


def growth_row(kernel: str, before: int, after: int) -> dict:
    """A row for the memory of a worker after each half of the candidates."""
    return memory_row(kernel, after, before, target=GROWTH, note="after a further search of 100 candidates")


def run() -> Iterator[dict]:
    """Rows: overhead of a task, and memory; both backends run a small search first."""
    from dask.distributed import Client, LocalCluster

    X, y = data()
    with (
        warnings.catch_warnings(),
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")

        def on_dask(n_candidates: int) -> None:
            with dask_backend(client):
                search(n_candidates).fit(X, y)

        def on_loky(n_candidates: int) -> None:
            with parallel_config("loky", n_jobs=N_WORKERS):
                search(n_candidates).fit(X, y)

        for warm_up in (on_dask, on_loky):
            warm_up(8)
        n_tasks = N_CANDIDATES * N_SPLITS
        ours = seconds(lambda: on_dask(N_CANDIDATES)) / n_tasks
        peer = seconds(lambda: on_loky(N_CANDIDATES)) / n_tasks
        memory = []
        for _ in range(2):
            on_dask(N_CANDIDATES // 2)
            memory.append(max(client.run(resident).values()))
        of_images = list(image_rows(client))
    note = f"{n_tasks} tasks, {N_WORKERS} workers: {1000 * (ours - peer):.0f} ms more, target {1000 * OVERHEAD:.0f}"
    yield ratio_row("search on Dask over loky, a task", ours, peer, target=1 + OVERHEAD / peer, note=note)
    yield growth_row("search on Dask, memory of a worker", *memory)
    yield from of_images
