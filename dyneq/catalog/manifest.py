"""The manifest of a result: which files it consists of, with sizes and hashes, and what it answers."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dyneq.catalog import canonical
from dyneq.catalog.request import Request
from dyneq.errors import DyneqError
from dyneq.files import file_digest, sync

FORMAT = "dyneq-result/1"
NAME, DATA = "manifest.json", "data.zarr"


class Damaged(DyneqError):
    """A stored result that is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What a result's folder has to hold.

    Attributes:
        id: The result's name: the start of its request's key, and a serial number.
        serial: 1 for the first result of its request, higher for those of ``--force``.
        request: What it answers.
        name: What the checkpoint was called.
        run: The run it belonged to, empty if none; a catalog may forget the checkpoint, but not its results.
        step: The checkpoint's training step.
        status: The probe's word on how it ended.
        stored_at: When it was written (UTC).
        duration: Seconds it took to compute.
        files: Size and SHA-256 of every file of the zarr store, by its path in it.
    """

    id: str
    serial: int
    request: Request
    name: str
    run: str
    step: int
    status: str
    stored_at: str
    duration: float
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Size of the data."""
        return sum(size for size, _ in self.files.values())

    def to_json(self) -> bytes:
        """Return the text of the manifest's file, which ends with a digest of the rest.

        Raises:
            DyneqError: If a field is not of its type.
        """
        try:
            self._require_types()
        except ValueError as error:
            raise DyneqError(f"the result of {self.name!r} cannot be stored ({error}); correct that") from None
        held = {"format": FORMAT, **asdict(self)}
        return canonical.dumps({**held, "sha256": canonical.digest(held)}).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the manifest of a result's folder.

        Raises:
            Damaged: If there is none, it is damaged, or it was written by a newer version.
        """
        try:
            if any(path.is_symlink() for path in (folder.parent, folder, folder / NAME, folder / DATA)):
                raise ValueError("part of its path is a link, and a result never leaves its store")
            held = json.loads((folder / NAME).read_bytes())
            if not isinstance(held, dict):
                raise ValueError("it is no mapping")
            if held.get("format") != FORMAT:
                raise ValueError(
                    f"it has the format {held.get('format')!r}, and this dyneq reads {FORMAT!r}: update dyneq"
                )
            expected = held.pop("sha256", None)
            if canonical.digest(held) != expected:
                raise ValueError("its text does not match its digest")
            held.pop("format")
            held["request"] = Request(**held["request"])
            held["files"] = {name: (size, sha256) for name, (size, sha256) in held["files"].items()}
            manifest = cls(**held)
            manifest._require_types()
            for name in manifest.files:
                _require_inside(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DyneqError) as error:
            raise Damaged(_sentence(folder, f"its manifest cannot be read ({error})")) from None
        if manifest.id != folder.name or manifest.request.probe != folder.parent.name:
            raise Damaged(_sentence(folder, f"its manifest is that of {manifest.request.probe}/{manifest.id}"))
        return manifest

    def _require_types(self) -> None:
        canonical.require_types(self)
        canonical.require_types(self.request)
        if not all(type(size) is int and type(sha256) is str for size, sha256 in self.files.values()):
            raise ValueError("a size or hash of its files is none")

    def row(self) -> dict[str, Any]:
        """Return the index's row."""
        request = asdict(self.request)
        held = {
            name: getattr(self, name)
            for name in ("id", "serial", "name", "run", "step", "status", "stored_at", "duration")
        }
        return {**request, **held, "key": self.request.key, "bytes": self.size, "manifest": self.digest}

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's own file."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def check_files(self, folder: Path) -> None:
        """Verify that exactly the files of the manifest are there, with their sizes.

        Raises:
            Damaged: If not.
        """
        try:
            found = dict(walk(folder / DATA))
        except OSError as error:
            raise Damaged(_sentence(folder, f"its files cannot be read ({error.strerror or error})")) from None
        if missing := sorted(self.files.keys() - found.keys()):
            raise Damaged(_sentence(folder, f"{missing[0]} and {len(missing) - 1} more of its files are missing"))
        if extra := sorted(found.keys() - self.files.keys()):
            raise Damaged(_sentence(folder, f"{extra[0]} was not written by dyneq"))
        for name, (size, _) in self.files.items():
            if found[name] != size:
                raise Damaged(_sentence(folder, f"{name} should have {size} bytes, but has {found[name]}"))

    def check_content(self, folder: Path) -> None:
        """Verify every byte.

        Raises:
            Damaged: If a file is missing or differs from what was written.
        """
        self.check_files(folder)
        for name, (_, expected) in self.files.items():
            try:
                found = file_digest(folder / DATA / name)
            except OSError as error:
                raise Damaged(_sentence(folder, f"{name} cannot be read ({error.strerror or error})")) from None
            if found != expected:
                raise Damaged(_sentence(folder, f"{name} does not match its hash"))


def damaged_file(folder: Path, name: str, why: str) -> Damaged:
    """Return the error for one file of a result."""
    return Damaged(_sentence(folder, f"{name} {why}"))


def _sentence(folder: Path, problem: str) -> str:
    return (
        f"the stored result {folder.parent.name}/{folder.name} is damaged or unreadable: {problem}; compute it again "
        "with --force"
    )


def _require_inside(name: str) -> None:
    """Refuse the names of files outside the result's own folder."""
    if not name or os.path.isabs(name) or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise ValueError(f"the file name {name!r} leads out of the result")


def walk(data: Path) -> Iterator[tuple[str, int]]:
    """Yield path and size of every file below a folder; a link counts as -1 bytes, for no result holds one."""
    for folder, folders, files in os.walk(data):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            path = Path(folder) / name
            yield path.relative_to(data).as_posix(), -1 if path.is_symlink() else path.stat().st_size


def seal(data: Path) -> dict[str, tuple[int, str]]:
    """Return size and hash of every file of a freshly written zarr store, after flushing all of it to the disk.

    Raises:
        OSError: If the disk refuses.
    """
    files = {}
    for name, size in sorted(walk(data)):
        sync(data / name)
        files[name] = (size, file_digest(data / name))
    for folder, _, _ in os.walk(data, topdown=False):
        sync(Path(folder))
    return files
