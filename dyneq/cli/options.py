"""Options that every command shares, and the progress of one task."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

store_option = click.option(
    "--store", metavar="DIR", envvar="DYNEQ_STORE", help="Folder of catalog and results (default: .dyneq)."
)
select_option = click.option(
    "--select",
    "selection",
    metavar="SELECTION",
    envvar="DYNEQ_SELECT",
    help="Such as 'run=floss-3 and step>=800 and val<2.4'.",
)
json_option = click.option("--json", "as_json", is_flag=True, envvar="DYNEQ_JSON", help="Print one JSON document.")
quiet_option = click.option("--quiet", is_flag=True, envvar="DYNEQ_QUIET", help="No progress on standard error.")
limit_option = click.option(
    "--limit",
    type=click.IntRange(0),
    envvar="DYNEQ_LIMIT",
    help="So many of the newest; 0: all (default: 100, and all with --json).",
)


@contextlib.contextmanager
def progress_display(title: str, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Show what is being done on standard error, only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=1.0)
        yield lambda what, share: display.update(task, description=f"{title}: {what}", completed=share)
