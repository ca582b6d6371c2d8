"""Snapshots a run leaves behind, and the state from which it continues."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.train import parallel
from dyneq.train.log import unwritten


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is safely on disk.

    Attributes:
        path: The file.
        sha256: Its digest.
        step: Updates its weights have had.
        metrics: What was measured of it.
    """

    path: Path
    sha256: str
    step: int
    metrics: dict[str, Any]


Sink = Callable[[Snapshot], None]
"""Told of every snapshot once it is written; after a resume possibly of the same one (equal digest) again."""


def write_snapshot(path: Path, checkpoint: Checkpoint) -> Snapshot:
    """Write a checkpoint atomically, with whatever training state it carries.

    Raises:
        Unwritten: If the file cannot be written.
    """
    sha256 = parallel.lead(lambda: _saved(path, checkpoint))
    return Snapshot(path, sha256, checkpoint.step, checkpoint.metrics)


def _saved(path: Path, checkpoint: Checkpoint) -> str:
    try:
        return save_checkpoint(path, checkpoint)
    except DyneqError as error:
        if isinstance(error.__cause__, OSError):
            raise unwritten(path, error.__cause__) from None
        raise


def read_state(path: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """Return the checkpoint to resume from and its weights in the precision they were trained in.

    Raises:
        DyneqError: If the file is damaged.
    """
    return parallel.lead(
        lambda: (load_checkpoint(path), torch.load(path, map_location="cpu", weights_only=True)["model"])
    )
