"""Adding checkpoints to the catalog: files where they are, copies, foreign files, and snapshots as a run makes them."""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dyneq.catalog.entries import Content, Place, Record, change_record
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.files import write_atomically
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.systems.protocol import Time

if TYPE_CHECKING:
    from dyneq.catalog.mapping import Mapping
    from dyneq.train.snapshots import Snapshot

SUFFIXES = (".pt", ".safetensors")
#: Characters that would make a run or a tag something else on the command line.
_RESERVED = set("@:/\\\n\t\0\"'")


def add_file(
    store: Store,
    path: Path,
    *,
    run: str | None = None,
    tags: Iterable[str] = (),
    copy: bool = False,
    mapping: "Mapping | None" = None,
    trust: bool = False,
) -> Record:
    """Add a checkpoint file to the catalog; adding it again changes nothing but its place.

    Args:
        store: The store.
        path: The file.
        run: The run it belongs to; the name of the run folder it lies in if None, else none.
        tags: Labels to give it.
        copy: Keep a copy in the store, and refer to that.
        mapping: For a foreign file: how to convert it. The converted checkpoint is always kept in the store.
        trust: Unpickle whatever the file holds.

    Raises:
        UsageError: If the run or a tag is not a usable name.
        DyneqError: If the file is no usable checkpoint, or the store cannot be written.
    """
    for text, what in ((run, "run"), *((tag, "tag") for tag in tags)):
        if text is not None:
            require_name(text, what)
    store.require_writable()
    if mapping is None:
        checkpoint = load_checkpoint(path, trust=trust)
    else:
        from dyneq.catalog.foreign import import_foreign

        checkpoint = import_foreign(path, mapping, trust=trust)
    name = path.stem
    where = path.absolute()
    if mapping is not None:
        where = _keep_converted(store, checkpoint)
    elif copy:
        where = _keep_copy(store, checkpoint, path)
    assert checkpoint.sha256 is not None
    place = Place(
        run=_run_of(path) if run is None else run,
        name=name,
        path=store.relative(where),
        copied=where.is_relative_to(store.files.absolute()),
        made_at=_utc(path.stat().st_mtime),
        made_by=_maker(checkpoint),
        added_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    return register(store, checkpoint, place, where.stat().st_size, tags)


def register(store: Store, checkpoint: Checkpoint, place: Place, size: int, tags: Iterable[str] = ()) -> Record:
    """Write a checkpoint's record, or add a place and tags to the one it has.

    Args:
        store: The store.
        checkpoint: What was read from the file.
        place: Where the file is.
        size: Bytes of the file.
        tags: Labels to give it.

    Raises:
        DyneqError: If the store cannot be written.
    """
    assert checkpoint.sha256 is not None
    sha256, tags = checkpoint.sha256, frozenset(tags)
    content = content_of(checkpoint, size)

    def change(present: Record | None) -> Record:
        if present is None:
            return Record(sha256, content, (place,), tags)
        earlier = {p.run: p for p in present.places}.get(place.run)
        if earlier is not None and (earlier.path, earlier.name) == (place.path, place.name):
            return Record(sha256, content, present.places, present.tags | tags)
        return Record(sha256, content, present.at(place).places, present.tags | tags)

    return change_record(store, sha256, change)


def content_of(checkpoint: Checkpoint, size: int) -> Content:
    """Return what the catalog keeps of a checkpoint's content."""
    config = checkpoint.block.config.model_dump(mode="json")
    bound = checkpoint.block.bind(checkpoint.evaluation.tokens[:1], checkpoint.evaluation.targets[:1])
    return Content(
        step=checkpoint.step,
        kind=str(config.get("kind", type(checkpoint.block).__name__)),
        samples=checkpoint.evaluation.tokens.shape[0],
        eps=None if bound.time is Time.MAP else float(bound.eps),
        bytes=size,
        metrics=checkpoint.metrics,
        config=config,
        recipe=checkpoint.recipe,
    )


def snapshot_sink(store: Store, run: str, complain: Callable[[str], None]) -> "Callable[[Snapshot], None]":
    """Return what a trainer tells of its snapshots, so that the catalog knows them as the run goes.

    Training goes on if the catalog cannot be written: the snapshots themselves are safe, and can be added later.

    Args:
        store: The store; made at once if it is not there.
        run: Name of the run.
        complain: Told in one sentence when a snapshot could not be registered.

    Raises:
        DyneqError: If the store cannot be written now, before any training.
    """
    require_name(run, "run")
    store.require_writable()

    def sink(snapshot: "Snapshot") -> None:
        try:
            add_file(store, snapshot.path, run=run)
        except DyneqError as error:
            complain(f"{snapshot.path.name} is saved but not in the catalog ({error})")

    return sink


def checkpoint_files(folder: Path) -> Iterator[Path]:
    """Yield the checkpoint files below a folder in a fixed order, without the moving `last.pt` of a run."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        moving = path.name == "last.pt" and (path.parent / "recipe.toml").exists()
        if path.suffix in SUFFIXES and not hidden and not moving and path.is_file():
            yield path


def _run_of(path: Path) -> str:
    """Return the name of the run folder a file lies in, empty if it lies in none."""
    folder = path.absolute().parent
    return folder.name if (folder / "recipe.toml").is_file() else ""


def require_name(text: str, what: str) -> None:
    """Verify that a run or tag can be named on the command line.

    Raises:
        UsageError: If not.
    """
    if not text or text != text.strip() or text.startswith("-") or _RESERVED & set(text) or len(text) > 200:
        raise UsageError(
            f"a {what} is 1 to 200 characters without @ : / \\ quotes, control characters or spaces at its ends, but "
            f"{text[:60]!r} was given; choose another name"
        )


def _maker(checkpoint: Checkpoint) -> str:
    recipe = checkpoint.recipe
    if isinstance(recipe.get("imported"), dict):
        return f"imported with {recipe['imported'].get('mapping', 'a mapping')}"
    gradient = recipe.get("gradient")
    return f"dyneq train, {gradient['name']}" if isinstance(gradient, dict) and "name" in gradient else "unknown"


def _keep_copy(store: Store, checkpoint: Checkpoint, path: Path) -> Path:
    target = store.files / f"{checkpoint.sha256}{path.suffix}"
    with store.writing():
        if not target.exists():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
                raise DyneqError(f"{path} was changed while it was read; add it again when it is complete")
            write_atomically(target, data)
    return target.absolute()


def _keep_converted(store: Store, checkpoint: Checkpoint) -> Path:
    """Save a converted checkpoint under its own digest, which is known only once it is written."""
    with store.writing():
        draft = store.scratch / f"{uuid.uuid4().hex}.pt"
        checkpoint.sha256 = save_checkpoint(draft, checkpoint)
        target = store.files / f"{checkpoint.sha256}.pt"
        draft.replace(target)
    return target.absolute()


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
