"""The training log: one JSON object a line, flushed as it is written, repaired after a kill."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dyneq.errors import DyneqError
from dyneq.files import write_atomically
from dyneq.train import parallel

Record = dict[str, Any]


class Unwritten(DyneqError):
    """A file of a run could not be written; what was written before is whole, and the run can be resumed."""


def unwritten(path: Path, error: OSError) -> Unwritten:
    """Return what to raise when a file of a run folder cannot be written."""
    return Unwritten(
        f"{path} cannot be written ({error.strerror or error}); what was saved before is whole: make room, then "
        f"continue with --resume {path.parent}"
    )


def read_log(path: Path) -> list[Record]:
    """Return the records of a log, in order; a line that a kill cut short ends it.

    Raises:
        DyneqError: If the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was never finished
    except OSError as error:
        raise DyneqError(
            f"the training log {path} cannot be read ({error.strerror or error}); check the path"
        ) from None
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def cut_log(path: Path, step: int) -> list[Record]:
    """Drop a truncated last line and every record beyond ``step``; return what is left.

    Args:
        path: The log; one that does not exist counts as empty.
        step: Number of updates the weights have had; -1 empties the log.

    Raises:
        DyneqError: If it cannot be read or written.
    """
    if not path.exists():
        return []
    kept = [record for record in read_log(path) if record["step"] <= step]
    write_atomically(path, "".join(map(_line, kept)).encode())
    return kept


class TrainingLog:
    """An open log; where several processes train together, the first one's.

    Args:
        path: The file, appended to.

    Raises:
        Unwritten: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # no buffer, which would try again to write what could not be written when the file is closed
            self._file = open(path if parallel.first() else os.devnull, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise unwritten(path, error) from None

    def append(self, record: Record) -> None:
        """Write one record and hand it to the operating system, so that it survives a kill of this process.

        Raises:
            Unwritten: If it cannot be written.
        """
        left = memoryview(_line(record).encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise unwritten(self._path, error) from None

    def sync(self) -> None:
        """Wait until everything written is on disk, so that no saved state is ever ahead of its log.

        Raises:
            Unwritten: If the disk refuses.
        """
        try:
            if parallel.first():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritten(self._path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _line(record: Record) -> str:
    # JSON has no NaN or infinity; they are written as the strings "nan", "inf" and "-inf" rather than dropped
    plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"
