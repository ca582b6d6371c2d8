"""The SQLite index of a store: what is known, found fast. It can always be made again from the folders."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from dyneq.catalog import canonical
from dyneq.errors import DyneqError

VERSION = 1
#: Seconds a writer waits for another one's transaction, which takes milliseconds.
PATIENCE = 120.0

#: Columns of the two tables, in order; documents last, so that listing reads no page of theirs.
CHECKPOINT = {
    "sha256": "TEXT NOT NULL",
    "run": "TEXT NOT NULL",
    "name": "TEXT NOT NULL",
    "step": "INTEGER NOT NULL",
    "path": "TEXT NOT NULL",
    "copied": "INTEGER NOT NULL",
    "kind": "TEXT NOT NULL",
    "samples": "INTEGER NOT NULL",
    "eps": "REAL",
    "bytes": "INTEGER NOT NULL",
    "made_at": "TEXT NOT NULL",
    "made_by": "TEXT NOT NULL",
    "added_at": "TEXT NOT NULL",
    "metrics": "TEXT NOT NULL",
    "config": "TEXT NOT NULL",
    "recipe": "TEXT NOT NULL",
}
RESULT = {
    "id": "TEXT NOT NULL",
    "key": "TEXT NOT NULL",
    "serial": "INTEGER NOT NULL",
    "checkpoint": "TEXT NOT NULL",
    "probe": "TEXT NOT NULL",
    "version": "INTEGER NOT NULL",
    "batch": "INTEGER NOT NULL",
    "eps": "REAL",
    "dtype": "TEXT NOT NULL",
    "device": "TEXT NOT NULL",
    "name": "TEXT NOT NULL",
    "run": "TEXT NOT NULL",
    "step": "INTEGER NOT NULL",
    "status": "TEXT NOT NULL",
    "stored_at": "TEXT NOT NULL",
    "duration": "REAL NOT NULL",
    "bytes": "INTEGER NOT NULL",
    "manifest": "TEXT NOT NULL",
    "params": "TEXT NOT NULL",
}
#: Columns that hold JSON.
DOCUMENTS = {"metrics", "config", "recipe", "params"}


def _table(name: str, columns: Mapping[str, str], key: str) -> str:
    body = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    return f"CREATE TABLE {name} ({body}, UNIQUE ({key}))"


SCHEMA = (
    _table("checkpoints", CHECKPOINT, "sha256, run, name, path"),
    "CREATE TABLE tags (tag TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (tag, sha256)) WITHOUT ROWID",
    _table("results", RESULT, "id"),
    "CREATE INDEX checkpoint_names ON checkpoints (name)",
    "CREATE INDEX checkpoint_paths ON checkpoints (path)",
    "CREATE INDEX checkpoint_steps ON checkpoints (run, step)",
    "CREATE INDEX checkpoint_ages ON checkpoints (added_at)",
    "CREATE INDEX tagged ON tags (sha256)",
    "CREATE INDEX result_keys ON results (key, serial)",
    "CREATE INDEX result_subjects ON results (checkpoint, probe)",
    "CREATE INDEX result_ages ON results (stored_at)",
    "CREATE INDEX result_runs ON results (run)",
    # a result belongs to the run it was measured in, and to every run that holds the same checkpoint
    "CREATE VIEW runs_of_results AS SELECT id, run FROM results UNION ALL "
    "SELECT r.id, c.run FROM checkpoints c JOIN results r ON r.checkpoint = c.sha256",
)


class Index:
    """A connection to a store's index, closed when its ``with`` block ends.

    Args:
        path: The database, as :meth:`create` made it.
        readonly: Never write, not even beside the database.

    Raises:
        DyneqError: If it is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        with self._sentences():
            self._db = self._connect_readonly() if readonly else self._connect()
        self._db.row_factory = sqlite3.Row

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make an empty index at ``path``, where nothing is yet.

        Raises:
            DyneqError: If it cannot be written.
        """
        new = cls.__new__(cls)
        new.path = path
        new._copy = None
        with new._sentences():
            new._db = sqlite3.connect(path, isolation_level=None)
            new._db.row_factory = sqlite3.Row
            new._db.execute("PRAGMA journal_mode = WAL")
            for statement in SCHEMA:
                new._db.execute(statement)
            new._db.execute(f"PRAGMA user_version = {VERSION}")
        return new

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise DyneqError(f"there is no index {self.path}; run `dyneq catalog rebuild`")
        # no implicit transactions: each one is opened below, taking the write lock at once
        db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            self._require_version(db)
        except BaseException:
            db.close()
            raise
        return db

    def _connect_readonly(self) -> sqlite3.Connection:
        db = self._open(self.path)
        try:
            self._require_version(db)
        except BaseException as error:
            db.close()
            no_room = ("readonly", "unable to open", "disk I/O", "full")
            if not isinstance(error, sqlite3.OperationalError) or not any(word in str(error) for word in no_room):
                raise
            return self._connect_to_copy()
        return db

    def _connect_to_copy(self) -> sqlite3.Connection:
        """Read where nothing can be written beside the index: a copy of it and its log, so that no row is missed."""
        try:
            self._copy = tempfile.TemporaryDirectory(prefix="dyneq-index-")
            for suffix in ("", "-wal"):
                source = self.path.with_name(self.path.name + suffix)
                if source.exists():
                    shutil.copyfile(source, Path(self._copy.name) / source.name)
        except OSError as error:
            raise DyneqError(
                f"the index {self.path} cannot be read ({error.strerror or error}); make room in the folder for "
                "temporary files, or get permission to read it"
            ) from error
        db = self._open(Path(self._copy.name) / self.path.name)
        try:
            self._require_version(db)
        except BaseException:
            db.close()
            raise
        return db

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE, isolation_level=None)

    def _require_version(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > VERSION:
            raise DyneqError(
                f"the index {self.path} has version {version}, but this version of dyneq reads {VERSION}; update dyneq"
            )
        if version < VERSION:
            raise DyneqError(f"the index {self.path} is no index of results; run `dyneq catalog rebuild`")

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "full" in str(error) or "readonly" in str(error) or "disk I/O" in str(error):
                raise DyneqError(
                    f"the index {self.path} cannot be written ({error}); make room or permission there, then run "
                    "`dyneq catalog rebuild`, which adds what is complete"
                ) from error
            if "locked" in str(error):
                raise DyneqError(
                    f"the index {self.path} stayed locked for {PATIENCE:.0f} s; stop the process that holds it"
                ) from error
            raise DyneqError(
                f"the index {self.path} is damaged ({error}); run `dyneq catalog rebuild`, which makes it again from "
                "the results and checkpoint records"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock of the index; what was written inside is on disk afterwards, all of it or nothing.

        Raises:
            DyneqError: If it cannot be written.
        """
        with self._sentences():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Return the rows of a query.

        Raises:
            DyneqError: If the index is damaged.
        """
        with self._sentences():
            return self._db.execute(query, parameters).fetchall()

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Write a row of ``checkpoints`` or ``results`` in place of one with the same key; within a transaction."""
        columns = CHECKPOINT if table == "checkpoints" else RESULT
        values = [canonical.dumps(row[c]) if c in DOCUMENTS else row[c] for c in columns]
        marks = ", ".join("?" * len(columns))
        self._db.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)

    def set_tags(self, sha256: str, tags: Iterable[str]) -> None:
        """Write a checkpoint's tags in place of those it had; within a transaction."""
        self._db.execute("DELETE FROM tags WHERE sha256 = ?", (sha256,))
        self._db.executemany("INSERT INTO tags (tag, sha256) VALUES (?, ?)", [(tag, sha256) for tag in tags])

    def remove(self, table: str, column: str, value: str) -> None:
        """Delete the rows of a table where a column has a value; within a transaction."""
        self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (value,))

    def remove_result(self, probe: str, identifier: str) -> None:
        """Delete the row of one result; within a transaction."""
        self._db.execute("DELETE FROM results WHERE probe = ? AND id = ?", (probe, identifier))

    def clear(self) -> None:
        """Delete every row; within a transaction."""
        for table in ("checkpoints", "tags", "results"):
            self._db.execute(f"DELETE FROM {table}")

    def problems(self) -> list[str]:
        """Return what SQLite's own integrity check finds; empty if all is well.

        Raises:
            DyneqError: If it is so damaged that the check itself fails.
        """
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return all rows in the order of their keys, to compare two indexes."""
        order = {"checkpoints": "sha256, run, name, path", "tags": "tag, sha256", "results": "id"}
        return {t: [tuple(row) for row in self.rows(f"SELECT * FROM {t} ORDER BY {key}")] for t, key in order.items()}


def plain(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row as a dictionary, its documents as plain values.

    Raises:
        DyneqError: If they are damaged.
    """
    try:
        return {key: json.loads(row[key]) if key in DOCUMENTS else row[key] for key in row.keys()}  # noqa: SIM118
    except (TypeError, ValueError) as error:
        raise DyneqError(f"the index is damaged ({error}); run `dyneq catalog rebuild`") from None
