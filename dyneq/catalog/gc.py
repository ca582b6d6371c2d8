"""Removing what interrupted processes left behind; a finished result is never removed."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dyneq.catalog.entries import Record, put_record, record_file
from dyneq.catalog.index import Index
from dyneq.catalog.rebuild import records
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError
from dyneq.files import write_atomically

#: Names of temporary files, as they are written before they are renamed.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp(-wal|-shm)?")
#: Seconds after which a file that no lock protects counts as left behind.
PATIENCE = 3600.0


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be.

    Attributes:
        files: Leftovers on disk, with their sizes in bytes.
        forgotten: Places of checkpoints whose files are gone, as sentences.
    """

    files: dict[Path, int]
    forgotten: list[str]


def collect(store: Store, *, missing: bool = False, dry_run: bool = False) -> Collected:
    """Remove leftovers of killed processes, and copies that no record refers to.

    Args:
        store: The store.
        missing: Also forget the checkpoints whose files are gone.
        dry_run: Only say what would be removed.

    Raises:
        DyneqError: If the store cannot be written, or a record is damaged.
    """
    if not store.exists:
        return Collected({}, [])
    with store.alone():  # no writer is inside, so what is temporary in the store is nobody's
        known = list(records(store))
        damaged = [entry for entry in known if isinstance(entry, DyneqError)]
        whole = [entry for entry in known if isinstance(entry, Record)]
        doomed = {path: _size(path) for path in _leftovers(store, whole, keep_copies=bool(damaged))}
        gone = [(r, p) for r in whole for p in r.places if not store.place(p.path).exists()] if missing else []
        if not dry_run:
            for path in doomed:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            _forget(store, whole, {(r.sha256, p.run) for r, p in gone})
    return Collected(doomed, [f"{p.name} of run {p.run or '(none)'}: {store.place(p.path)} is gone" for _, p in gone])


def _leftovers(store: Store, whole: list[Record], keep_copies: bool) -> Iterator[Path]:
    yield from store.scratch.iterdir()
    for folder in (store.root, store.checkpoints, store.files):
        yield from (p for p in folder.iterdir() if TEMPORARY.fullmatch(p.name))
    if not keep_copies:  # a damaged record could be the one that refers to it
        wanted = {store.place(place.path) for record in whole for place in record.places}
        for path in store.files.iterdir():  # a copy is written a moment before the record that refers to it
            if store.place(f"files/{path.name}") not in wanted and path.name[0] != "." and _old(path):
                yield path
    beside: dict[Path, set[str]] = {}
    for record in whole:
        for place in record.places:
            file = store.place(place.path)
            beside.setdefault(file.parent, set()).add(file.name)
    for folder, names in beside.items():
        if folder in (store.place("files"),) or not folder.is_dir():
            continue
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            ours = match is not None and match["name"] in {*names, "last.pt"}
            if ours and _old(path):
                yield path


def _old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > PATIENCE


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.lstat().st_size for p in files)


def _forget(store: Store, whole: list[Record], gone: set[tuple[str, str]]) -> None:
    for record in whole:
        left = tuple(p for p in record.places if (record.sha256, p.run) not in gone)
        if len(left) == len(record.places):
            continue
        with Index(store.index_file) as index, index.transaction():
            if left:
                kept = replace(record, places=left)
                write_atomically(record_file(store, record.sha256), kept.to_json())
                put_record(index, kept)
            else:
                record_file(store, record.sha256).unlink()
                index.remove("checkpoints", "sha256", record.sha256)
                index.set_tags(record.sha256, ())
