"""Searches on a Dask cluster that outlive the death of a worker."""

from __future__ import annotations

from typing import Any

from joblib import parallel_config

from .._validation import check_instance

__all__ = ["dask_backend"]


def dask_backend(client: Any = None, *, scatter: Any = None, **options: Any) -> Any:
    """Run joblib's tasks on Dask, with all that they share held by every worker.

    Left to itself, joblib puts the arrays that it finds in tasks, such as the indices of a fold, on one worker. If
    that worker dies they are lost, and the search fails instead of running its task again.

    Parameters
    ----------
    client : dask.distributed.Client, default=None
        None: the current one.
    scatter : list of objects, default=None
        Data to send to each worker once, before the first task: the very X and y that `fit` gets.
    **options
        More arguments of ``joblib.parallel_config`` and of ``Client.submit``.

    Returns
    -------
    context manager
        Tasks of joblib run on the client's workers inside it.

    Raises
    ------
    ImportError
        Without Dask, which the ``distributed`` extra installs.
    ValueError
        If there is no client.

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
            raise ValueError("`client` must be a Dask client, as there is no current one: create a Client.") from error
    check_instance("client", client, Client, "a Dask client")
    return parallel_config(backend="dask", client=_Broadcasting(client), scatter=scatter, **options)


class _Broadcasting:
    """A Dask client that scatters to all workers."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def scatter(self, data: Any, **options: Any) -> Any:
        return self._client.scatter(data, **{**options, "broadcast": True})
