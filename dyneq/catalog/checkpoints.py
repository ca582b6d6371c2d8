"""Adding checkpoints to the catalog: files where they are, copies, foreign files, and snapshots as a run makes them."""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dyneq.catalog.entries import Content, Place, Record, add_place
from dyneq.catalog.store import Store, without_dots
from dyneq.errors import DyneqError, UsageError
from dyneq.files import write_atomically
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.systems.protocol import Time
from dyneq.train.moving import is_moving

if TYPE_CHECKING:
    from dyneq.catalog.mapping import Mapping
    from dyneq.train.snapshots import Snapshot

SUFFIXES = (".pt", ".safetensors")
#: Characters that would make a run or a tag something else on the command line.
_RESERVED = set("@:/\\\"'")


def add_file(
    store: Store,
    path: Path,
    *,
    run: str | None = None,
    tags: Iterable[str] = (),
    copy: bool = False,
    mapping: "Mapping | None" = None,
    trust: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Record:
    """Add a checkpoint file to the catalog; adding it again at the same place changes nothing.

    Whatever other checkpoint was known at that path has been overwritten, so the path is taken away from it.

    Args:
        store: The store.
        path: The file.
        run: The run it belongs to; the name of the run folder it lies in if None, else none.
        tags: Labels to give it.
        copy: Keep a copy in the store, and refer to that.
        mapping: For a foreign file: how to convert it. The converted checkpoint is always kept in the store.
        trust: Unpickle whatever the file holds.
        tell: Told one sentence for each checkpoint that lost its place, and for a damaged record made anew.

    Raises:
        UsageError: If the run or a tag is not a usable name.
        DyneqError: If the file is no usable checkpoint, or the store cannot be written.
    """
    tags = frozenset(tags)
    for text, what in ((run, "run"), *((tag, "tag") for tag in sorted(tags))):
        if text is not None:
            require_name(text, what)
    store.require_writable()
    if mapping is None:
        checkpoint = load_checkpoint(path, trust=trust)
    else:
        from dyneq.catalog.foreign import import_foreign

        checkpoint = import_foreign(path, mapping, trust=trust)
    where = source = without_dots(path)
    run = _run_of(source) if run is None else run
    if mapping is not None:
        where = _keep_converted(store, checkpoint)
    elif copy:
        where = _keep_copy(store, checkpoint, path)
    assert checkpoint.sha256 is not None
    kept = store.relative(where)
    place = Place(
        run=run,
        name=_name_of(path),
        path=kept,
        copied=kept.startswith(f"{store.files.name}/"),
        made_at=_utc(path.stat().st_mtime),
        made_by=_maker(checkpoint),
        added_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    fresh = Record(checkpoint.sha256, content_of(checkpoint, where.stat().st_size), (place,), tags)
    # what a foreign file is compared with is not known: only its conversion has a digest
    overwritten = {kept} if mapping is not None else {kept, *store.spellings(source)}
    return add_place(store, fresh, overwritten, tell)


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
        complain: Told in one sentence when a snapshot could not be registered, or overwrote another.

    Raises:
        DyneqError: If the store cannot be written now, before any training.
    """
    require_name(run, "run")
    store.require_writable()

    def sink(snapshot: "Snapshot") -> None:
        try:
            add_file(store, snapshot.path, run=run, tell=complain)
        except DyneqError as error:
            complain(f"{snapshot.path.name} is saved but not in the catalog ({error})")

    return sink


def count_others(folder: Path) -> int:
    """Return how many files below a folder look like checkpoints of another ending."""
    others = {".pth", ".ckpt"}
    return sum(p.suffix.lower() in others | set(SUFFIXES) and p.suffix not in SUFFIXES for p in folder.rglob("*"))


def checkpoint_files(folder: Path) -> Iterator[Path]:
    """Yield the checkpoint files below a folder in a fixed order, without those of a run that are written over."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        moving = is_moving(path.name) and (path.parent / "recipe.toml").exists()
        if path.suffix in SUFFIXES and not hidden and not moving and path.is_file():
            yield path


def _run_of(path: Path) -> str:
    """Return the name of the run folder a file lies in, empty if it lies in none.

    Raises:
        UsageError: If that folder's name is no usable one.
    """
    folder = path.parent
    if not (folder / "recipe.toml").is_file() or not folder.name:
        return ""
    try:
        require_name(folder.name, "run")
    except UsageError:
        raise UsageError(
            f"the folder {str(folder)!r} of {path.name} is no usable name of a run; give the run another with --run"
        ) from None
    return folder.name


def _name_of(path: Path) -> str:
    """Return what a file is called in the catalog: its stem, with ``_`` for what would make it something else.

    A name with a colon could be ``module:factory``, one that ends like a file is read as one, and control characters
    cannot be typed.
    """
    name = "".join("_" if c == ":" or not c.isprintable() else c for c in path.stem)
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            name = f"{name.removesuffix(suffix)}_{suffix[1:]}"
    return name


def require_name(text: str, what: str) -> None:
    """Verify that a run or tag can be named on the command line.

    Raises:
        UsageError: If not.
    """
    reserved = bool(_RESERVED & set(text)) or not text.isprintable()
    if not text or reserved or text != text.strip() or text.startswith("-") or len(text) > 200:
        raise UsageError(
            f"a {what} is 1 to 200 characters without @ : / \\ quotes, control characters or spaces at its ends, but "
            f"{text[:60]!r} was given; choose another name"
        )
    if what == "tag" and text.endswith(SUFFIXES):
        raise UsageError(f"a tag like {text[:60]!r} would be read as a file; leave out its ending")


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
