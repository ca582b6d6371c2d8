"""Many tasks on several workers: each is answered exactly once, and one that fails takes no other with it.

The workers are those of a pool, made by ``dyneq.catalog.pools`` on this machine and ``dyneq.catalog.cluster``
elsewhere; what is here is the same for all pools.
"""

import contextlib
import importlib
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from dyneq.errors import DyneqError

Task = TypeVar("Task")

#: Seconds without an answer after which lanes are asked again whether they take more.
_PULSE = 2.0


@dataclass(frozen=True)
class Failure:
    """Why a task has no value.

    Attributes:
        kind: ``raised`` (by the task, or on the way to or from its worker), ``died`` (its worker ended, twice, the
            second time with nothing else running) or ``cancelled`` (by somebody else).
        sentence: What happened, for the user; what a ``DyneqError`` says, or another exception's type and first line.
    """

    kind: Literal["raised", "died", "cancelled"]
    sentence: str


class WorkerDied(Exception):
    """The process that computed a task ended without an answer; the message is a clause saying how."""


class TaskDropped(Exception):
    """A task was cancelled by somebody else; the message is a clause saying how."""


class Lane(ABC):
    """One ``concurrent.futures`` executor and the tasks it holds.

    Attributes:
        held: How many tasks were submitted and not yet collected.
    """

    held: int = 0

    @abstractmethod
    def free(self) -> bool:
        """Return whether another task may be submitted."""

    def check(self) -> None:
        """Verify that what is held can still be answered; asked when nothing has been for a while.

        Raises:
            DyneqError: If it cannot: nothing would ever come, and waiting would not end.
        """
        return None

    @abstractmethod
    def submit(self, packed: bytes) -> "Future[bytes]":
        """Have ``answer(packed, ...)`` computed by a worker.

        Raises:
            DyneqError: If there are no workers to be had.
        """

    @abstractmethod
    def collect(self, future: "Future[bytes]") -> bytes:
        """Return the answer of a finished future that ``submit`` returned, or raise what came instead.

        Raises:
            WorkerDied: If its worker ended without an answer.
            TaskDropped: If it was cancelled.
            DyneqError: If workers cannot be started at all.
        """

    @abstractmethod
    def kill(self) -> None:
        """End what is being computed, as far as it can be ended."""

    @abstractmethod
    def close(self) -> None:
        """Release the executor and wait until its processes have ended; if something is held, ``kill`` came before."""


@dataclass
class Pool:
    """Lanes that share the work.

    Attributes:
        lanes: The executors.
        notices: Sentences that the user should read before the run.
    """

    lanes: Sequence[Lane]
    notices: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Release everything once nothing is left to compute."""
        for lane in self.lanes:
            lane.close()

    def stop(self) -> None:
        """End everything at once, whatever is being computed."""
        for lane in self.lanes:
            lane.kill()
        for lane in self.lanes:
            with contextlib.suppress(Exception):  # an executor interrupted in mid-step; its processes are gone
                lane.close()


@contextlib.contextmanager
def closing(pool: Pool) -> Iterator[None]:
    """Close a pool at the end of a ``with`` block; stop it if the block was left by an exception."""
    try:
        yield
    except BaseException:
        pool.stop()
        raise
    pool.close()


def run_all(
    function: Callable[[Task], Any], tasks: Sequence[Task], pool: Pool, *, done: Callable[[int, Any], None]
) -> None:
    """Compute ``function(task)`` for every task on a pool's workers.

    Only as many tasks are sent as the workers can begin soon. A task whose worker died is tried once more at the end,
    with nothing else running, for it may have been the victim of another one, as when memory ran out; it should
    therefore be one that can be begun again.

    If this is interrupted, or ``done`` raises, what is being computed is stopped and the pool of no further use; the
    tasks that ``done`` was not told of have no answer.

    Args:
        function: A function at the top level of a module that workers can import.
        tasks: What it is called with; anything that can be pickled.
        pool: An open pool.
        done: Called with the index of a task and its value or ``Failure``, in this thread, once for every task, in the
            order in which they finish.

    Raises:
        DyneqError: If the function cannot be sent to workers, these cannot be started, or a cluster is lost.
    """
    try:
        pickle.dumps(function)
    except Exception as error:  # pickle raises a different one for each reason
        name = getattr(function, "__qualname__", repr(function))
        raise DyneqError(
            f"{name} cannot be sent to a worker ({_say(error)}); define it at the top level of a module"
        ) from error
    again: list[int] = []  # their workers died

    def first(index: int, result: Any) -> None:
        if isinstance(result, Failure) and result.kind == "died":
            again.append(index)
        else:
            done(index, result)

    try:
        _drive(function, tasks, range(len(tasks)), pool.lanes, first)
        for index in again:  # one at a time: a worker that dies now has nobody else to blame
            _drive(function, tasks, [index], pool.lanes[:1], done)
    except BaseException:
        pool.stop()
        raise


def _drive(
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    indices: Iterable[int],
    lanes: Sequence[Lane],
    report: Callable[[int, Any], None],
) -> None:
    """Keep every lane filled until the tasks of these indices are all reported."""
    todo = iter(indices)
    running: dict[Future[bytes], tuple[int, Lane]] = {}
    finished: SimpleQueue[Future[bytes]] = SimpleQueue()

    def fill(lane: Lane) -> None:
        while lane.free() and (index := next(todo, None)) is not None:
            try:
                packed = pickle.dumps((function, tasks[index]))
            except Exception as error:
                report(index, Failure("raised", f"the task cannot be sent to a worker ({_say(error)})"))
                continue
            future = lane.submit(packed)
            running[future] = index, lane
            future.add_done_callback(finished.put)

    for lane in lanes:
        fill(lane)
    while running:
        try:
            future = finished.get(timeout=_PULSE)
        except Empty:
            for lane in lanes:  # a cluster may have grown, or gone without a word on what it held
                lane.check()
                fill(lane)
            continue
        index, lane = running.pop(future)
        result = _result(lane, future)
        fill(lane)  # before reporting: the worker need not wait for that
        report(index, result)


def _result(lane: Lane, future: "Future[bytes]") -> Any:
    """Return the value of a finished future or a failure."""
    try:
        packed = lane.collect(future)
    except WorkerDied as error:
        return Failure("died", f"no answer, also with nothing else running: {error}")
    except TaskDropped as error:
        return Failure("cancelled", f"cancelled: {error}")
    except DyneqError:
        raise
    except Exception as error:  # the worker could not even call `answer`
        return Failure("raised", f"the worker could not begin ({_say(error)})")
    try:
        return pickle.loads(packed)
    except Exception as error:
        return Failure("raised", f"the answer cannot be read ({_say(error)})")


def answer(packed: bytes, threads: int, preload: Sequence[str]) -> bytes:
    """Compute one task on a worker; bytes in and out, so that nothing is unpickled where no one catches what it raises.

    Args:
        packed: The pickled function and task.
        threads: Threads that torch may use, if it is loaded.
        preload: Names of modules to import before; those that are not there are skipped.

    Returns:
        The pickled value or ``Failure``.
    """
    for name in preload:
        with contextlib.suppress(ImportError):  # a task that needs it will say so
            importlib.import_module(name)
    try:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)  # here, because each thread of a cluster's worker has its own count
        function, task = pickle.loads(packed)
    except Exception as error:
        return pickle.dumps(Failure("raised", f"the worker cannot load the task ({_say(error)})"))
    try:
        value = function(task)
    except BaseException as error:  # sys.exit() too: it would end the worker
        return pickle.dumps(Failure("raised", _say(error)))
    try:
        return pickle.dumps(value)
    except Exception as error:
        return pickle.dumps(Failure("raised", f"the value cannot be sent back ({_say(error)})"))


def _say(error: BaseException) -> str:
    """Return an exception as a sentence or clause: ours as it stands, others as type and first line."""
    try:
        text = str(error)
    except Exception:  # an exception that cannot even be printed still fails only its own task
        text = ""
    if isinstance(error, DyneqError):
        return text
    lines = text.splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
