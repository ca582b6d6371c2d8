"""The result store: results are written once, whole, and found again."""

import contextlib
import errno
import math
import os
import re
import shutil
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyneq.catalog.index import Index
from dyneq.catalog.manifest import DATA, NAME, Damaged, Manifest, seal
from dyneq.catalog.request import Request
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.files import sync, write_atomically

if TYPE_CHECKING:
    import xarray as xr

#: What the name of a probe may be, since it names a folder of the store.
PROBE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
#: Characters of the key in a result's name: 64 bits, and every key is compared as a whole.
SHORT = 16


@dataclass(frozen=True)
class StoredResult:
    """A result that is safely in the store.

    Attributes:
        manifest: What it answers, and its files.
        folder: Where it is.
    """

    manifest: Manifest
    folder: Path

    @property
    def id(self) -> str:
        """The name it has in lists and on the command line."""
        return self.manifest.id

    def open(self, chunks: Any = None) -> "xr.Dataset":
        """Return its dataset; numbers are read, and compared with their hashes, when they are used.

        Args:
            chunks: As in :func:`xarray.open_zarr`: ``{}`` for lazy dask arrays, None for none.

        Raises:
            Damaged: If a file is missing or differs from what was written; possibly only when it is used.
        """
        from dyneq.catalog.zarr_io import VerifiedStore, read_zarr

        self.manifest.check_files(self.folder)
        try:
            return read_zarr(VerifiedStore(self.folder, self.folder / DATA, self.manifest.files), chunks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise Damaged(
                f"the stored result {self.id} cannot be opened ({error}); compute it again with --force"
            ) from error


def result_folder(store: Store, probe: str, identifier: str) -> Path:
    """Return where a result is kept.

    Raises:
        DyneqError: If the name of the probe or result is not one of a store.
    """
    if not PROBE_NAME.fullmatch(probe) or not re.fullmatch(r"[0-9a-f]{16}-[1-9][0-9]{0,8}", identifier):
        raise DyneqError(
            f"a result is kept under a probe's name (a to z, 0 to 9, _ and -) and an identifier, not {probe!r} and "
            f"{identifier!r}; rename the probe, or move what is not a result out of the store"
        )
    if os.path.islink(store.results / probe):
        raise Damaged(
            f"the stored result {probe}/{identifier} is out of reach: {store.results / probe} is a link, and no path "
            "leads out of a store; move the whole store instead, name it with --store, and compute again with --force"
        )
    return store.results / probe / identifier


def open_stored(store: Store, probe: str, identifier: str) -> StoredResult:
    """Return a result by its name.

    Raises:
        Damaged: If its manifest is missing or damaged.
    """
    folder = result_folder(store, probe, identifier)
    return StoredResult(Manifest.read(folder), folder)


def find(store: Store, request: Request) -> StoredResult | None:
    """Return the newest result of a request, None if there is none.

    A complete result that is not in the index, because its writer was killed before its last step, is put there.

    Raises:
        Damaged: If there is one, but it is damaged.
    """
    with store.reading() as index:
        rows = [] if index is None else index.rows(NEWEST, (request.key,))
    if rows:
        return open_stored(store, rows[0]["probe"], rows[0]["id"])
    orphan = result_folder(store, request.probe, f"{request.key[:SHORT]}-1")
    earlier = _same(orphan, request) if orphan.is_dir() else None
    if earlier is not None:
        with contextlib.suppress(DyneqError), store.writing() as index, index.transaction():  # as far as one may write
            index.put("results", earlier.manifest.row())
    return earlier


#: Probe and identifier of the newest result of a key.
NEWEST = "SELECT probe, id FROM results WHERE key = ? ORDER BY serial DESC LIMIT 1"


def put(
    store: Store, request: Request, ds: "xr.Dataset", *, name: str, run: str = "", step: int = 0, force: bool = False
) -> StoredResult:
    """Write a result: all of it is on disk and in the index when this returns; what fails earlier is not acknowledged.

    Args:
        store: The store.
        request: What it answers.
        ds: The dataset, with its provenance attributes.
        name: What the checkpoint is called.
        run: The run it belongs to, empty if none.
        step: The checkpoint's training step.
        force: Keep it beside a result the request already has, instead of giving that one back.

    Returns:
        The new result; or the one that another process stored first.

    Raises:
        DyneqError: If it cannot be written, for example because the disk is full.
    """
    from dyneq.catalog.zarr_io import write_zarr

    result_folder(
        store, request.probe, f"{request.key[:SHORT]}-1"
    )  # a wrong name is an error before anything is written
    try:
        duration = float(ds.attrs.get("duration_s", 0.0))
    except (TypeError, ValueError):
        duration = math.nan
    if math.isnan(duration):
        raise DyneqError(f"the attribute duration_s of a result should be seconds, not {ds.attrs['duration_s']!r}")
    with store.writing() as index:
        draft = store.scratch / uuid.uuid4().hex
        try:
            draft.mkdir()
            write_zarr(ds, draft / DATA)
            files = seal(draft / DATA)
            manifest = Manifest(
                id="",
                serial=0,
                request=request,
                name=name,
                run=run,
                step=step,
                status=str(ds.attrs.get("status", "")),
                stored_at=datetime.now(UTC).isoformat(timespec="microseconds"),
                duration=duration,
                files=files,
            )
            stored = _place(store, draft, manifest, force)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        with index.transaction():
            index.put("results", stored.manifest.row())
        return stored


def _place(store: Store, draft: Path, manifest: Manifest, force: bool) -> StoredResult:
    """Move a complete draft to its final name, the first that is free; a name is never taken over."""
    request = manifest.request
    home = store.results / request.probe
    home.mkdir(exist_ok=True)
    serial = 1
    while True:
        manifest = replace(manifest, id=f"{request.key[:SHORT]}-{serial}", serial=serial)
        folder = home / manifest.id
        write_atomically(draft / NAME, manifest.to_json())
        try:
            os.rename(draft, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            sync(home)
            sync(store.results)
            return StoredResult(manifest, folder)
        if not force and (earlier := _same(folder, request)) is not None:
            return earlier
        serial += 1


def _same(folder: Path, request: Request) -> StoredResult | None:
    """Return a folder's undamaged result if it answers the request: another process, or a killed one, was first."""
    try:
        manifest = Manifest.read(folder)
        if manifest.request.key != request.key:
            return None
        manifest.check_content(folder)
    except Damaged:
        return None
    return StoredResult(manifest, folder)


def by_name(index: Index, text: str) -> tuple[str, str]:
    """Return probe and identifier of the result whose identifier starts with ``text``.

    Several results of one request count as one: the newest.

    Raises:
        UsageError: If there is none, or there are several.
    """
    short = text.rsplit("/", 1)[-1]
    exact = index.rows("SELECT probe, id FROM results WHERE id = ?", (short,))
    if exact:
        return exact[0]["probe"], exact[0]["id"]
    usable = re.fullmatch(r"[0-9a-f]{4,64}", short) is not None
    found = index.rows(_PREFIX, (short, short + "g")) if usable else []
    if not found:
        raise UsageError(
            f"there is no stored result {text!r}; `dyneq results list` names them (4 characters are enough)"
        )
    if len({row["key"] for row in found}) > 1:
        candidates = ", ".join(f"{row['id']} ({row['probe']} of {row['name']})" for row in found[:8])
        raise UsageError(f"{text!r} is the start of {len(found)} results: {candidates}; give more characters")
    return found[0]["probe"], found[0]["id"]


def open_named(store: Store, name: str) -> StoredResult:
    """Return the result that an identifier, or the start of one, stands for.

    Raises:
        UsageError: If there is none, or there are several.
        Damaged: If it is damaged.
    """
    with store.reading() as index:
        if index is None:
            raise UsageError(f"there is no store at {store.root}, so no result {name!r}; name another --store")
        found = by_name(index, name)
    return open_stored(store, *found)


_PREFIX = "SELECT id, key, probe, name FROM results WHERE key >= ? AND key < ? ORDER BY key, serial DESC LIMIT 100"
