"""Tasks computed by worker processes on this machine.

Each is a ``concurrent.futures`` executor of its own; a lane only says how many tasks it is given at a time, and puts
what went wrong with its process into words.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import TYPE_CHECKING, Any, TypeVar

from dyneq.catalog.fanout import Lane, Pool, WorkerDied, answer, closing, first_line
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    pass

Result = TypeVar("Result")

#: How the thread pools of libraries that are not loaded yet are told their size.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextlib.contextmanager
def local_pool(workers: int, threads: int = 1, preload: Sequence[str] = ()) -> Iterator[Pool]:
    """Open worker processes on this machine.

    The processes are forked from a server that imports and does nothing else: what is slow to import is imported once,
    and while the caller still prepares its tasks. Every worker has an executor of its own, so that one that dies takes
    nothing with it but its task. Workers ignore an interrupt, for the caller stops them, and end by themselves when the
    caller is gone.

    One thread each, whatever the number of workers, is the default because the number of threads decides the order in
    which sums are taken: with it fixed, results are the same bits for every number of workers. A server that the
    caller's own code started before, through ``multiprocessing``, keeps the thread counts it has for NumPy and SciPy;
    torch's is set in any case.

    Args:
        workers: How many processes. More than the cores, divided by the threads, is allowed, and noticed.
        threads: Threads of each worker; one number for all pools of a process.
        preload: Names of modules for the server to import; those that are not there are skipped.

    Yields:
        The pool. Its processes start with the first tasks; no more are started than there are tasks.

    Raises:
        UsageError: If a number is below 1, or another number of threads was asked for earlier in this process.
    """
    for name, number in (("workers", workers), ("threads", threads)):
        if number < 1:
            raise UsageError(f"the number of {name} must be at least 1, but is {number}")
    notices = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers * threads > cores:
        each = "" if threads == 1 else f" of {threads} threads"
        fit = max(1, cores // threads)
        notices.append(
            f"{workers} workers{each} share the {cores} cores of this machine; more than {fit} bring no more speed"
        )
    ours, theirs = socket.socketpair()
    pool = Pool([_ProcessLane(theirs, threads, preload) for _ in range(workers)], notices)
    try:
        _in_thread(_start_server, threads, preload).result()
        with closing(pool):
            yield pool
    finally:
        _drop_server()
        _part(ours, theirs)


@dataclass
class _Server:
    """What is known of the process that workers are forked from; there is one for this process.

    Attributes:
        threads: Of every worker, once it runs: libraries read the number when they are loaded.
        ready: Whether it has imported, and forked a worker.
    """

    threads: int | None = None
    ready: bool = False


_server = _Server()


def _start_server(threads: int, preload: Sequence[str]) -> None:
    """Start the server, if it does not run; it imports while we go on."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise DyneqError(f"worker processes need Unix, but this is {sys.platform}; use a dask cluster instead")
    if _server.threads not in (None, threads):
        raise UsageError(
            f"the workers of this process have {_server.threads} threads each, but now {threads} were asked for; keep "
            "to one number, or start another process"
        )
    before = {name: os.environ.get(name) for name in _THREADS}
    resource_tracker.ensure_running()  # the server needs it, and starting it would lift the block
    # children inherit what is blocked: an interrupt meant for us never reaches the server or a worker, however early
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))
        forkserver.set_forkserver_preload(list(preload))
        forkserver.ensure_running()
        _server.threads = threads
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _in_thread(call: Callable[..., Result], *arguments: Any) -> "Future[Result]":
    """Call in another thread: an interrupt reaches the main thread only, never the middle of talking to the server."""
    thread = ThreadPoolExecutor(1)
    future = thread.submit(call, *arguments)
    thread.shutdown(wait=False)
    return future


def _drop_server() -> None:
    """End the server if it is still importing: nobody waits for it any more, and it would outlive us."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None and not _server.ready and not multiprocessing.active_children():
        os.kill(pid, signal.SIGKILL)


class _Context(ForkServerContext):
    """The fork server's context, which remembers the processes it made: an executor keeps its own private."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[ForkServerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> ForkServerProcess:  # type: ignore[override]
        process = ForkServerProcess(*args, **kwargs)
        self.made.append(process)
        return process


class _ProcessLane(Lane):
    """An executor with one process. It holds one task at a time: the one to blame if the process dies."""

    def __init__(self, lifeline: socket.socket, threads: int, preload: Sequence[str]) -> None:
        self._lifeline = lifeline
        self._prepare = (threads, tuple(preload))
        self._context = _Context()
        self._executor: Executor | None = None
        self._starting: Future[Future[int]] | None = None
        self._hello: Future[int]

    def free(self) -> bool:
        return self.held == 0

    def submit(self, packed: bytes) -> "Future[bytes]":
        while True:
            executor = self._executor or self._start()
            try:
                future = executor.submit(answer, packed, *self._prepare)
            except BrokenProcessPool:  # it died between two tasks, or while it was started
                self._bury()
                continue
            self.held += 1
            return future

    def collect(self, future: "Future[bytes]") -> bytes:
        self.held -= 1
        try:
            return future.result()
        except BrokenProcessPool:
            raise WorkerDied(self._bury()) from None

    def kill(self) -> None:
        if self._starting is not None and not self._starting.done():  # we were interrupted while waiting for it
            _drop_server()
            wait([self._starting], timeout=1.0)
        for process in self._context.made:
            if process.pid is not None:
                process.kill()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _start(self) -> Executor:
        self._starting = _in_thread(self._launch)
        try:
            self._hello = self._starting.result()
        except (OSError, EOFError) as error:
            raise DyneqError(
                f"the worker processes cannot be started: the server they are forked from ended ({first_line(error)})"
            ) from error
        _server.ready = True
        assert self._executor is not None
        return self._executor

    def _launch(self) -> "Future[int]":
        self._context.made.clear()
        self._executor = ProcessPoolExecutor(1, self._context, _enter, (self._lifeline,))
        _start_server(*self._prepare)
        return self._executor.submit(os.getpid)  # returns when the server has imported, and forked

    def _bury(self) -> str:
        """Release a broken executor and return a clause on how its process ended.

        Raises:
            DyneqError: If it ended before it could take a task: the next one would as well.
        """
        assert self._executor is not None
        self._executor.shutdown()
        self._executor = None
        code = self._context.made[-1].exitcode
        how = f"its process ended by itself with exit code {code}"
        if code is not None and code < 0:
            name = {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")
            how = f"its process was ended by {name}"
        if self._hello.exception() is not None:
            raise DyneqError(f"the worker processes cannot be started: the first took no task, {how}")
        return how


def _part(ours: socket.socket, theirs: socket.socket) -> None:
    """Let go of the workers and wait until the last has ended, also one that was forked as its server was killed."""
    ours.shutdown(socket.SHUT_WR)
    theirs.close()
    ours.settimeout(1.0)
    with ours, contextlib.suppress(TimeoutError):
        ours.recv(1)  # nothing is ever sent: this returns when no process holds the other end


def _enter(lifeline: socket.socket) -> None:
    """Begin a worker: leave interrupts to the caller, and end when the caller has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: socket.socket) -> None:
    lifeline.recv(1)
    os._exit(1)
