"""Text tables of lists that may have a hundred thousand rows; no library is imported for them."""

import json
import math
from collections.abc import Sequence
from typing import Any

import click


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, left-aligned, under their headings.

    Args:
        head: Headings.
        rows: Cells, as many as headings in every row; control characters are shown as escapes.
    """
    shown = [row if "".join(row).isprintable() else [visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    form = "  ".join(f"{{:<{width}}}" for width in widths)
    return "\n".join(form.format(*row).rstrip() for row in [head, *shown])


def visible(cell: str) -> str:
    """Return a text with control characters as escapes: names come from files, and a terminal obeys some of them."""
    return cell if cell.isprintable() else cell.encode("unicode_escape").decode()


def size(count: int) -> str:
    """Return a number of bytes for a reader."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:.3g} {unit}"


def moment(stamp: str) -> str:
    """Return a kept time (ISO, UTC) to the second."""
    return stamp[:19].replace("T", " ")


def most(limit: int | None, as_json: bool) -> int:
    """Return how many rows a list shows, 0 for all: a screen has an end, a program wants everything."""
    return (0 if as_json else 100) if limit is None else limit


def tell_more(shown: int, total: int) -> None:
    """Say on standard error that a limit cut a list."""
    if total > shown:
        click.echo(f"{shown} of {total} are listed; --limit 0 lists all", err=True)


def document(command: str, results: Sequence[object], status: str = "complete") -> str:
    """Return the one JSON document of a command; numbers that are not finite are None in it."""
    return json.dumps(
        {"schema": 1, "command": command, "results": plain(list(results)), "status": status}, allow_nan=False
    )


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
