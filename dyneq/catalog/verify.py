"""Checking everything a store holds against what was written."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyneq.catalog.entries import Record
from dyneq.catalog.index import CHECKPOINT, RESULT, Index
from dyneq.catalog.manifest import Damaged, Manifest
from dyneq.catalog.rebuild import fill, manifests, records
from dyneq.catalog.results import result_folder
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError
from dyneq.files import file_digest


@dataclass(frozen=True)
class Verified:
    """What was checked and what was found.

    Attributes:
        checkpoints: Number of checkpoint records that can be read.
        results: Number of results whose every byte is as it was written.
        problems: One sentence each; empty if all is as it was written.
    """

    checkpoints: int
    results: int
    problems: list[str]


def verify(store: Store, progress: Callable[[str, float], None] = lambda what, share: None) -> Verified:
    """Compare the index with the folders, and every checkpoint and result with its hashes. Nothing is changed.

    Args:
        store: The store.
        progress: Told how far it is.
    """
    if not store.exists:
        return Verified(0, 0, [])
    with _held(store):
        problems = list(_index_problems(store))
        known, results = list(records(store)), list(manifests(store))
    total, done = max(len(known) + len(results), 1), 0
    whole = 0
    for record in known:
        progress("checkpoints", done / total)
        done += 1
        problems += [str(record)] if not isinstance(record, Record) else _checkpoint_problems(store, record)
    for manifest in results:
        progress("results", done / total)
        done += 1
        if not isinstance(manifest, Manifest):
            problems.append(str(manifest))
            continue
        try:
            manifest.check_content(result_folder(store, manifest.request.probe, manifest.id))
        except Damaged as error:
            problems.append(str(error))
        else:
            whole += 1
    return Verified(sum(isinstance(record, Record) for record in known), whole, problems)


@contextlib.contextmanager
def _held(store: Store) -> Iterator[None]:
    """Keep writers out while index and folders are compared, where this process may."""
    with store.alone() if os.access(store.root, os.W_OK) else contextlib.nullcontext():
        yield


def _index_problems(store: Store) -> Iterator[str]:
    advice = "run `dyneq catalog rebuild`"
    if not store.index_file.exists():
        yield f"the index {store.index_file} is missing; {advice}"
        return
    with tempfile.TemporaryDirectory(prefix="dyneq-verify-") as scratch:
        draft = Path(scratch) / "index.sqlite"
        fill(store, draft)
        try:
            with Index(draft, readonly=True) as fresh, Index(store.index_file, readonly=True) as index:
                yield from (f"the index {store.index_file} is damaged ({p}); {advice}" for p in index.problems()[:3])
                expected, found = fresh.content(), index.content()
        except DyneqError as error:
            yield str(error)
            return
    for table, columns in (("checkpoints", CHECKPOINT), ("results", RESULT), ("tags", {"tag": "", "sha256": ""})):
        key = {"checkpoints": ("sha256", "run", "name", "path"), "results": ("id",), "tags": ("tag", "sha256")}[table]
        at = [list(columns).index(name) for name in key]
        yield from _differences(table, at, expected[table], found[table], advice)


def _differences(
    table: str, at: list[int], expected: list[tuple[Any, ...]], found: list[tuple[Any, ...]], advice: str
) -> Iterator[str]:
    there = {tuple(row[i] for i in at): row for row in expected}
    listed = {tuple(row[i] for i in at): row for row in found}
    for key in sorted(there.keys() | listed.keys(), key=repr):  # a damaged index can hold anything
        if there.get(key) == listed.get(key):
            continue
        name = " ".join(str(part)[:18] for part in key if part)
        if key not in listed:
            yield f"{table}: {name} is complete in its folder but not in the index; {advice}, which adds it"
        elif key not in there:
            yield f"{table}: {name} is in the index but has no complete folder; {advice}, which drops it"
        else:
            yield f"{table}: {name} differs between the index and its folder; {advice}"


def _checkpoint_problems(store: Store, record: Record) -> Iterator[str]:
    for place in record.places:
        path = store.place(place.path)
        try:
            found = file_digest(path)
        except OSError as error:
            yield (
                f"the checkpoint {place.name} ({record.sha256[:12]}) cannot be read at {path} "
                f"({error.strerror or error}); add it again from where it is now"
            )
            continue
        if found != record.sha256:
            yield (
                f"the file {path} should have the digest {record.sha256[:12]} of the checkpoint {place.name}, but has "
                f"{found[:12]}: it was changed or damaged since it was added; restore it, or add it again"
            )
