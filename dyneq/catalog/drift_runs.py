"""The snapshots of a run in order of step, from the catalog or from a run folder."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dyneq.catalog import names
from dyneq.catalog.checkpoints import SUFFIXES
from dyneq.catalog.index import Index
from dyneq.catalog.names import Entry
from dyneq.catalog.resolve import Subject, open_entry
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.files import is_folder
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.moving import is_moving

#: Where ``dyneq train`` puts a run that is given by a bare name.
RUNS = Path("runs")
LOG = "log.jsonl"
_STEP = re.compile(r"step-([0-9]{1,18})")


@dataclass(frozen=True)
class Missing:
    """Something of a run that could not be had.

    Attributes:
        name: The snapshot, or the run.
        part: The probe that failed; empty if nothing of it could be measured.
        reason: The sentence that says why.
    """

    name: str
    part: str
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of a run.

    Attributes:
        step: Updates its weights have had.
        label: What it is called in messages.
        open: Gives it, as something to probe.
    """

    step: int
    label: str
    open: Callable[[], Subject]


@dataclass(frozen=True)
class RunSnapshots:
    """A run as it left its snapshots behind.

    Attributes:
        name: What it is called.
        snapshots: In order of step, each step once.
        log: Its training log, None if there is none beside the snapshots.
        missing: Files of it that are no usable snapshots.
    """

    name: str
    snapshots: tuple[Snapshot, ...]
    log: Path | None = None
    missing: tuple[Missing, ...] = field(default=())


def find_run(store: Store, text: str, *, trust: bool = False) -> RunSnapshots:
    """Return the run a name stands for.

    A text with a ``/`` in it is a folder. A bare name is the catalog's run of that name, then a folder of that name,
    then the folder in ``runs/``.

    Args:
        store: The store whose catalog is asked.
        text: Name or folder.
        trust: Unpickle whatever a snapshot holds.

    Raises:
        UsageError: If there is no such run, or the catalog has two different snapshots of it at one step.
    """
    path = Path(text)
    if path.name != text or text in (".", ".."):
        if not is_folder(path):
            raise UsageError(f"there is no run folder {text}; name a folder that `dyneq train` made, or a run")
        return of_folder(path, text, trust)
    with store.reading() as index:
        found = None if index is None else _of_catalog(store, index, text, trust)
        if found is not None:
            return found
        for folder in (path, RUNS / text):
            if is_folder(folder):
                return of_folder(folder, text, trust)
        known = [] if index is None else [r["run"] for r in index.rows(_NAMES)]
        single = None if index is None else names.resolve(store, index, text)
    if single is not None or is_snapshot(path):
        belongs = single.run if single is not None else ""
        better = f"name its run {belongs!r}" if belongs else "name a run"
        raise UsageError(f"{text!r} is one checkpoint, and what drifts is a run of several; {better}")
    raise UsageError(
        f"there is no run {text!r} in the catalog of {store.root}, nor a folder of it{nearest(text, known)}"
    )


def newest_run(store: Store) -> str:
    """Return the run of the checkpoint that was added last.

    Raises:
        UsageError: If the catalog has no run.
    """
    with store.reading() as index:
        entry = None if index is None else names.newest(store, index)
    if entry is None or not entry.run:
        what = "is empty" if entry is None else f"has {entry.label} as its newest checkpoint, which belongs to no run"
        raise UsageError(f"the catalog of {store.root} {what}; name a run, or the folder of one")
    return entry.run


_NAMES = "SELECT DISTINCT run FROM checkpoints WHERE run != '' LIMIT 20000"


def _of_catalog(store: Store, index: Index, run: str, trust: bool) -> RunSnapshots | None:
    rows = index.rows(
        f"SELECT {names.BRIEF} FROM checkpoints c WHERE c.run = ? ORDER BY c.step, c.sha256, c.copied DESC", (run,)
    )
    if not run or not rows:
        return None
    places: dict[str, list[Entry]] = {}
    for row in rows:
        places.setdefault(row["sha256"], []).append(Entry.of(row, store))
    by_step: dict[int, Entry] = {}
    for entries in places.values():
        entry = next((e for e in entries if e.path.exists()), entries[0])
        other = by_step.setdefault(entry.step, entry)
        if other is not entry:
            raise UsageError(
                f"the run {run!r} has two different checkpoints of step {entry.step} in the catalog "
                f"({other.sha256[:12]} at {other.path} and {entry.sha256[:12]} at {entry.path}): two trainings share "
                "its name; name the folder of one of them"
            )
    logs = {e.path.parent / LOG for entries in places.values() for e in entries}
    there = sorted(log for log in logs if log.is_file())
    snapshots = tuple(
        Snapshot(step, f"{run}@{step}", functools.partial(_open_entry, replace(entry, run=run), step, trust))
        for step, entry in sorted(by_step.items())
    )
    return RunSnapshots(run, snapshots, there[0] if len(there) == 1 else None)


def _open_entry(entry: Entry, step: int, trust: bool) -> Subject:
    return _at_step(open_entry(entry, trust=trust), entry.path, step)


def of_folder(folder: Path, name: str, trust: bool = False) -> RunSnapshots:
    """Return the snapshots that lie in a folder, without the files of a run that are written over.

    Args:
        folder: The folder.
        name: What it was called.
        trust: Unpickle whatever a snapshot holds.

    Raises:
        UsageError: If it holds no checkpoint, or two of one step.
    """
    run = folder.resolve().name
    found: dict[int, Path] = {}
    missing = []
    for path in sorted(p for p in folder.iterdir() if is_snapshot(p)):
        match = _STEP.fullmatch(path.stem)
        try:
            step = int(match[1]) if match else load_checkpoint(path, trust=trust).step
        except DyneqError as error:
            missing.append(Missing(path.name, "", str(error)))
            continue
        other = found.setdefault(step, path)
        if other is not path:
            raise UsageError(
                f"the folder {folder} has two checkpoints of step {step}, {other.name} and {path.name}; keep those of "
                "one run in a folder"
            )
    if not found and not missing:
        raise UsageError(f"the folder {folder} holds no snapshots; name the folder of a run, such as runs/NAME")
    snapshots = tuple(
        Snapshot(step, f"{run}@{step}", functools.partial(_open_file, found[step], run, step, trust))
        for step in sorted(found)
    )
    log = folder / LOG
    return RunSnapshots(name, snapshots, log if log.is_file() else None, tuple(missing))


def is_snapshot(path: Path) -> bool:
    """Return whether a file is one of those a run keeps, by its name alone."""
    moving = is_moving(path.name) and (path.parent / "recipe.toml").exists()
    return path.suffix in SUFFIXES and not path.name.startswith(".") and not moving and path.is_file()


def _open_file(path: Path, run: str, step: int, trust: bool) -> Subject:
    checkpoint = load_checkpoint(path, trust=trust)
    checkpoint.name = f"{run}@{step}"
    return _at_step(Subject(checkpoint.name, checkpoint, run=run), path, step)


def _at_step(subject: Subject, path: Path, step: int) -> Subject:
    assert subject.checkpoint is not None
    if subject.checkpoint.step != step:
        raise DyneqError(
            f"{path} should hold the weights after {step} updates, but says it has had {subject.checkpoint.step}; "
            "restore it, or rename it"
        )
    return subject


def thin(
    run: RunSnapshots, *, steps: str | None = None, every: int | None = None, last: int | None = None
) -> RunSnapshots:
    """Return a run with fewer snapshots; what is asked for is applied in the order of the arguments.

    Args:
        run: The run.
        steps: Steps and ranges such as ``0,100,400-500``; a single step has to exist.
        every: The first, and from then on the next that is at least so many steps later.
        last: So many of the last.

    Raises:
        UsageError: If a step is not there, or the text is none of steps.
    """
    kept = list(run.snapshots)
    if steps is not None:
        kept = _chosen(run, steps)
    if every is not None and kept:
        spaced = [kept[0]]
        for snapshot in kept[1:]:
            if snapshot.step - spaced[-1].step >= every:
                spaced.append(snapshot)
        kept = spaced
    return replace(run, snapshots=tuple(kept if last is None else kept[-last:]))


def _chosen(run: RunSnapshots, text: str) -> list[Snapshot]:
    wanted: set[int] = set()
    there = [s.step for s in run.snapshots]
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?\s*", part)
        if match is None:
            raise UsageError(f"--steps takes steps and ranges such as 0,100,400-500, but got {text[:60]!r}")
        first, end = int(match[1]), int(match[2] or match[1])
        inside = [step for step in there if first <= step <= end]
        if not inside:
            raise UsageError(
                f"the run {run.name!r} has no snapshot {'at step' if match[2] is None else 'in the steps'} "
                f"{part.strip()}; it has {listed(there)}"
            )
        wanted |= set(inside)
    return [s for s in run.snapshots if s.step in wanted]


def listed(steps: Sequence[int]) -> str:
    """Return ``the steps 0, 50, 100`` for a message, the middle of a long list left out."""
    if not steps:
        return "none"
    shown = [*map(str, steps)] if len(steps) <= 12 else [*map(str, steps[:8]), "...", *map(str, steps[-3:])]
    return f"the step{'s' * (len(steps) != 1)} {', '.join(shown)}"
