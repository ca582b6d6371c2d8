"""Checkpoint records: one small JSON file a checkpoint, from which the index can be made again."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dyneq.catalog import canonical
from dyneq.catalog.index import Index
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError
from dyneq.files import write_atomically

FORMAT = "dyneq-record/1"


@dataclass(frozen=True)
class Place:
    """One of the places a checkpoint is known from: twin runs write the same bytes under two names.

    Attributes:
        run: The run it belongs to, empty if none.
        name: What it is called in messages and on the command line.
        path: Its file, as :meth:`dyneq.catalog.store.Store.relative` keeps it.
        copied: Whether that file is the store's own copy.
        made_at: When the file was written (UTC).
        made_by: What wrote it.
        added_at: When it was added to the catalog (UTC).
    """

    run: str
    name: str
    path: str
    copied: bool
    made_at: str
    made_by: str
    added_at: str


@dataclass(frozen=True)
class Content:
    """What is in a checkpoint file; the same wherever it lies.

    Attributes:
        step: Training step it was taken at.
        kind: Kind of its block.
        samples: Size of its pinned evaluation batch.
        eps: Step size of its relaxation; None for a map.
        bytes: Size of the file.
        metrics: Plain numbers by name.
        config: Configuration of its block.
        recipe: What it was trained with.
    """

    step: int
    kind: str
    samples: int
    eps: float | None
    bytes: int
    metrics: dict[str, Any]
    config: dict[str, Any]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """All that the catalog knows of one checkpoint.

    Attributes:
        sha256: Digest of the file.
        content: What is in it.
        places: Where it is, one for every run.
        tags: Labels of the user's.
    """

    sha256: str
    content: Content
    places: tuple[Place, ...]
    tags: frozenset[str] = field(default_factory=frozenset)

    def at(self, place: Place) -> "Record":
        """Return the record with a place added, in place of the one of the same run."""
        return replace(self, places=(*(p for p in self.places if p.run != place.run), place))

    def to_json(self) -> bytes:
        """Return the text of the record's file.

        Raises:
            DyneqError: If a field is not of its type.
        """
        try:
            self._require_types()
        except ValueError as error:
            raise DyneqError(f"the checkpoint {self.sha256[:12]} cannot be recorded ({error}); correct that") from None
        held = {
            "format": FORMAT,
            "sha256": self.sha256,
            "content": asdict(self.content),
            "places": [asdict(p) for p in sorted(self.places, key=lambda p: p.run)],
            "tags": sorted(self.tags),
        }
        return canonical.dumps(held).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, sha256: str) -> "Record":
        """Return the record of a file.

        Raises:
            DyneqError: If it is damaged, of a newer version, or another checkpoint's.
        """
        try:
            held = json.loads(data)
            if held["format"] != FORMAT:
                raise ValueError(f"its format is {held['format']!r}, and this version of dyneq reads {FORMAT!r}")
            if held["sha256"] != sha256:
                raise ValueError("it is the record of another checkpoint")
            places = tuple(Place(**place) for place in held["places"])
            record = cls(sha256, Content(**held["content"]), places, frozenset(held["tags"]))
            record._require_types()
            return record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DyneqError(
                f"the checkpoint record {sha256[:12]} cannot be read ({error}); add the checkpoint again"
            ) from None

    def _require_types(self) -> None:
        for part in (self, self.content, *self.places):
            canonical.require_types(part)
        if not all(type(tag) is str for tag in self.tags):
            raise ValueError("a tag should be str")

    def rows(self) -> list[dict[str, Any]]:
        """Return the index's rows, one a place."""
        return [{"sha256": self.sha256, **asdict(self.content), **asdict(place)} for place in self.places]


def record_file(store: Store, sha256: str) -> Path:
    """Return where a checkpoint's record is kept."""
    return store.checkpoints / f"{sha256}.json"


def read_record(store: Store, sha256: str) -> Record | None:
    """Return a checkpoint's record, None if there is none.

    Raises:
        DyneqError: If it is damaged.
    """
    try:
        data = record_file(store, sha256).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DyneqError(f"the checkpoint record {sha256[:12]} cannot be read ({error.strerror or error})") from error
    return Record.from_json(data, sha256)


def change_record(store: Store, sha256: str, change: Callable[[Record | None], Record]) -> Record:
    """Change one checkpoint's record on disk and in the index; processes that change the same one take turns.

    Args:
        store: The store.
        sha256: Digest of the checkpoint.
        change: Gets the present record (None if there is none) and returns the new one.

    Returns:
        The new record.

    Raises:
        DyneqError: If the record is damaged or the store cannot be written.
    """
    with store.writing() as index, index.transaction():
        record = change(read_record(store, sha256))
        write_atomically(record_file(store, sha256), record.to_json())
        put_record(index, record)
    return record


def put_record(index: Index, record: Record) -> None:
    """Write a record's rows into the index, in place of those it had; within a transaction."""
    index.remove("checkpoints", "sha256", record.sha256)
    for row in record.rows():
        index.put("checkpoints", row)
    index.set_tags(record.sha256, record.tags)


def change_tags(store: Store, sha256: str, add: Iterable[str], remove: Iterable[str]) -> Record:
    """Change a checkpoint's tags.

    Raises:
        DyneqError: If the checkpoint is not in the catalog.
    """

    def change(record: Record | None) -> Record:
        if record is None:
            raise DyneqError(f"the checkpoint {sha256[:12]} is not in the catalog; add it first")
        return replace(record, tags=(record.tags | set(add)) - set(remove))

    return change_record(store, sha256, change)
