"""Showing how a run proceeds: a live display on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from dyneq.train.log import Record
from dyneq.train.plateau import Plateau
from dyneq.train.plateau_evidence import number, penalty_share

#: Seconds between two plain lines.
INTERVAL = 15.0
#: Updates that shares are taken over, and those the loss is averaged over.
SHARE_OVER, LOSS_OVER = 100, 20
#: Where a leading multiplier may stand in a record: a look of the guard, a deep evaluation, the penalty ``spectral``.
MULTIPLIERS = ("guard_modulus", "validation_multiplier", "penalty_spectral_measure")
#: Columns from which on two or three numbers stand side by side.
TWO, THREE = 78, 108


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

    def warn(self, sentence: str) -> None:
        """Show that something is not as it was asked for; also where little else is shown."""
        self.note(sentence)


class SilentProgress(Progress):
    """Shows nothing."""

    def update(self, record: Record) -> None:
        """Ignore the update."""

    def note(self, sentence: str) -> None:
        """Ignore the sentence."""


class QuietProgress(SilentProgress):
    """Shows warnings alone."""

    def warn(self, sentence: str) -> None:
        """Print the sentence."""
        click.echo(f"dyneq: {sentence}", err=True)


class Numbers:
    """What a display shows of the records so far.

    Attributes:
        pairs: What it is and its value, both as text.
        plateau: The plateau a stalled run is on and what to do; empty if it is on none.
        act: The latest act of the guard, or switch of the gradient; empty if there was none.
    """

    def __init__(self) -> None:
        self.pairs: tuple[tuple[str, str], ...] = ()
        self.plateau, self.act = "", ""
        self._loss: deque[float] = deque(maxlen=LOSS_OVER)
        self._skipped: deque[bool] = deque(maxlen=SHARE_OVER)
        self._shares: deque[float] = deque(maxlen=SHARE_OVER)
        self._latest: dict[str, tuple[float, int]] = {}
        self._penalised, self._best = False, math.inf

    def observe(self, record: Record) -> None:
        """Take note of a record."""
        step = int(record["step"])
        for what in ("switch", "act"):
            if what in record:
                self.act = f"update {step}: {record[what]}"
        if "plateau" in record:
            named = record["plateau"] not in (Plateau.NONE, Plateau.UNDETERMINED)
            self.plateau = f"update {step}: {record.get('plateau_why', record['plateau'])}" if named else ""
        loss = number(record, "loss")
        if loss is None:
            return
        self._loss.append(loss)
        for name in ("force_residual", "force_residual_max", "validation_loss"):
            if (value := number(record, name)) is not None:
                self._latest[name] = value, step
        measured = [value for name in MULTIPLIERS if (value := number(record, name)) is not None]
        if measured:
            self._latest["multiplier"] = measured[0], step
        if (value := number(record, "validation_loss")) is not None:
            self._best = min(self._best, value)
        if (value := number(record, "nudge_skipped")) is not None:
            self._skipped.append(value > 0)
        self._penalised |= any(name.startswith("penalty_") for name in record)
        if (share := penalty_share(record)) is not None:
            self._shares.append(min(max(share, 0.0), 1.0))
        self.pairs = tuple(self._pairs())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        yield f"loss (mean of {len(self._loss)})", f"{sum(self._loss) / len(self._loss):.3f}"
        if "validation_loss" in self._latest:
            yield "validation loss", f"{self._latest['validation_loss'][0]:.3f}, best {self._best:.3f}"
        if "force_residual" in self._latest:
            worst = self._latest.get("force_residual_max")
            more = "" if worst is None else f", worst {worst[0]:.0e}"
            yield "force residual", f"{self._latest['force_residual'][0]:.1e}{more}"
        if "multiplier" in self._latest:
            value, step = self._latest["multiplier"]
            yield "leading multiplier", f"{value:.4f} at {step}"
        else:
            yield "leading multiplier", "not measured"
        if self._skipped:
            yield "nudges skipped", f"{100 * sum(self._skipped) / len(self._skipped):.0f} % of {len(self._skipped)}"
        else:
            yield "nudges skipped", "no gate"
        if self._penalised and self._shares:
            yield "penalties", f"{100 * sum(self._shares) / len(self._shares):.0f} % of the update"
        else:
            yield "penalties", "undetermined" if self._penalised else "none"


class PlainProgress(Progress):
    """One line on standard error now and then, for logs and pipes."""

    def __init__(self) -> None:
        self._total, self._began, self._from, self._shown = 0, 0.0, 0, 0.0
        self._numbers = Numbers()

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Remember the total."""
        self._total, self._from = total, done
        self._began = self._shown = time.monotonic()
        yield

    def update(self, record: Record) -> None:
        """Print the update if the last line is long enough ago."""
        self._numbers.observe(record)
        now = time.monotonic()
        if now - self._shown >= INTERVAL and self._numbers.pairs:
            self._shown = now
            numbers = "; ".join(f"{what} {value}" for what, value in self._numbers.pairs)
            self.note(f"update {record['step']}/{self._total}: {numbers}; {self._left(record['step'], now)} left")

    def _left(self, step: int, now: float) -> str:
        each = (now - self._began) / max(1, step - self._from)
        seconds = round(each * max(0, self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def note(self, sentence: str) -> None:
        """Print the sentence."""
        click.echo(sentence, err=True)


class LiveProgress(Progress):
    """A live display on a terminal: bar and time left, the numbers, the plateau and the latest act of the guard.

    Args:
        console: Where to; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._bar = Bar(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            expand=True,
            speed_estimate_period=120,
        )
        self._numbers = Numbers()

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Show the display; it leaves nothing behind but what was noted."""
        self._task = self._bar.add_task("training", total=total, completed=done)
        with Live(self, console=self._console, refresh_per_second=4, transient=True):
            yield

    def update(self, record: Record) -> None:
        """Show the update."""
        self._numbers.observe(record)
        self._bar.update(self._task, completed=record["step"])

    def note(self, sentence: str) -> None:
        """Print the sentence above the display."""
        self._console.print(sentence, highlight=False, markup=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the width there is."""
        width = options.max_width
        side = 3 if width >= THREE else 2 if width >= TWO else 1
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(side):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(no_wrap=True, overflow="ellipsis")
        pairs = self._numbers.pairs
        for i in range(0, len(pairs), side):
            grid.add_row(*(text for pair in pairs[i : i + side] for text in pair))
        lines = [_clipped("plateau", self._numbers.plateau, "yellow", console, width)] if self._numbers.plateau else []
        if self._numbers.act:
            lines.append(_clipped("latest act", self._numbers.act, "cyan", console, width))
        yield Group(self._bar.get_renderable(), grid, *lines)


def progress_for(quiet: bool) -> Progress:
    """Return what fits where standard error goes: warnings alone, plain lines, or a live display."""
    if quiet:
        return QuietProgress()
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def _clipped(what: str, sentence: str, style: str, console: Console, width: int, most: int = 3) -> Text:
    """Return a sentence on at most three lines, so that the display keeps its size."""
    lines = Text.assemble((f"{what}: ", "dim"), (sentence, style)).wrap(console, width)
    if len(lines) > most:
        lines[most - 1].truncate(max(1, width - 1))
        lines[most - 1].append("…", style)
    return Text("\n").join(lines[:most])
