"""Who may write to a store: many writers at a time, or one that puts the whole in order."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Hold a store as one of many writers; a kill releases it.

    Raises:
        OSError: If the lock files cannot be opened.
    """
    # passing the turnstile first lets a waiting maintainer in: its turn comes once the writers inside are done
    with _locked(folder / ".turn", fcntl.LOCK_SH):
        inside = _take(folder / ".lock", fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(inside)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a store alone, waiting for the writers inside to finish; a kill releases it.

    Raises:
        OSError: If the lock files cannot be opened.
    """
    with _locked(folder / ".turn", fcntl.LOCK_EX), _locked(folder / ".lock", fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    handle = _take(path, how)
    try:
        yield
    finally:
        os.close(handle)


def _take(path: Path, how: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, how)
    except BaseException:
        os.close(handle)
        raise
    return handle
