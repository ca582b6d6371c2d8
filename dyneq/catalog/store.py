"""Where a store is and how it is laid out on disk.

::

    .dyneq/
      store.json                        the format of all the rest
      index.sqlite                      made of what follows; `dyneq catalog rebuild` makes it again
      checkpoints/SHA256.json           what is known of one checkpoint: places, tags, metrics, config, recipe
      files/SHA256.pt                   checkpoints that were copied in
      results/PROBE/KEY-SERIAL/         one result: manifest.json and data.zarr
      .tmp/                             what is being written
      .damaged/                         results that `dyneq catalog gc --damaged` moved out of the way
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from dyneq.catalog import locks
from dyneq.catalog.index import Index
from dyneq.errors import DyneqError
from dyneq.files import write_atomically

FORMAT = "dyneq-store/1"
VARIABLE = "DYNEQ_STORE"


class Store:
    """A folder of checkpoint records and results, written by any number of processes at a time.

    Nothing is made on disk before the first write; a store that is not there yet reads as empty.

    Args:
        root: The folder; ``DYNEQ_STORE`` if None, else ``.dyneq`` in the current folder.

    Raises:
        DyneqError: If there is something else at that place, or a store of a newer version.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get(VARIABLE) or ".dyneq")
        self.checkpoints, self.files = self.root / "checkpoints", self.root / "files"
        self.results, self.scratch = self.root / "results", self.root / ".tmp"
        self.index_file = self.root / "index.sqlite"
        self._check()

    def _check(self) -> None:
        marker = self.root / "store.json"
        try:
            found = json.loads(marker.read_bytes()) if marker.exists() else None
        except (OSError, ValueError, RecursionError) as error:
            raise DyneqError(f"{marker} cannot be read ({error}), so {self.root} is no usable store") from None
        if found is None:
            if self.root.is_dir() and self._strangers() and marker.exists():
                return self._check()  # another process has made the store in between
            if self.root.exists() and (not self.root.is_dir() or self._strangers()):
                raise DyneqError(
                    f"{self.root} is no store (no store.json in it) and is not empty; name a store, or a new folder"
                )
            return
        kind = found.get("format") if isinstance(found, dict) else None
        if kind != FORMAT:
            raise DyneqError(
                f"the store {self.root} has the format {kind!r}, but this version of dyneq reads {FORMAT!r}; update "
                "dyneq, or name another --store"
            )

    def _strangers(self) -> bool:
        """Return whether the folder holds what no half-made store does: making one can be killed before its marker."""
        own = {".lock", ".turn", "checkpoints", "files", "results", ".tmp"}
        try:
            names = os.listdir(self.root)
        except OSError as error:
            raise DyneqError(
                f"the folder {self.root} cannot be read ({error.strerror or error}); name another"
            ) from None
        return any(name not in own and not name.startswith(".store.json.") for name in names)

    @property
    def exists(self) -> bool:
        """Whether the store has been made on disk."""
        return (self.root / "store.json").exists()

    def require_writable(self) -> None:
        """Verify that results can be stored, making the store if it is not there.

        Raises:
            DyneqError: If not.
        """
        self._create()
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (self.root, self.results, self.scratch)):
            raise DyneqError(f"the store {self.root} is read-only, so nothing can be added to it; name another --store")

    @contextmanager
    def writing(self) -> Iterator[Index]:
        """Hold the store as one of many writers and give its index, which is made from the folders if it is missing.

        Raises:
            DyneqError: If the store cannot be written.
        """
        self._create()
        while True:
            with self._guard(), locks.shared(self.root):
                if self.index_file.exists():  # asked under the lock: nobody can take it away now
                    with Index(self.index_file) as index:
                        yield index
                    return
            self._restore_index()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the store alone: no writer is inside.

        Raises:
            DyneqError: If the store cannot be written.
        """
        self._create()
        with self._guard(), locks.exclusive(self.root):
            yield

    @contextmanager
    def reading(self) -> Iterator[Index | None]:
        """Give the index, None if there is no store yet; readers wait for nobody.

        Raises:
            DyneqError: If the index is damaged or was written by a newer version.
        """
        if not self.exists:
            yield None
            return
        if not self.index_file.exists():
            try:
                self._restore_index()
            except DyneqError as error:
                with self._borrowed_index(error) as index:
                    yield index
                return
        with Index(self.index_file, readonly=True) as index:
            yield index

    @contextmanager
    def _borrowed_index(self, refusal: DyneqError) -> Iterator[Index]:
        """Give an index made in a temporary folder, where the store's own is missing and cannot be written."""
        from dyneq.catalog.rebuild import fill

        with tempfile.TemporaryDirectory(prefix="dyneq-index-", ignore_cleanup_errors=True) as folder:
            draft = Path(folder) / self.index_file.name
            try:
                fill(self, draft)
            except (OSError, DyneqError):
                raise refusal from None
            with Index(draft, readonly=True) as index:
                yield index

    def _restore_index(self) -> None:
        """Make a missing index from the folders: reading none would show an empty store."""
        from dyneq.catalog.rebuild import rebuild

        rebuild(self, only_if_missing=True)

    def _create(self) -> None:
        # some tools that copy folders leave out the empty ones
        folders = (self.root, self.checkpoints, self.files, self.results, self.scratch)
        if self.exists and all(folder.is_dir() for folder in folders):
            return
        with self._guard():
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            if self.exists:
                return
            # the same bytes whoever writes them, so that several processes may make one store together
            write_atomically(self.root / "store.json", json.dumps({"format": FORMAT}).encode() + b"\n")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what the file system refuses into one sentence."""
        try:
            yield
        except OSError as error:
            raise DyneqError(
                f"the store {self.root} cannot be written ({error.strerror or error}); make room or permission there, "
                "or name another --store"
            ) from error

    @cached_property
    def _resolved(self) -> Path:
        return Path(os.path.realpath(self.root))

    def relative(self, path: Path) -> str:
        """Return how a checkpoint's place is kept: from the store's folder if it is beside or inside it, else absolute.

        A project folder that is moved with its store keeps its catalog that way. Links of the checkpoint's own path
        stay as they are, for data folders are linked on purpose; those of the store's path are resolved, so that a
        store means the same places whichever way it is reached.
        """
        path, named = without_dots(path), without_dots(self.root)
        if path.is_relative_to(named):
            return os.path.relpath(path, named)
        homes = [self._resolved]
        if os.path.realpath(named.parent) == str(self._resolved.parent):
            homes.append(named)  # the project is reached through a link, the store in it is none
        for home in homes:
            if path.is_relative_to(home.parent):
                return os.path.relpath(path, home)
        return str(path)

    def spellings(self, path: Path) -> set[str]:
        """Return every way in which :meth:`relative` may have kept a file before the project was moved."""
        path = without_dots(path)
        return {self.relative(path), str(path), os.path.relpath(path, self._resolved)}

    def place(self, kept: str) -> Path:
        """Return the file that :meth:`relative` described."""
        return Path(os.path.normpath(self._resolved / kept))


def without_dots(path: Path) -> Path:
    """Return an absolute path without ``..``; its links are kept, but for those that a ``..`` follows."""
    found = "/"
    for part in path.absolute().parts[1:]:
        if part == "..":
            # the folder above a link is the one above what it leads to
            found = os.path.dirname(os.path.realpath(found) if os.path.islink(found) else found)
        else:
            found = os.path.join(found, part)
    return Path(found)
