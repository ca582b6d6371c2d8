"""One run of a comparison, as a worker process does it: trained, continued or found, its snapshots in the catalog."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyneq.train.arms import Cell


@dataclass(frozen=True)
class TrainTask:
    """What a worker is told.

    Attributes:
        cell: The run.
        folder: Its run folder, absolute.
        store: Folder of the catalog its snapshots are told to; None for ``DYNEQ_STORE`` or the default.
    """

    cell: Cell
    folder: str
    store: str | None = None


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
        summary: See :func:`dyneq.train.comparison_result.summary`.
        found: Whether it had ended before.
        notes: Sentences the user should read.
    """

    summary: dict[str, Any]
    found: bool
    notes: tuple[str, ...] = ()


def train_one(task: TrainTask) -> Trained:
    """Train a run to its end, from where it stands; one that has ended is only read.

    Raises:
        DyneqError: If it cannot be trained: its text, folder or state cannot be used, or another process is at it.
    """
    from dyneq.catalog.checkpoints import snapshot_sink
    from dyneq.catalog.store import Store
    from dyneq.train import loop
    from dyneq.train.comparison_result import finish, finished, summary

    folder, notes = Path(task.folder), list[str]()
    ended = finished(folder)
    if ended is not None:
        return Trained(summary(task.cell, folder, ended), found=True)
    hooks = loop.Hooks(sink=snapshot_sink(Store(task.store), folder.name, notes.append))
    begun = folder.exists()
    outcome = loop.resume(folder, hooks=hooks) if begun else loop.start(task.cell.recipe, folder, hooks=hooks)
    finish(outcome)
    ended = finished(folder)
    assert ended is not None
    return Trained(summary(task.cell, folder, ended), found=False, notes=tuple(notes))
