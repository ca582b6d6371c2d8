"""From probes and checkpoints to the tasks of a sweep, and which of them were done before."""

from collections.abc import Sequence
from dataclasses import replace

from dyneq.catalog.manifest import Damaged
from dyneq.catalog.names import Entry
from dyneq.catalog.request import Request
from dyneq.catalog.results import NEWEST, open_stored
from dyneq.catalog.specs import parse_probe
from dyneq.catalog.store import Store
from dyneq.catalog.work import Task


def plan(
    specs: Sequence[str],
    entries: Sequence[Entry],
    store: Store,
    *,
    seed: int | None = None,
    batch: int | None = None,
    eps: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    force: bool = False,
    trust: bool = False,
) -> tuple[list[Task], list[str | None]]:
    """Return one task for every checkpoint and probe, and beside each the result that is there already, or None.

    Finding results here, from the index alone, lets a sweep that was interrupted go on at once.

    Args:
        specs: Probes with their parameters.
        entries: Checkpoints.
        store: Where results are kept.
        seed: Seed for probes that have one.
        batch: How many samples; all if None.
        eps: Step size; each checkpoint's own if None.
        dtype: Precision; float64 if None.
        device: Torch device; the CPU if None.
        force: Measure again even if there is a result.
        trust: Unpickle whatever a checkpoint holds.

    Raises:
        UsageError: If a probe, parameter or value is unknown.
    """
    chosen = [parse_probe(spec, seed) for spec in specs]
    tasks, known = [], []
    with store.reading() as index:
        for entry in entries:
            for probe, params in chosen:
                plain = params.model_dump(mode="json")
                tasks.append(
                    Task(
                        entry=replace(entry, path=entry.path.absolute()),
                        probe=probe.name,
                        params=plain,
                        store=str(store.root.absolute()),
                        batch=batch,
                        eps=eps,
                        dtype=dtype,
                        device=device,
                        force=force,
                        trust=trust,
                    )
                )
                request = Request(
                    checkpoint=entry.sha256,
                    probe=probe.name,
                    version=probe.version,
                    params=plain,
                    batch=entry.samples if batch is None else batch,
                    eps=entry.eps if eps is None else eps,
                    dtype=dtype or "float64",
                    device=device or "cpu",
                )
                rows = [] if index is None or force else index.rows(NEWEST, (request.key,))
                known.append(_undamaged(store, rows[0]["id"], probe.name) if rows else None)
    return tasks, known


def _undamaged(store: Store, identifier: str, probe: str) -> str | None:
    """Return a result's identifier if every byte of it is as it was written; else its task will say what is wrong."""
    try:
        stored = open_stored(store, probe, identifier)
        stored.manifest.check_content(stored.folder)
    except Damaged:
        return None
    return identifier
