"""Checkpoint records: one small JSON file a checkpoint, from which the index can be made again."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dyneq.catalog import canonical
from dyneq.catalog.index import Index
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError
from dyneq.files import write_atomically

FORMAT = "dyneq-record/1"


class DamagedRecord(DyneqError):
    """A checkpoint record that is not what was written."""


@dataclass(frozen=True)
class Place:
    """One of the places a checkpoint is known from: twin runs write the same bytes under two names.

    Run, name and path together tell one place from another: a copy in the store is a place beside its original's.

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
        places: Where it is. None once its only file was overwritten: it keeps its tags, and its results are found by
            them, but no name or listing of checkpoints gives what has no file.
        tags: Labels of the user's.
    """

    sha256: str
    content: Content
    places: tuple[Place, ...]
    tags: frozenset[str] = field(default_factory=frozenset)

    def at(self, place: Place) -> "Record":
        """Return the record with a place added; one that it has already stays as it is."""
        if _key(place) in map(_key, self.places):
            return self
        return replace(self, places=tuple(sorted((*self.places, place), key=_key)))

    def without(self, paths: Collection[str]) -> "Record":
        """Return the record without the places at some paths."""
        return replace(self, places=tuple(p for p in self.places if p.path not in paths))

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
            "places": [asdict(p) for p in sorted(self.places, key=_key)],
            "tags": sorted(self.tags),
        }
        return canonical.dumps(held).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, sha256: str) -> "Record":
        """Return the record of a file.

        Raises:
            DamagedRecord: If it is damaged, or another checkpoint's.
            DyneqError: If it is of a newer version.
        """
        try:
            held = json.loads(data)
            if held["format"] != FORMAT:
                if str(held["format"]).startswith("dyneq-record/"):
                    raise DyneqError(
                        f"the checkpoint record {sha256[:12]} has the format {held['format']!r}, but this version of "
                        f"dyneq reads {FORMAT!r}; update dyneq"
                    )
                raise ValueError(f"its format is {held['format']!r}, not {FORMAT!r}")
            if held["sha256"] != sha256:
                raise ValueError("it is the record of another checkpoint")
            places = tuple(Place(**place) for place in held["places"])
            record = cls(sha256, Content(**held["content"]), places, frozenset(held["tags"]))
            record._require_types()
            return record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedRecord(
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


def _key(place: Place) -> tuple[str, bool, str, str]:
    # a copy of the store's goes before its original, which may be changed
    return place.run, not place.copied, place.name, place.path


def record_file(store: Store, sha256: str) -> Path:
    """Return where a checkpoint's record is kept."""
    return store.checkpoints / f"{sha256}.json"


def read_record(store: Store, sha256: str) -> Record | None:
    """Return a checkpoint's record, None if there is none.

    Raises:
        DamagedRecord: If it is damaged.
        DyneqError: If it is of a newer version, or the file system refuses to give it.
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
        _write(store, index, record)
    return record


def add_place(
    store: Store, fresh: Record, overwritten: Collection[str] = (), tell: Callable[[str], None] = lambda sentence: None
) -> Record:
    """Write a checkpoint's record, or add the place and tags to the one it has; all of it in one transaction.

    A damaged record is moved aside, never deleted. The paths at which this checkpoint has just been read are taken
    away from other checkpoints, since their files were overwritten.

    Args:
        store: The store.
        fresh: The checkpoint with its one new place and new tags.
        overwritten: Every way to write the path of the file that was read, as a record may keep it.
        tell: Told one sentence for everything that was moved aside or taken away.

    Returns:
        The new record.

    Raises:
        DyneqError: If the record is of a newer version, or the store cannot be written.
    """
    sentences: list[str] = []

    with store.writing() as index, index.transaction():
        try:
            present = read_record(store, fresh.sha256)
        except DamagedRecord:
            present = None
            aside = _move_aside(record_file(store, fresh.sha256))
            sentences.append(
                f"the record of {fresh.sha256[:12]} was damaged and is made anew; the damaged one is kept as {aside}, "
                "its tags and other places are to be given again"
            )
        record = fresh
        if present is not None:
            (place,) = fresh.places
            record = replace(present.at(place), content=fresh.content, tags=present.tags | fresh.tags)
        _write(store, index, record)
        sentences += _take_away(store, index, fresh.sha256, overwritten)
    for sentence in sentences:  # once it is true
        tell(sentence)
    return record


def _take_away(store: Store, index: Index, sha256: str, paths: Collection[str]) -> Iterator[str]:
    """Take paths from all checkpoints but one; yield a sentence for each that had one of them."""
    marks = ", ".join("?" * len(paths))
    query = f"SELECT DISTINCT sha256 FROM checkpoints WHERE path IN ({marks}) AND sha256 != ? ORDER BY sha256"
    for row in index.rows(query, (*paths, sha256)):
        try:
            other = read_record(store, row["sha256"])
        except DyneqError:  # `verify` says so; a damaged record is repaired only by its own checkpoint
            continue
        if other is None or (left := other.without(paths)) == other:
            continue  # the index is behind the records, which `verify` says too
        _write(store, index, left)
        lost = next(place for place in other.places if place.path in paths)
        more = (
            f"it is known from {len(left.places)} other place{'s' * (len(left.places) != 1)}"
            if left.places
            else "it has no file any more, and keeps its tags and results"
        )
        yield f"{store.place(lost.path)} was overwritten since it was added as {lost.name} ({row[0][:12]}): {more}"


def _write(store: Store, index: Index, record: Record) -> None:
    write_atomically(record_file(store, record.sha256), record.to_json())
    put_record(index, record)


def _move_aside(path: Path) -> Path:
    """Rename a damaged record to the first name that is free; within a transaction, so nobody else does it."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


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
