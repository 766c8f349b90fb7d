"""A joblib backend for Dask clusters whose tasks always end, with a result or one error, even if workers die."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any
from uuid import uuid4

import dask
from dask.distributed import get_client, rejoin, secede
from dask.sizeof import sizeof
from dask.utils import funcname
from distributed.utils import thread_state
from joblib import parallel_config
from joblib.parallel import ParallelBackendBase

__all__ = ["ClusterBackend"]

SMALL = 1000  # largest size in bytes of an argument that is sent with its task
PERIOD = 0.5  # seconds between two checks of the cluster

Callback = Callable[["Future[Any]"], None]


class ClusterBackend(ParallelBackendBase):
    """Runs joblib's tasks on the workers of a Dask client.

    joblib's own backend waits forever if a task kills its workers, and fails if all workers that hold an array die.
    With this backend, the client keeps the data and sends lost data again. During a call, Dask's active memory manager
    pauses.

    Parameters
    ----------
    client : dask.distributed.Client
    scatter : list of objects
        Data to send only once for all calls of joblib.
    wait_for_workers_timeout : float
        Number of seconds without any worker after which the tasks end with an error.
    **submit_options
        Options of ``Client.submit``.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True

    def __init__(
        self, client: Any, scatter: Iterable[Any] = (), wait_for_workers_timeout: float = 60, **submit_options: Any
    ) -> None:
        super().__init__()
        self.client = client
        self.options = {"wait_for_workers_timeout": wait_for_workers_timeout, **submit_options}
        self._patience, self._submit_options = wait_for_workers_timeout, submit_options
        self._address, self._loop = client.scheduler.address, client.loop
        self._data = {id(value): value for value in scatter}
        self._sent: dict[int, tuple[Any, asyncio.Task[Any]]] = {}  # by id; storing the value keeps its id valid
        self._waiting: set[Callback] = set()  # callbacks of the tasks that have not ended
        self._runs: set[Future[None]] = set()

    # ---- interface for joblib
    # -------------------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Number of threads of all workers; at least two, since joblib runs the tasks of one job locally."""
        try:
            if not self.client.ncores():  # an adaptive cluster starts workers once there is a task
                self.client.submit(int, pure=False).result(timeout=self._patience)
            return max(2, sum(self.client.ncores().values()))
        except TimeoutError as error:
            raise self._without_workers() from error
        except Exception as error:
            if self._is_closed():
                raise self._without_client() from error
            raise

    def start_call(self) -> None:
        """Start watching the cluster, and keep the workers' copies of the data."""
        self._has_paused = bool(self._memory_manager("running"))
        if self._has_paused:
            self._memory_manager("stop")
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), name="dask_backend", daemon=True).start()

    def stop_call(self) -> None:
        """Release the data that was sent only for this call."""
        self._stopped.set()
        if self._has_paused:
            self._memory_manager("start")
        for key in set(self._sent) - set(self._data):
            del self._sent[key]

    def _memory_manager(self, method: str) -> Any:
        """Call Dask's active memory manager, which deletes the data on a worker that has no task at that moment."""
        with contextlib.suppress(Exception):  # no manager or no connection, which the watch will notice
            handler = self.client.scheduler.amm_handler
            return None if self._is_closed() else self.client.sync(handler, method=method, callback_timeout=5)

    def submit(self, func: Any, callback: Callback) -> None:
        """Run a batch of calls. The callback receives the outcome exactly once, whatever happens."""
        self._waiting.add(callback)
        run = self._run(func.items, callback)
        try:
            future = asyncio.run_coroutine_threadsafe(run, self._loop.asyncio_loop)
        except RuntimeError:  # the loop is closed, which the watch will notice
            run.close()
        else:
            self._runs.add(future)
            future.add_done_callback(self._runs.discard)

    apply_async = submit  # the name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the result, or raise the error."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the tasks that have not ended."""
        self._waiting.clear()
        for run in [] if self._loop.asyncio_loop.is_closed() else list(self._runs):
            run.cancel()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Release the worker's thread while a task waits for its own tasks."""
        nested = hasattr(thread_state, "execution_state")
        if nested:
            secede()
        yield
        if nested:
            rejoin()

    # ---- one task, in the thread of the client's loop ----------------------------------------------------------------

    async def _run(self, calls: list[Any], callback: Callback) -> None:
        outcome: Future[Any] = Future()
        try:
            outcome.set_result(await self._result(calls))
        except Exception as error:
            outcome.set_exception(error)
        self._end(callback, outcome)

    def _end(self, callback: Callback, outcome: Future[Any]) -> None:
        try:
            self._waiting.remove(callback)
        except KeyError:  # the other thread was faster
            return
        callback(outcome)

    async def _result(self, calls: list[Any]) -> Any:
        """The results of the calls. Lost tasks are computed again, as often as Dask itself would."""
        n_trials = 1 + dask.config.get("distributed.scheduler.allowed-failures")
        for _ in range(n_trials):
            try:
                tasks = [await self._with_references(*call) for call in calls]
                key = f"{funcname(calls[0][0])}-{uuid4().hex}"
                task = self.client.submit(_call, tasks=tasks, options=self.options, key=key, **self._submit_options)
                error = await task.exception(asynchronous=True)  # waits for the end of any kind
                if task.status == "cancelled":
                    raise CancelledError(key)
                if error is None:
                    return await self.client.gather(task, asynchronous=True)
            except Exception as lost:
                last = lost
                await self._until_connected(lost)
            else:  # an error of the call, or the call kills its workers
                worker = await task.traceback(asynchronous=True)
                error.add_note("".join(traceback.format_exception(error.with_traceback(worker))))  # else lost in joblib
                raise error
        if not isinstance(last, CancelledError):
            raise last
        raise RuntimeError(
            f"A task was lost {n_trials} times with the workers that held its data: see the logs of the workers. "
            "If this is expected, raise Dask's `distributed.scheduler.allowed-failures`."
        ) from last

    async def _with_references(self, function: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any], dict[str, Any]]:
        """A call with references in place of its data."""
        names = [await self._reference(value) for value in args]
        return function, names, {name: await self._reference(value) for name, value in kwargs.items()}

    async def _reference(self, value: Any) -> Any:
        if id(value) not in self._data and sizeof(value) < SMALL:
            return value
        _, sending = self._sent.get(id(value), (None, None))
        if sending is None or _is_lost(sending):  # with a new key: the cluster may still release the old one
            sending = asyncio.ensure_future(self.client.scatter([value], broadcast=True, hash=False, asynchronous=True))
            self._sent[id(value)] = value, sending
        return (await sending)[0]

    async def _until_connected(self, error: Exception) -> None:
        """Wait for a connection and a worker, or until the watch ends all tasks."""
        while not self._is_closed():
            await asyncio.sleep(PERIOD)
            with contextlib.suppress(OSError, AttributeError):  # no scheduler
                if self.client.status == "running" and await self.client.scheduler.ncores():
                    return
        raise self._without_client() from error

    # ---- watching the cluster, in a separate thread since the loop may stop
    # ----------------------------------------------------

    def _watch(self, stopped: threading.Event) -> None:
        alone_since = None
        while not stopped.wait(PERIOD):
            if self._is_closed():
                return self._end_all(self._without_client())
            if self._n_workers() != 0:
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > self._patience:
                return self._end_all(self._without_workers())

    def _n_workers(self) -> int | None:
        with contextlib.suppress(Exception):  # no current connection
            return len(self.client.sync(self.client.scheduler.ncores, callback_timeout=10))
        return None

    def _end_all(self, error: Exception) -> None:
        for callback in list(self._waiting):
            outcome: Future[Any] = Future()
            outcome.set_exception(error)
            self._end(callback, outcome)

    def _is_closed(self) -> bool:
        return self.client.status in ("closing", "closed")

    def _without_client(self) -> ConnectionError:
        return ConnectionError(
            f"The Dask client was closed, or lost its scheduler at {self._address}, before all tasks were done. "
            "Run them again with a new client; fits with a `checkpoint_dir` resume from there."
        )

    def _without_workers(self) -> TimeoutError:
        return TimeoutError(
            f"`wait_for_workers_timeout`: the Dask cluster at {self._address} had no worker for {self._patience:g} "
            "seconds. Start workers, or wait longer; fits with a `checkpoint_dir` resume from there."
        )


def _is_lost(sending: asyncio.Task[Any]) -> bool:
    if not sending.done():
        return False
    return sending.cancelled() or sending.exception() is not None or sending.result()[0].status != "finished"


def _call(tasks: list[Any], options: dict[str, Any]) -> list[Any]:
    """Run the calls of a batch on a worker, with joblib configured to use the cluster there, too."""
    with parallel_config(backend=ClusterBackend(get_client(), **options)):
        return [function(*args, **kwargs) for function, args, kwargs in tasks]
