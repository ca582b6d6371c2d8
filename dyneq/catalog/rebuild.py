"""Making the index again from the folders, which alone decide what a store holds."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dyneq.catalog.entries import Record, put_record, read_record
from dyneq.catalog.index import Index
from dyneq.catalog.manifest import Damaged, Manifest
from dyneq.catalog.results import PROBE_NAME, result_folder
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError


@dataclass(frozen=True)
class Rebuilt:
    """What an index was made of.

    Attributes:
        checkpoints: Number of checkpoint records.
        results: Number of results.
        left_out: One sentence for everything that could not be read; it stays where it is.
    """

    checkpoints: int
    results: int
    left_out: list[str] = field(default_factory=list)


def rebuild(store: Store, only_if_missing: bool = False) -> Rebuilt:
    """Make the index again, all of it or nothing: a kill leaves the old one, or none, which the next command makes.

    Args:
        store: The store.
        only_if_missing: Do nothing if there is an index, for example because another process has just made it.

    Raises:
        DyneqError: If the store cannot be written.
    """
    with store.alone():
        if only_if_missing and store.index_file.exists():
            return Rebuilt(0, 0)
        return _refill(store) or _replace(store)


def _refill(store: Store) -> Rebuilt | None:
    """Fill an undamaged index again in one transaction, under readers that go on; None if it is damaged or missing."""
    try:
        with Index(store.index_file) as index:
            if index.problems():
                return None
            with index.transaction():
                index.clear()
                return _fill(store, index)
    except DyneqError:
        return None


def _replace(store: Store) -> Rebuilt:
    draft = store.index_file.with_name(f".{store.index_file.name}.{uuid.uuid4().hex}.tmp")
    try:
        done = fill(store, draft)
        # the database goes first: without its write-ahead log it would show an older state, and a new database must
        # not meet an old log
        for suffix in ("", "-wal", "-shm"):
            store.index_file.with_name(store.index_file.name + suffix).unlink(missing_ok=True)
        draft.replace(store.index_file)
    finally:
        for suffix in ("", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    return done


def fill(store: Store, draft: Path) -> Rebuilt:
    """Make a new index at ``draft`` of what the folders hold.

    Raises:
        DyneqError: If it cannot be written.
    """
    with Index.create(draft) as index, index.transaction():
        return _fill(store, index)


def _fill(store: Store, index: Index) -> Rebuilt:
    checkpoints, results, left_out = 0, 0, []
    for record in records(store):
        if isinstance(record, Record):
            put_record(index, record)
            checkpoints += 1
        else:
            left_out.append(str(record))
    for manifest in manifests(store):
        if isinstance(manifest, Manifest):
            index.put("results", manifest.row())
            results += 1
        else:
            left_out.append(str(manifest))
    return Rebuilt(checkpoints, results, left_out)


def records(store: Store) -> Iterator[Record | DyneqError]:
    """Yield every checkpoint record of a store, or why one cannot be read."""
    for path in sorted(store.checkpoints.glob("[!.]*.json")):
        try:
            record = read_record(store, path.stem)
        except DyneqError as error:
            yield error
        else:
            if record is not None:
                yield record


def manifests(store: Store) -> Iterator[Manifest | DyneqError]:
    """Yield the manifest of every complete result of a store, or why one cannot be read; the data are not looked at."""
    for folder in result_folders(store):
        try:
            result_folder(store, folder.parent.name, folder.name)
            manifest = Manifest.read(folder)
            manifest.check_files(folder)
        except DyneqError as error:
            yield error
        except OSError as error:
            yield Damaged(f"the stored result {folder.parent.name}/{folder.name} cannot be read ({error})")
        else:
            yield manifest


def result_folders(store: Store) -> list[Path]:
    """Return every folder that stands where a result does, in a fixed order."""
    homes = sorted(p for p in store.results.iterdir() if PROBE_NAME.fullmatch(p.name)) if store.results.is_dir() else []
    return [
        folder
        for home in homes
        if home.is_dir()
        for folder in sorted(home.iterdir())
        if not folder.name.startswith(".")
    ]
