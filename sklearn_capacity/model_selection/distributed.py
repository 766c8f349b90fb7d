"""Searches on a Dask cluster that survive the death of a worker."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from joblib import parallel_config

from .._validation import check_instance, check_integer, check_interval

__all__ = ["dask_backend"]


def dask_backend(
    client: Any = None, *, scatter: Any = None, wait_for_workers_timeout: float = 60, **options: Any
) -> Any:
    """Run joblib's tasks on Dask; what a dying worker loses is sent and computed again.

    Each worker receives the data once: Dask's active memory manager, which would delete the copy of a worker that has
    no task for a moment, pauses during a call.

    Every task ends with its result or with one error, and an error ends the call that waits for it: the task's own
    error; Dask's ``KilledWorker`` if the task kills its workers; a ``RuntimeError`` if its data are lost with them, by
    default four times; a ``ConnectionError`` if the client is closed, or finds no scheduler at its address within its
    ``timeout``; a ``TimeoutError`` without workers.

    Parameters
    ----------
    client : dask.distributed.Client, default=None
        The Dask client; None is the current one.
    scatter : list of objects, default=None
        Data to send to each worker only once for all searches: the same X and y objects that are passed to `fit`. Other
        arguments above 1 kB, such as the indices of a fold, are sent once per search.
    wait_for_workers_timeout : float, default=60
        Number of seconds without any worker after which the call ends; allow for the time that workers wait in a queue.
    **options
        Further arguments of ``joblib.parallel_config`` and of ``Client.submit``.

    Returns
    -------
    context manager
        Within the context, joblib's tasks run on the client's workers.

    Raises
    ------
    ImportError
        If Dask is missing; the ``distributed`` extra installs it.
    ValueError
        If there is no client, or it is closed.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_capacity import NetworkClassifier, model_selection
    >>> def run(X, y):  # in a script: under `if __name__ == "__main__"`
    ...     from dask.distributed import Client
    ...     search = GridSearchCV(NetworkClassifier(random_state=0), {"dropout": [0.0, 0.5]})
    ...     with Client(n_workers=2, threads_per_worker=1), model_selection.dask_backend(scatter=[X, y]):
    ...         return search.fit(X, y)
    """
    try:
        from dask.distributed import Client, get_client
    except ImportError as error:
        raise ImportError("`dask_backend` needs Dask: pip install 'sklearn_capacity[distributed]'.") from error
    if client is None:
        try:
            client = get_client()
        except ValueError as error:
            raise ValueError(
                "`client` must be a Dask client if there is no current one, got None. Create a Client."
            ) from error
    check_instance("client", client, Client, "a Dask client")
    if client.status in ("closing", "closed"):
        raise ValueError("`client` must be open, got one that is closed: create a Client.")
    check_instance("scatter", scatter, (list, tuple, type(None)), "a list")
    check_interval("wait_for_workers_timeout", wait_for_workers_timeout, low=0)
    if "priority" in options:
        check_interval("priority", options["priority"], closed="neither")
    from .cluster_backend import ClusterBackend

    config = {name: options.pop(name) for name in inspect.signature(parallel_config).parameters if name in options}
    if config.get("n_jobs") is not None:
        check_integer("n_jobs", config["n_jobs"], -sys.maxsize)
    if "verbose" in config:  # joblib fails on another one in a thread of Dask, where the error is lost
        check_interval("verbose", config["verbose"], 0)
    backend = ClusterBackend(client, scatter or (), wait_for_workers_timeout, **options)
    return parallel_config(backend=backend, **config)
