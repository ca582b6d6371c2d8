"""Several processes that train together, as torchrun starts them: who they are, and how they stay of one mind.

All of them run the same loop and come to the same decisions, from numbers that are the same in all of them. Files, log,
catalog and progress belong to the first one. Before they exchange anything they agree that none of them has failed, so
that an error in one is an error in all, whatever each was about to do, and none waits for one that will not come.
"""

import gc
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dyneq.errors import DyneqError, UsageError

T = TypeVar("T")


class Ended(DyneqError):
    """Another process has failed or is gone, so that there is nobody left to exchange anything with."""


class Group:
    """The processes of a run, from the point of view of one of them.

    Args:
        rank: Number of this process, counted from 0.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._closing: list[Callable[[], None]] = []

    def at_end(self, release: Callable[[], None]) -> None:
        """Call ``release`` before the group ends, which lets go of what holds it.

        What averages gradients owns the connections as well. Were it the last to do so, it would end their threads
        while holding the interpreter's lock, for which one of them may be waiting.
        """
        self._closing.append(release)

    def end(self) -> None:
        """Close all connections."""
        for release in self._closing:
            release()
        gc.collect()  # it refers to itself
        dist.destroy_process_group()

    def agree(self, failure: str | None = None) -> None:
        """Exchange whether all is well; comes before every other exchange.

        Args:
            failure: What went wrong in this process, None if nothing did.

        Raises:
            Ended: If anything went wrong in any.
        """
        with reached():
            failed = torch.tensor([int(failure is not None)])
            dist.all_reduce(failed, op=dist.ReduceOp.MAX)
            if not int(failed):
                return
            told: list[Any] = [None] * self.size
            dist.all_gather_object(told, failure)
        rank = next(r for r, sentence in enumerate(told) if sentence is not None)
        raise Ended(f"process {rank} of {self.size}: {told[rank]}" if rank else told[rank])

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which are of one shape, in the order of their numbers.

        Raises:
            Ended: If another process has failed.
        """
        self.agree()
        found = [torch.empty_like(values) for _ in range(self.size)]
        with reached():
            dist.all_gather(found, values.contiguous())
        return found

    def broadcast(self, value: T | None, source: int = 0) -> T:
        """Return what one process has, in all of them.

        Raises:
            Ended: If another process has failed.
        """
        self.agree()
        held = [value]
        with reached():
            dist.broadcast_object_list(held, src=source)
        return held[0]  # type: ignore[return-value]


_group: Group | None = None


@contextmanager
def reached() -> Iterator[None]:
    """Say in a sentence that a connection broke."""
    try:
        yield
    except RuntimeError as error:
        raise Ended(
            f"another process of this run is gone ({_first_line(error)}); see what it said or what killed it, then "
            "continue with --resume"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def group() -> Group | None:
    """Return the processes of this run, None if there is only this one."""
    return _group


def size() -> int:
    """Return how many processes train together."""
    return 1 if _group is None else _group.size


def first() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return _group is None or _group.rank == 0


def lead(act: Callable[[], T]) -> T:
    """Return what the first process gets from ``act``, called in it alone; its error is everybody's.

    Args:
        act: What only one process may do; its result must be plain enough to be sent.

    Raises:
        Exception: Whatever ``act`` raised.
    """
    if _group is None:
        return act()
    result, error = None, None
    if _group.rank == 0:
        try:
            result = act()
        except Exception as raised:
            error = raised
        try:
            pickle.dumps((result, error))  # what cannot be sent must not keep the others waiting
        except Exception:
            result, error = None, error or TypeError(f"{type(result).__name__} cannot be sent to other processes")
            error = error if _sendable(error) else DyneqError(str(error))
    outcome: tuple[T | None, Exception | None] = _group.broadcast((result, error))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def _sendable(error: Exception) -> bool:
    try:
        pickle.dumps(error)
    except Exception:
        return False
    return True


def agreed(value: T) -> T:
    """Return the first process's value, so that decisions made from it are the same in all.

    Processes on unlike machines may differ in the last bits of what they compute from equal weights.
    """
    return value if _group is None else _group.broadcast(value)


def gathered(values: Tensor) -> Tensor:
    """Return numbers ``[sample]`` of the whole batch, of which this process has its share."""
    return values if _group is None else torch.cat(_group.gather(values))


def require_same(what: str, value: str) -> None:
    """Raise unless all processes have the same.

    Args:
        what: What it is, for the message.
        value: It, or a digest of it.

    Raises:
        DyneqError: If one has another.
    """
    if _group is not None and agreed(value) != value:
        raise DyneqError(
            f"all processes of a run need the same {what}, but process {_group.rank} has another than process 0; start "
            "them with the same command and the same files"
        )


@contextmanager
def joined(device: str = "cpu") -> Iterator[str]:
    """Enter the group of processes torchrun started this one in; without torchrun, nothing happens.

    Args:
        device: Where to train; ``cuda`` becomes the device of this process.

    Yields:
        The device of this process.

    Raises:
        UsageError: If the environment names processes in a way that makes no sense.
        DyneqError: If they do not find each other, or one of them fails.
    """
    global _group
    rank, count = _numbers()
    if count > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
    if count == 1 or _group is not None:
        yield device
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        raise DyneqError(
            f"the {count} processes of this run did not find each other ({_first_line(error)}); start them with "
            "torchrun, which says where they meet"
        ) from error
    _group = Group(rank, count)
    try:
        yield device
        _group.agree()  # nobody leaves before all are done
    except Ended:
        raise
    except Exception as error:
        _fail(_group, error)
        raise
    finally:
        ending, _group = _group, None
        ending.end()


def _fail(members: Group, error: Exception) -> None:
    """Tell the others of an error; it is raised here as it is, unless a process before this one has another.

    Raises:
        Ended: If an earlier process's error is the one to show.
    """
    sentence = str(error) if isinstance(error, DyneqError) else f"{type(error).__name__}: {error}"
    try:
        members.agree(sentence)
    except Ended as ended:
        if sentence not in str(ended):
            raise


def _numbers() -> tuple[int, int]:
    """Return the number of this process and how many there are, as torchrun tells them.

    Raises:
        UsageError: If they make no sense.
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if None in told.values():
        return 0, 1
    try:
        rank, count = (int(value or "") for value in told.values())
        if not 0 <= rank < count:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"RANK and WORLD_SIZE in the environment should number the processes of a run, but are {told['RANK']!r} "
            f"and {told['WORLD_SIZE']!r}; start them with torchrun, or unset both"
        ) from None
    return rank, count
