"""What the workers of test_fanout.py compute: module-level functions that import nothing heavy."""

import os
import signal
import sys
import time
from pathlib import Path

from dyneq.errors import DyneqError


class Unreadable:
    """Can be sent, but not be read."""

    def __reduce__(self):
        return (_refuse, ())


def _refuse():
    raise ValueError("not to be read")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no message")


class Picky(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def act(task):
    """Do what the first word of a task says and return its number, or do not return."""
    verb, number = task
    if verb == "raise":
        raise ValueError(f"bad number {number}\nand a second line")
    if verb == "dyneq":
        raise DyneqError(f"the number {number} should be even; give another")
    if verb == "picky":
        raise Picky(number, number)
    if verb == "unprintable":
        raise Unprintable
    if verb == "leave":
        sys.exit(number)
    if verb == "lambda":
        return lambda: number
    if verb == "unreadable":
        return Unreadable()
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "exit":
        os._exit(3)
    return number * number


def identity(task):
    return task


def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()


def mark(task):
    """Append our process id to a file, then sleep; so that a test knows who is at work."""
    path, seconds = task
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return os.getpid()


def once(path):
    """Die the first time, and only then."""
    marker = Path(path)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def alone(task):
    """Die while somebody else is at work, as one whose memory another one takes; each leaves a file while it works."""
    folder, name, seconds = Path(task[0]), task[1], task[2]
    mine = folder / name
    mine.touch()
    time.sleep(seconds)
    others = [p for p in folder.iterdir() if p != mine]
    if name == "victim" and others:
        mine.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    mine.unlink()
    return name


def threads(_):
    """Return the thread counts this worker sees: of torch, and what other libraries read when they are loaded."""
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")


def sums(seed):
    """Return the bits of sums long enough for torch to divide them among threads, and of a matrix product."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400_000, generator=generator)
    a = torch.randn(300, 300, generator=generator)
    return x.sum().item().hex(), (a @ a).sum().item().hex()
