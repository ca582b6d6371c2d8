"""Removing what interrupted processes left behind; a finished result is never removed."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dyneq.catalog.entries import Place, Record, put_record, record_file
from dyneq.catalog.index import Index
from dyneq.catalog.manifest import FORMAT, NAME, Damaged, Manifest
from dyneq.catalog.rebuild import records, result_folders
from dyneq.catalog.store import Store
from dyneq.files import sync, write_atomically
from dyneq.train.moving import is_moving

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
        moved: Where damaged results went, and why, as sentences.
    """

    files: dict[Path, int]
    forgotten: list[str]
    moved: list[str] = field(default_factory=list)


def collect(store: Store, *, missing: bool = False, damaged: bool = False, dry_run: bool = False) -> Collected:
    """Remove leftovers of killed processes, and copies that no record refers to.

    A copy is kept while there is a record of its checkpoint, readable or not.

    Args:
        store: The store.
        missing: Also forget the places whose files are gone, and the checkpoints that have none left.
        damaged: Also move the results that are not what was written to ``.damaged`` in the store; not those of a newer
            version of dyneq, nor what a link leads to.
        dry_run: Only say what would be done.

    Raises:
        DyneqError: If the store cannot be written, or a record is damaged.
    """
    if not store.exists:
        return Collected({}, [])
    with store.alone():  # no writer is inside, so what is temporary in the store is nobody's
        known = list(records(store))
        whole = [entry for entry in known if isinstance(entry, Record)]
        doomed = {path: _size(path) for path in _leftovers(store, whole, keep_copies=len(whole) < len(known))}
        gone = [(r, p) for r in whole for p in r.places if not store.place(p.path).exists()] if missing else []
        if not dry_run:
            for path in doomed:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            _forget(store, whole, {(r.sha256, p) for r, p in gone}, bare=missing)
        moved = _move_damaged(store, dry_run) if damaged else []
    forgotten = [f"{p.name} of run {p.run or '(none)'}: {store.place(p.path)} is gone" for _, p in gone]
    if missing:
        forgotten += [f"{r.sha256[:12]}: its file was overwritten" for r in whole if not r.places]
    return Collected(doomed, forgotten, moved)


def _leftovers(store: Store, whole: list[Record], keep_copies: bool) -> Iterator[Path]:
    yield from store.scratch.iterdir()
    for folder in (store.root, store.checkpoints, store.files):
        yield from (p for p in folder.iterdir() if TEMPORARY.fullmatch(p.name))
    if not keep_copies:  # a damaged record could be the one that refers to it
        wanted = {store.place(place.path) for record in whole for place in record.places}
        for path in store.files.iterdir():  # a copy is written a moment before the record that refers to it
            used = store.place(f"files/{path.name}") in wanted or _recorded(store, path.name.split(".")[0])
            if not used and path.name[0] != "." and _old(path):
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
            ours = match is not None and (match["name"] in names or is_moving(match["name"]))
            if ours and _old(path):
                yield path


def _recorded(store: Store, sha256: str) -> bool:
    """Return whether a checkpoint has a record, be it a damaged one that was moved aside."""
    file = record_file(store, sha256)
    return file.exists() or file.with_name(f"{file.name}.damaged-1").exists()


def _old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > PATIENCE


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.lstat().st_size for p in files)


def _forget(store: Store, whole: list[Record], gone: set[tuple[str, Place]], bare: bool) -> None:
    """Drop places from their records, and the records without any; those that had none before only if ``bare``."""
    for record in whole:
        left = tuple(p for p in record.places if (record.sha256, p) not in gone)
        if len(left) == len(record.places) and (left or not bare):
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


def _move_damaged(store: Store, dry_run: bool) -> list[str]:
    """Move every result that is not what was written out of the way, and out of the index."""
    told, home, taken = [], store.root / ".damaged", set[Path]()
    for folder in result_folders(store):
        if folder.parent.is_symlink() or _newer(folder):  # not this store's, or not for this version to judge
            continue
        try:
            Manifest.read(folder).check_content(folder)
            continue
        except (Damaged, OSError) as error:
            why = error
        number = 1
        while (target := home / f"{folder.parent.name}-{folder.name}-{number}") in taken or os.path.lexists(target):
            number += 1
        taken.add(target)
        told.append(f"{folder} to {target}: {why}")
        if dry_run:
            continue
        with Index(store.index_file) as index, index.transaction():
            index.remove_result(folder.parent.name, folder.name)
            home.mkdir(exist_ok=True)
            folder.rename(target)
            sync(home)
            sync(folder.parent)
    return told


def _newer(folder: Path) -> bool:
    """Return whether a manifest says that a version of dyneq wrote it that this one does not read."""
    try:
        kind = json.loads((folder / NAME).read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(kind, str) and kind.startswith("dyneq-result/") and kind != FORMAT
