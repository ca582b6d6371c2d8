"""Showing how a run proceeds: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dyneq.train.log import Record

#: Seconds between two plain lines.
INTERVAL = 15.0


class Progress(ABC):
    """What a run tells while it runs."""

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Enter for the duration of a run of ``total`` updates of which ``done`` are already applied."""
        yield

    @abstractmethod
    def update(self, record: Record) -> None:
        """Take note of an update that was applied."""

    @abstractmethod
    def note(self, sentence: str) -> None:
        """Show a sentence."""


class SilentProgress(Progress):
    """Shows nothing."""

    def update(self, record: Record) -> None:
        """Ignore the update."""

    def note(self, sentence: str) -> None:
        """Ignore the sentence."""


class PlainProgress(Progress):
    """One line on standard error now and then, for logs and pipes."""

    def __init__(self) -> None:
        self._total, self._shown = 0, 0.0

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Remember the total."""
        self._total, self._shown = total, time.monotonic()
        yield

    def update(self, record: Record) -> None:
        """Print the update if the last line is long enough ago."""
        if time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self.note(f"update {record['step']}/{self._total}  {_numbers(record)}")

    def note(self, sentence: str) -> None:
        """Print the sentence."""
        click.echo(sentence, err=True)


class BarProgress(Progress):
    """A live bar with loss and force residual, on a terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Show the bar."""
        with self._bar:
            self._task = self._bar.add_task("training", total=total, completed=done, numbers="")
            yield

    def update(self, record: Record) -> None:
        """Advance the bar."""
        self._bar.update(self._task, completed=record["step"], numbers=_numbers(record))

    def note(self, sentence: str) -> None:
        """Print the sentence above the bar."""
        self._bar.console.print(sentence, highlight=False, markup=False)


def progress_for(quiet: bool) -> Progress:
    """Return what fits where standard error goes: nothing, plain lines, or a bar."""
    if quiet:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def _numbers(record: Record) -> str:
    return f"loss {record['loss']:.3f}  force residual {record['force_residual']:.1e}"
