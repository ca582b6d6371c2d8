"""Files that hold either their old content or all of the new one, whatever happens."""

import hashlib
import os
import uuid
from pathlib import Path

from dyneq.errors import DyneqError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file durably (temporary file, fsync, rename, fsync of the folder): its old content, or all of ``data``.

    Raises:
        DyneqError: If it cannot be written; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise DyneqError(f"{path} cannot be written ({error.strerror or error}); choose a writable place") from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Raises:
        OSError: If the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Return whether there is a file; a name that no file can have is none, where the system itself would complain."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Return whether there is anything, as :func:`is_file` does for files."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is a folder, as :func:`is_file` does for files."""
    try:
        return path.is_dir()
    except OSError:
        return False
