"""From what the user names to something that can be bound and probed."""

import sqlite3
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dyneq.catalog import names, query
from dyneq.catalog.checkpoints import content_of
from dyneq.catalog.names import Entry
from dyneq.catalog.packaged import reference_names
from dyneq.catalog.request import Request
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.files import is_file
from dyneq.probes.base import Params, Probe
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.systems.factory import load_system
from dyneq.systems.protocol import System, Time


@dataclass(frozen=True)
class Subject:
    """What a probe is run on: a checkpoint, or a system of the user's own.

    Attributes:
        name: What it is called in messages and tables.
        checkpoint: The checkpoint, None for a system made by a factory.
        system: The system made by a factory, None for a checkpoint.
        run: The run it belongs to, empty if none.
    """

    name: str
    checkpoint: Checkpoint | None = None
    system: System | None = None
    run: str = ""

    def bind(
        self,
        batch: int | None = None,
        *,
        eps: float | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> System:
        """Return the system to probe.

        Args:
            batch: How many samples of the pinned batch; all if None.
            eps: Step size; the subject's own if None.
            dtype: Precision; float64 for checkpoints if None. A factory's system has its own.
            device: Where it is computed; the CPU for checkpoints if None. A factory's system has its own.

        Raises:
            UsageError: If something is asked of a factory's system that only the factory can decide, or of the batch.
        """
        if self.checkpoint is not None:
            return self.checkpoint.bind(batch, eps=eps, dtype=dtype or torch.float64, device=device or "cpu")
        assert self.system is not None
        if dtype is not None or device is not None:
            raise UsageError(
                f"the factory {self.name} decides dtype and device of its own system; leave out --dtype and --device"
            )
        system = self.system if eps is None else self.system.with_eps(eps)
        if batch is None or batch == system.samples:
            return system
        if not 1 <= batch <= system.samples:
            raise UsageError(f"{self.name} has {system.samples} samples, but --batch {batch} was asked for")
        return system.select(torch.arange(batch, device=system.initial_state().device))

    def identity(self) -> dict[str, Any]:
        """Return ``name``, ``sha256`` and ``step`` as ``--json`` prints them; None where there is none."""
        held = self.checkpoint
        return {"name": self.name, "sha256": held and held.sha256, "step": None if held is None else held.step}

    def provenance(self, batch: int | None) -> dict[str, Any]:
        """Return the attributes a result gets from the checkpoint; empty for a factory's system."""
        if self.checkpoint is None:
            return {"checkpoint": self.name}
        return {
            "checkpoint": self.name,
            "checkpoint_sha256": self.checkpoint.sha256 or "",
            "checkpoint_step": self.checkpoint.step,
            "batch_sha256": self.checkpoint.evaluation.first(batch).sha256,
        }

    def request(self, probe: Probe, params: Params, system: System) -> Request | None:
        """Return the key under which a probe's result is stored; None for a factory's system, which has no digest.

        Args:
            probe: The probe.
            params: Its parameters.
            system: What :meth:`bind` gave.
        """
        if self.checkpoint is None or self.checkpoint.sha256 is None:
            return None
        z0 = system.initial_state()
        return Request(
            checkpoint=self.checkpoint.sha256,
            probe=probe.name,
            version=probe.version,
            params=params.model_dump(mode="json"),
            batch=system.samples,
            eps=None if system.time is Time.MAP else float(system.eps),
            dtype=str(z0.dtype).removeprefix("torch."),
            device=str(z0.device),
        )


def open_checkpoint(name: str | Path, *, store: Store | str | Path | None = None, trust: bool = False) -> Subject:
    """Return what a name on the command line stands for.

    Args:
        name: A path to a checkpoint, its name, ``run@step``, tag or digest prefix in the catalog, the name of a
            packaged reference checkpoint, or ``module:factory``.
        store: The store whose catalog is asked, or its folder; ``DYNEQ_STORE`` or ``.dyneq`` if None.
        trust: Unpickle whatever a checkpoint holds.

    Raises:
        UsageError: If nothing is called so, or several different checkpoints are.
        DyneqError: If the file is damaged, is gone, or was changed since it was added to the catalog.
    """
    text = str(name)
    if is_file(Path(text)) or Path(text).suffix in (".pt", ".safetensors"):
        checkpoint = load_checkpoint(text, trust=trust)
        return Subject(checkpoint.name, checkpoint)
    packaged = reference_names()
    store = store if isinstance(store, Store) else Store(store)
    with store.reading() as index:
        entry = None if index is None else names.resolve(store, index, text)
        if entry is None and ":" in text:
            return Subject(text, system=load_system(text))
        if entry is None and text not in packaged:
            close = nearest(text, packaged) if index is None else names.similar(index, text, packaged)
            raise UsageError(
                f"{text!r} is neither a checkpoint file, nor a name, run@step, tag or digest in the catalog, nor "
                f"module:factory, nor a packaged reference checkpoint{close}"
            )
    reference = load_checkpoint(str(files("dyneq") / "reference" / f"{text}.pt")) if text in packaged else None
    if entry is None or (reference is not None and entry.sha256 == reference.sha256):
        return Subject(text, reference)
    if reference is not None:
        assert reference.sha256 is not None
        raise UsageError(
            f"{text!r} stands for the packaged reference checkpoint ({reference.sha256[:12]}) and for {entry.label} of "
            f"the catalog ({entry.sha256[:12]}); name the latter by its digest, the former by its file"
        )
    return open_entry(entry, trust=trust)


def open_entry(entry: Entry, *, trust: bool = False) -> Subject:
    """Return a checkpoint of the catalog, compared with the digest it was added with.

    Raises:
        DyneqError: If its file is gone, damaged, or was changed since it was added.
    """
    if not entry.path.exists():
        raise DyneqError(
            f"the file of {entry.label} ({entry.sha256[:12]}) is not at {entry.path} any more; add it again from where "
            "it is now, or forget it with `dyneq catalog gc --missing`"
        )
    checkpoint = load_checkpoint(entry.path, trust=trust)
    if checkpoint.sha256 != entry.sha256:
        raise DyneqError(
            f"{entry.path} is not the file that was added as {entry.label} (digest {entry.sha256[:12]}, now "
            f"{str(checkpoint.sha256)[:12]}); restore it, or add it again"
        )
    checkpoint.name = entry.label
    return Subject(entry.label, checkpoint, run=entry.run)


def as_entry(subject: Subject) -> Entry | None:
    """Return what the catalog would know of a subject; None for a factory's system."""
    held = subject.checkpoint
    if held is None or held.path is None or held.sha256 is None:
        return None
    content = content_of(held, 0)
    name = held.path.stem if subject.run else subject.name
    return Entry(held.sha256, subject.run, name, held.step, held.path, content.samples, content.eps)


def selected(store: Store, selection: str) -> list[Entry]:
    """Return the checkpoints a selection chooses, each digest once, in the order of run and step.

    Raises:
        UsageError: If the text is no selection, or it chooses none.
    """
    with store.reading() as index:
        rows = (
            []
            if index is None
            else query.select(index, "checkpoints", selection, names.BRIEF, "c.run, c.step, c.name, c.copied DESC")
        )
    entries = _once(rows, store)
    if not entries:
        raise UsageError(
            f"no checkpoint of the catalog in {store.root} meets {selection!r}; `dyneq catalog list` shows what there "
            "is"
        )
    return entries


def every_entry(store: Store) -> list[Entry]:
    """Return all checkpoints of the catalog, each digest once, in the order of run and step."""
    with store.reading() as index:
        rows = (
            []
            if index is None
            else query.select(index, "checkpoints", None, names.BRIEF, "c.run, c.step, c.name, c.copied DESC")
        )
    return _once(rows, store)


def _once(rows: list[sqlite3.Row], store: Store) -> list[Entry]:
    """Return one entry of every digest, in order, of several places one whose file is there."""
    places: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        places.setdefault(row["sha256"], []).append(row)
    return [names.first_there(store, held) for held in places.values()]


def default_entries(store: Store) -> list[Entry]:
    """Return the catalog's newest checkpoint, as a list of one; none if the catalog is empty."""
    with store.reading() as index:
        entry = None if index is None else names.newest(store, index)
    return [] if entry is None else [entry]
