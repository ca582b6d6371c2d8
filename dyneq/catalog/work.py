"""One task of a sweep, as a worker process does it: one probe on one checkpoint, into the store."""

import time
from dataclasses import dataclass, field
from typing import Any

from dyneq.catalog.names import Entry


@dataclass(frozen=True)
class Task:
    """What a worker is told; plain values only, so that it travels to any process.

    Attributes:
        entry: The checkpoint, its file given by an absolute path.
        probe: Name of the probe.
        params: Its parameters.
        store: Folder of the store, absolute; the cluster's workers must see both under the same names.
        batch: How many samples; all if None.
        eps: Step size; the checkpoint's own if None.
        dtype: Precision; float64 if None.
        device: Torch device; the CPU if None.
        force: Measure again even if there is a result.
        trust: Unpickle whatever the checkpoint holds.
    """

    entry: Entry
    probe: str
    params: dict[str, Any] = field(default_factory=dict)
    store: str = ".dyneq"
    batch: int | None = None
    eps: float | None = None
    dtype: str | None = None
    device: str | None = None
    force: bool = False
    trust: bool = False


@dataclass(frozen=True)
class Done:
    """A task whose result is in the store.

    Attributes:
        result: Identifier of the stored result.
        found: Whether it was there already.
        seconds: Time the task took.
    """

    result: str
    found: bool
    seconds: float


def perform(task: Task) -> Done:
    """Do one task.

    Raises:
        DyneqError: If the checkpoint is gone, damaged or another, the probe fails, or the result cannot be stored.
    """
    from dyneq.catalog.measure import measure
    from dyneq.catalog.resolve import open_entry

    begun = time.perf_counter()
    done = measure(
        open_entry(task.entry, trust=task.trust),
        task.probe,
        task.params,
        batch=task.batch,
        eps=task.eps,
        dtype=task.dtype,
        device=task.device,
        store=task.store,
        force=task.force,
    )
    if done.unsaved is not None:
        raise done.unsaved
    assert done.stored is not None  # a checkpoint has a digest
    return Done(done.stored.id, done.found, time.perf_counter() - begun)
