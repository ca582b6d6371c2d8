"""Going through the snapshots of a run: each opened, compared with the first, and probed through the store."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dyneq.catalog.drift_parts import FEW, Part
from dyneq.catalog.drift_penalties import remarks
from dyneq.catalog.drift_runs import Missing, Snapshot
from dyneq.catalog.measure import measure
from dyneq.catalog.resolve import Subject
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.checkpoint import Checkpoint

#: Told what is being done and how far all of it is (0 to 1).
Progress = Callable[[str, float], None]
#: Metrics a snapshot carries, measured in training after T1 steps on the whole pinned batch.
RECORDED = ("validation_loss", "validation_force_residual", "validation_force_residual_max")


class Measuring:
    """What is collected while the snapshots of one run are gone through.

    Args:
        parts: What is measured.
        store: Where results are kept.
        settings: ``batch``, ``eps``, ``dtype``, ``device`` and ``force`` of :func:`dyneq.catalog.measure.measure`; a
            batch of None is all samples, or the first :data:`FEW` where more than the probe residual is to be measured.

    Attributes:
        missing: Snapshots, and probes of snapshots, that could not be measured.
        measured: Results that were computed now.
        found: Results the store had.
        first: The first snapshot that could be opened.
        refused: Probes and estimators that do not fit, and why.
        against: What the gradients are held against, by probe.
        horizon: The reference at its other depth, empty if there is none.
        notes: What a reader has to know of the penalties.
    """

    def __init__(self, parts: Sequence[Part], store: Store, settings: dict[str, Any]) -> None:
        self.parts, self.store, self.settings = list(parts), store, settings
        self.missing: list[Missing] = []
        self.measured = self.found = 0
        self.first: Checkpoint | None = None
        self.refused: dict[str, str] = {}
        self.against: dict[str, str] = {}
        self.horizon = ""
        self.notes: list[str] = []

    def row(self, snapshot: Snapshot, progress: Progress) -> xr.Dataset | None:
        """Return everything measured of one snapshot, along a ``step`` of length one; None if there is nothing.

        Args:
            snapshot: The snapshot.
            progress: Told how far it is.

        Raises:
            UsageError: If it is of another block or batch than the first, or a probe that was asked for does not fit.
        """
        try:
            subject = snapshot.open()
        except DyneqError as error:
            self.missing.append(Missing(snapshot.label, "", str(error)))
            return None
        assert subject.checkpoint is not None
        self._compare(subject.checkpoint, snapshot.label)
        columns = []
        for i, part in enumerate(self.parts):
            if part.probe.name not in self.refused:
                told = within(progress, part.probe.name, i / len(self.parts), 1 / len(self.parts))
                columns += self._part(subject, part, told)
        if not columns:
            return None
        own = subject.checkpoint.metrics
        recorded = {f"recorded_{key.removeprefix('validation_')}": own.get(key) for key in RECORDED}
        plain = {key: float(v) if isinstance(v, int | float) else np.nan for key, v in recorded.items()}
        row = xr.merge([*columns, xr.Dataset(plain)], join="outer", compat="no_conflicts")
        return row.drop_attrs().expand_dims(step=[snapshot.step])

    def _part(self, subject: Subject, part: Part, progress: Progress) -> list[xr.Dataset]:
        name = part.probe.name
        try:
            done = measure(subject, part.probe, part.params, store=self.store, progress=progress, **self.settings)
        except UsageError as error:
            if part.asked or not self.measured + self.found:
                raise
            self.refused[name] = str(error)
            return []
        except DyneqError as error:
            self.missing.append(Missing(subject.name, name, str(error)))
            return []
        self.found += done.found
        self.measured += not done.found
        if done.unsaved is not None:
            self.missing.append(Missing(subject.name, name, f"it is shown, but could not be stored: {done.unsaved}"))
        series = part.series(done.dataset)
        if "against" in series.attrs:
            self.against[name] = series.attrs["against"]
        self.horizon = series.attrs.get("horizon", self.horizon)
        self.refused |= json.loads(series.attrs.get("refusals", "{}"))
        return [series]

    def _compare(self, checkpoint: Checkpoint, label: str) -> None:
        """Verify that a snapshot is of the same block and batch as the first one.

        Raises:
            UsageError: If not: its numbers would make no series.
        """
        if self.first is None:
            self.first = checkpoint
            self._fit(checkpoint, label)
            if self.settings["batch"] is None and any(p.probe.name != "residual" for p in self.parts):
                pinned = checkpoint.evaluation.tokens.shape[0]
                self.settings = {**self.settings, "batch": min(FEW, pinned)}
            return
        one, other = (c.block.config.model_dump(mode="json") for c in (self.first, checkpoint))
        differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        cure = "name the folder of one run, or choose its --steps"
        if differing:
            told = ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in differing[:4])
            raise UsageError(
                f"{self.first.name} and {label} are of different blocks ({told}), so they are no snapshots of one run; "
                f"{cure}"
            )
        batches = [c.evaluation.sha256 for c in (self.first, checkpoint)]
        if batches[0] != batches[1]:
            raise UsageError(
                f"{self.first.name} and {label} pin different evaluation batches ({batches[0][:12]} and "
                f"{batches[1][:12]}), so their losses make no series; {cure}"
            )
        if any(p.trained for p in self.parts) and self.first.recipe.get("penalty") != checkpoint.recipe.get("penalty"):
            note = (
                f"the recipes of {self.first.name} and later snapshots have different penalties; decompose takes those "
                "of the former throughout"
            )
            self.notes += [note] if note not in self.notes else []

    def _fit(self, checkpoint: Checkpoint, label: str) -> None:
        """Give the parts what they take from the run."""
        for i, part in enumerate(self.parts):
            self.parts[i] = part.of_run(checkpoint.recipe)
            if part.trained:
                self.notes += remarks(checkpoint.recipe, self.parts[i].plain()["penalty"], label)


def within(progress: Progress, label: str, begin: float, length: float) -> Progress:
    """Return a progress that covers a part of another one."""
    return lambda what, share: progress(f"{label}: {what}", begin + length * share)
