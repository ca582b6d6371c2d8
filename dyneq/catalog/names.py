"""Which checkpoint a name in the catalog stands for."""

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyneq.catalog.index import Index
from dyneq.catalog.store import Store
from dyneq.errors import UsageError, nearest

#: Columns that listing and resolving need; the documents are left where they are.
BRIEF = "c.sha256, c.run, c.name, c.step, c.path, c.copied, c.samples, c.eps, c.added_at"


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the catalog, as listing shows it.

    Attributes:
        sha256: Digest of the file.
        run: The run it belongs to, empty if none.
        name: What it is called.
        step: Training step.
        path: Its file.
        samples: Size of its pinned batch.
        eps: Step size of its relaxation; None for a map.
    """

    sha256: str
    run: str
    name: str
    step: int
    path: Path
    samples: int
    eps: float | None

    @classmethod
    def of(cls, row: sqlite3.Row, store: Store) -> "Entry":
        """Return the entry of an index row."""
        held: dict[str, Any] = {key: row[key] for key in ("sha256", "run", "name", "step", "samples", "eps")}
        return cls(**held, path=store.place(row["path"]))

    @property
    def label(self) -> str:
        """The shortest name a reader knows it by: run@step, else its name."""
        return f"{self.run}@{self.step}" if self.run else self.name


def resolve(store: Store, index: Index, text: str) -> Entry | None:
    """Return the checkpoint a name, ``run@step``, tag or digest prefix stands for; None if nothing is called so.

    Raises:
        UsageError: If several different checkpoints are; the sentence lists them.
    """
    found: dict[str, list[sqlite3.Row]] = {}
    for row in _candidates(index, text):
        found.setdefault(row["sha256"], []).append(row)
    if not found:
        return None
    if len(found) > 1:
        shown = [f"{Entry.of(rows[0], store).label} ({digest[:12]})" for digest, rows in list(found.items())[:8]]
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise UsageError(
            f"{text!r} stands for {len(found)} checkpoints: {', '.join(shown)}{more}; name one by its digest, or "
            "several with --select"
        )
    return first_there(store, next(iter(found.values())))


def first_there(store: Store, rows: list[sqlite3.Row]) -> Entry:
    """Return the first of several places of one checkpoint whose file is there; the first of all if none is."""
    entries = (Entry.of(row, store) for row in rows)
    return next((entry for entry in entries if entry.path.exists()), Entry.of(rows[0], store))


def _candidates(index: Index, text: str) -> list[sqlite3.Row]:
    select = f"SELECT {BRIEF} FROM checkpoints c"
    run, at, step = text.rpartition("@")
    rows = index.rows(f"{select} WHERE c.name = ? ORDER BY c.run, c.step, c.copied DESC", (text,))
    tagged = f"{select} JOIN tags t ON t.sha256 = c.sha256 WHERE t.tag = ? ORDER BY c.run, c.step, c.copied DESC"
    rows += index.rows(tagged, (text,))
    if at and re.fullmatch(r"[0-9]{1,18}", step):
        rows += index.rows(f"{select} WHERE c.run = ? AND c.step = ? ORDER BY c.copied DESC", (run, int(step)))
    if re.fullmatch(r"[0-9a-fA-F]{4,64}", text):
        low = text.lower()
        within = f"{select} WHERE c.sha256 >= ? AND c.sha256 < ? ORDER BY c.sha256, c.run, c.copied DESC"
        rows += index.rows(within, (low, low + "g"))
    return rows


def newest(store: Store, index: Index) -> Entry | None:
    """Return the checkpoint that was added last, of several at a time the one of the highest step."""
    rows = index.rows(f"SELECT {BRIEF} FROM checkpoints c ORDER BY c.added_at DESC, c.step DESC, c.sha256 LIMIT 1")
    if not rows:
        return None
    others = f"SELECT {BRIEF} FROM checkpoints c WHERE c.sha256 = ? ORDER BY c.run, c.step, c.copied DESC"
    return first_there(store, [*rows, *index.rows(others, (rows[0]["sha256"],))])


def similar(index: Index, text: str, others: list[str]) -> str:
    """Return ``"; did you mean ..."`` for a name that was not found.

    Args:
        index: The catalog.
        text: What was asked for.
        others: Names known from elsewhere.
    """
    run, at, _ = text.rpartition("@")
    if at and (steps := index.rows("SELECT DISTINCT step FROM checkpoints WHERE run = ? ORDER BY step", (run,))):
        return f"; the run {run!r} has the steps {', '.join(str(row['step']) for row in steps[:20])}"
    names = index.rows(
        "SELECT DISTINCT name FROM checkpoints UNION SELECT DISTINCT t.tag FROM tags t "
        "WHERE t.sha256 IN (SELECT sha256 FROM checkpoints) LIMIT 20000"
    )
    runs = [
        f"{r['run']}@{r['step']}" for r in index.rows("SELECT run, step FROM checkpoints WHERE run != '' LIMIT 2000")
    ]
    return nearest(text, [*others, *(row[0] for row in names), *runs])
