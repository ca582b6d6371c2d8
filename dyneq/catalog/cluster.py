"""Tasks computed by a dask.distributed cluster that is running."""

import asyncio
import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from dyneq.catalog.fanout import Lane, Pool, TaskDropped, WorkerDied, answer, closing, first_line
from dyneq.errors import DyneqError

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two looks at how many workers a cluster has.
_LOOK = 2.0


@contextlib.contextmanager
def cluster_pool(
    address: str, threads: int = 1, preload: Sequence[str] = (), *, timeout: float = 10.0
) -> Iterator[Pool]:
    """Connect to a running dask.distributed cluster.

    Its workers must have dyneq and see the same files. Start them with one thread each (``dask worker --nthreads 1``)
    and with their nannies, which restart a worker that dies. A task being computed cannot be taken back from a worker:
    when the caller is interrupted, it is finished and its answer thrown away.

    Args:
        address: ``HOST:PORT`` or ``tcp://HOST:PORT`` of the scheduler.
        threads: Threads torch uses for one task; see ``local_pool``.
        preload: Names of modules a worker imports before its first task; see ``local_pool``.
        timeout: Seconds to wait for the scheduler.

    Yields:
        The pool.

    Raises:
        DyneqError: If dask.distributed is not installed, or the scheduler does not answer.
    """
    try:
        import distributed
    except ImportError as error:
        raise DyneqError(
            f"a scheduler at {address!r} was named, but dask.distributed cannot be imported ({first_line(error)}); "
            "install dyneq[dask]"
        ) from error

    class _Client(distributed.Client):
        """One that is closed below, or could not be made: closing it once more would wait, then complain of that."""

        def __del__(self) -> None: ...

    with _quiet_logs():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", distributed.versions.VersionMismatchWarning)
            try:
                client = _Client(address, timeout=timeout, set_as_default=False, name="dyneq")
            except Exception as error:  # the library raises what its transports raise
                raise DyneqError(
                    f"no dask scheduler answers at {address!r} ({first_line(error)}); start one with "
                    "`dask scheduler`, or name the address that it prints"
                ) from error
        with client:
            lane = _ClusterLane(client, address, threads, preload)
            notices = [_one_line(str(w.message)) for w in caught]
            if not lane.threads_of_cluster():
                notices.append(f"the cluster at {address} has no workers yet; start some with `dask worker {address}`")
            pool = Pool([lane], notices)
            with closing(pool):
                yield pool


class _ClusterLane(Lane):
    """The executor of a cluster's client; it holds two tasks for each thread of the cluster, one of them in reserve."""

    def __init__(self, client: "Client", address: str, threads: int, preload: Sequence[str]) -> None:
        self._client = client
        self._address = address
        self._prepare = (threads, tuple(preload))
        self._executor = _executor(client)
        self._room = 1
        self._look_at = 0.0

    def threads_of_cluster(self) -> int:
        """Return how many tasks the cluster computes at a time."""
        return sum(self._client.nthreads().values())

    def free(self) -> bool:
        if time.monotonic() >= self._look_at:
            with contextlib.suppress(Exception):  # the client reconnects, or has given up and says so when we submit
                self._room = 2 * max(1, self.threads_of_cluster())
            self._look_at = time.monotonic() + _LOOK
        return self.held < self._room

    def _lost(self, why: str) -> DyneqError:
        return DyneqError(
            f"the connection to the scheduler at {self._address!r} was lost ({why}); what was finished is kept, run "
            "again to go on"
        )

    def check(self) -> None:
        if self._client.status in ("closing", "closed"):
            raise self._lost("the client gave it up")

    def submit(self, packed: bytes) -> "Future[bytes]":
        try:
            future = self._executor.submit(answer, packed, *self._prepare)
        except Exception as error:
            raise self._lost(first_line(error)) from error
        self.held += 1
        return future

    def collect(self, future: "Future[bytes]") -> bytes:
        from distributed import KilledWorker

        self.held -= 1
        if future.cancelled():
            raise TaskDropped("the cluster cancelled it, or the connection to the scheduler was lost")
        try:
            return future.result()
        except KilledWorker as error:
            raise WorkerDied(f"{error.allowed_failures + 1} workers died of it") from error
        except Exception as error:
            if self._client.status == "running":
                raise
            raise TaskDropped(f"the connection to the scheduler was lost ({first_line(error)})") from error

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # where the connection is lost there is nothing to cancel
            self._executor.shutdown(wait=False)

    def close(self) -> None:
        self._executor.shutdown()


def _executor(client: "Client") -> Executor:
    """Return the client's executor, whose futures are given what came of a task by :func:`hand_over`."""
    from distributed.cfexecutor import ClientExecutor

    assert client.loop is not None  # it was there to connect with
    later = client.loop.add_callback

    class _Executor(ClientExecutor):
        def _wrap_future(self, future: Any) -> "Future[bytes]":
            handed: Future[bytes] = Future()

            def cancelled(done: "Future[bytes]") -> None:
                if done.cancelled() and future.status != "cancelled":
                    future.cancel()

            handed.add_done_callback(cancelled)
            later(hand_over, future, handed)
            return handed

    # equal tasks are tasks all the same: `pure` would compute one of them
    return _Executor(client, pure=False)


async def hand_over(future: Any, handed: "Future[bytes]") -> None:
    """Wait for a task of the cluster and give what came of it to a future of ours, whatever its status is by then.

    The library's own way asks for the status after the answer has come. Where the worker that held it has died in
    between, the task is pending again, and it then takes the answer apart as if it were an error.

    Args:
        future: The cluster's future of a task whose value is bytes.
        handed: Ours.
    """
    try:
        got = await future._result(raiseit=False)
    except asyncio.CancelledError:
        got = None
    except Exception as error:
        got = type(error), error, error.__traceback__
    if handed.cancelled():
        return
    if isinstance(got, bytes):
        handed.set_result(got)
    elif isinstance(got, tuple):
        handed.set_exception(got[1].with_traceback(got[2]))
    else:
        handed.cancel()
        handed.set_running_or_notify_cancel()  # wakes those who wait for it


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep the library's loggers from standard error: what matters of it is said in sentences."""
    names = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in ("distributed", "tornado")]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _one_line(table: str) -> str:
    """Return a text with a drawn table as one line: without its rules, rows set apart by semicolons."""
    rows = [line.strip(" |") for line in table.splitlines() if line.strip("+-= ")]
    return "; ".join(" ".join(row.split()) for row in rows)
