"""The one progress display of a run over many checkpoints."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Update(Protocol):
    """Told how far a run is."""

    def __call__(self, done: int, computed: int, found: int, failed: int, last: str) -> None:
        """Show the state of the run.

        Args:
            done: Tasks that are finished, in whichever way.
            computed: Those of them that were computed now.
            found: Those whose result was there already.
            failed: Those that failed.
            last: The task that finished last.
        """


def _ignore(done: int, computed: int, found: int, failed: int, last: str) -> None:
    """Show nothing."""


@contextlib.contextmanager
def display(total: int, quiet: bool) -> Iterator[Update]:
    """Show how far a run is on standard error: counts, time elapsed and remaining; only on a terminal.

    The display is erased at the end; what came of the run is for the caller to print.

    Args:
        total: How many tasks there are.
        quiet: Show nothing.

    Yields:
        A function to call whenever something has changed.
    """
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[last]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    # tasks may take minutes each: the speed is that of the whole run, not of its last half minute
    shown = Progress(
        *columns, console=Console(stderr=True), transient=True, expand=True, speed_estimate_period=7 * 24 * 3600
    )
    with shown as progress:
        task = progress.add_task("", total=total, counts="starting", last="")

        def update(done: int, computed: int, found: int, failed: int, last: str) -> None:
            counts = f"{computed} computed, {found} found" + (f", {failed} failed" if failed else "")
            progress.update(task, completed=done, counts=counts, last=last)

        yield update
