"""Answering selections from the index."""

import sqlite3
from dataclasses import dataclass

from dyneq.catalog.index import Index
from dyneq.catalog.selection import Expression, fields, parse, parse_field
from dyneq.catalog.selection_sql import Column, Schema, to_sql
from dyneq.errors import UsageError, nearest

_ALIASES = {"val": "metrics.validation_loss", "digest": "sha256", "created": "stored_at", "added": "added_at"}

#: Fields of a checkpoint selection; any other name is a metric.
CHECKPOINTS = Schema(
    columns={
        **{
            name: Column(f"c.{name}", "text")
            for name in ("sha256", "run", "name", "path", "kind", "made_at", "made_by")
        },
        **{name: Column(f"c.{name}", "number") for name in ("step", "samples", "eps", "bytes")},
        "added_at": Column("c.added_at", "text"),
        "tag": Column("c.sha256 IN (SELECT t.sha256 FROM tags t WHERE t.tag {compare})", "many"),
    },
    documents={name: f"c.{name}" for name in ("metrics", "config", "recipe")},
    default="metrics",
    aliases={key: value for key, value in _ALIASES.items() if key != "created"},
)

#: Fields of a result selection: the result's own, then those of its checkpoint.
RESULTS = Schema(
    columns={
        **{
            name: Column(f"r.{name}", "text")
            for name in ("id", "probe", "dtype", "device", "name", "status", "stored_at")
        },
        **{name: Column(f"r.{name}", "number") for name in ("version", "batch", "eps", "step", "duration", "bytes")},
        "sha256": Column("r.checkpoint", "text"),
        "run": Column("r.id IN (SELECT v.id FROM runs_of_results v WHERE v.run {compare})", "many"),
        "kind": Column("(SELECT c.kind FROM checkpoints c WHERE c.sha256 = r.checkpoint LIMIT 1)", "text"),
        "tag": Column("r.checkpoint IN (SELECT t.sha256 FROM tags t WHERE t.tag {compare})", "many"),
    },
    documents={
        "params": "r.params",
        **{
            name: f"(SELECT c.{name} FROM checkpoints c WHERE c.sha256 = r.checkpoint LIMIT 1)"
            for name in ("metrics", "config", "recipe")
        },
    },
    default="metrics",
    aliases={key: value for key, value in _ALIASES.items() if key != "added"},
)


@dataclass(frozen=True)
class _Table:
    schema: Schema
    source: str
    what: str


_TABLES = {
    "checkpoints": _Table(CHECKPOINTS, "checkpoints c", "checkpoint"),
    "results": _Table(RESULTS, "results r", "result"),
}


def select(
    index: Index, table: str, selection: str | None, columns: str, order: str, limit: int | None = None
) -> list[sqlite3.Row]:
    """Return the rows of ``checkpoints`` (as ``c``) or ``results`` (as ``r``) that a selection chooses.

    Args:
        index: The index.
        table: ``checkpoints`` or ``results``.
        selection: Text of the selection; all rows if None.
        columns: SQL of the columns wanted, never from a user.
        order: SQL of the order, never from a user.
        limit: At most so many; all if None.

    Raises:
        UsageError: If the text is no selection, or names a field that no row has.
        DyneqError: If the index is damaged.
    """
    entry = _TABLES[table]
    condition, parameters = ("1", []) if selection is None else to_sql(expression := parse(selection), entry.schema)
    query = f"SELECT {columns} FROM {entry.source} WHERE {condition} ORDER BY {order} LIMIT ?"
    rows = index.rows(query, [*parameters, -1 if limit is None else limit])
    if not rows and selection is not None:
        _require_fields(index, entry, expression)
    return rows


def count(index: Index, table: str, selection: str | None) -> int:
    """Return how many rows a selection chooses.

    Raises:
        UsageError: If the text is no selection.
    """
    entry = _TABLES[table]
    condition, parameters = ("1", []) if selection is None else to_sql(parse(selection), entry.schema)
    return int(index.rows(f"SELECT count(*) FROM {entry.source} WHERE {condition}", parameters)[0][0])


def _require_fields(index: Index, entry: _Table, expression: Expression) -> None:
    """Tell a name that no row has, most likely a typing error, from a condition that no row meets."""
    if not index.rows(f"SELECT 1 FROM {entry.source} LIMIT 1"):
        return
    for name in fields(expression):
        root, *rest = parse_field(entry.schema.aliases.get(name, name)).segments
        if not rest and root in entry.schema.columns:
            continue
        document, path = (root, rest[0]) if root in entry.schema.documents and rest else ("metrics", root)
        held = f"SELECT DISTINCT j.key FROM {entry.source}, json_each({entry.schema.documents[document]}) j LIMIT 1000"
        known = [str(row[0]) for row in index.rows(held)]
        if path not in known:
            bare = document == "metrics" and root != "metrics"
            close = nearest(path, [*known, *entry.schema.columns] if bare else known)
            raise UsageError(f"no {entry.what} has a field or metric {name!r}{close}")
