"""Diagnostics over the snapshots of one run: every one measured through the store, and joined along ``step``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from dyneq.catalog.drift_attributes import describe
from dyneq.catalog.drift_measure import Measuring, Progress, within
from dyneq.catalog.drift_parts import Part
from dyneq.catalog.drift_rates import Rates, rates_of
from dyneq.catalog.drift_runs import Missing, RunSnapshots
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.base import silent


@dataclass(frozen=True)
class Drift:
    """What became of one run.

    Attributes:
        dataset: The series over ``step``.
        missing: Snapshots, and probes of snapshots, that could not be measured.
        measured: Results that were computed now.
        found: Results the store had.
        notes: What a reader has to know besides.
    """

    dataset: xr.Dataset
    missing: tuple[Missing, ...]
    measured: int
    found: int
    notes: tuple[str, ...] = ()


def drift(
    run: RunSnapshots,
    parts: Sequence[Part],
    *,
    store: Store,
    batch: int | None = None,
    eps: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Drift:
    """Measure the snapshots of a run in order of step; what the store has is found again.

    Each result is stored as soon as it is there, so an interrupted call goes on where it was. A snapshot that cannot be
    opened or probed is named and left out.

    Args:
        run: The run, thinned already.
        parts: What is measured.
        store: Where results are kept.
        batch: How many samples of the pinned batch; if None all, or the first 16 where more than the probe residual is
            to be measured.
        eps: Step size; the snapshots' own if None.
        dtype: Precision; float64 if None.
        device: Torch device; the CPU if None.
        force: Measure again even what the store has.
        progress: Told how far all of it is.

    Raises:
        UsageError: If there are fewer than two snapshots, they are of different blocks or batches, or a probe that
            was asked for does not fit the system.
        DyneqError: If fewer than two of the snapshots could be measured.
    """
    if len(run.snapshots) < 2:
        raise UsageError(_too_few(run))
    settings = {"batch": batch, "eps": eps, "dtype": dtype, "device": device, "force": force}
    measuring = Measuring(parts, store, settings)
    measuring.missing += run.missing
    rows, count = [], len(run.snapshots)
    for k, snapshot in enumerate(run.snapshots):
        row = measuring.row(snapshot, within(progress, snapshot.label, k / count, 1 / count))
        if row is not None:
            rows.append(row)
    first = measuring.first
    if len(rows) < 2 or first is None:
        reasons = "; ".join(f"{m.name}: {m.reason}" for m in measuring.missing[:3])
        raise DyneqError(
            f"{len(rows)} of the {count} snapshots of {run.name!r} could be measured, and a drift needs two ({reasons})"
        )
    rates = rates_of(run.log, first.recipe, first.evaluation.sha256, run.snapshots[-1].step)
    ds = xr.concat(rows, "step", data_vars="all", coords="minimal", compat="override", join="outer")
    depth, state = _places(measuring.parts)
    ds = describe(_with_rates(ds, rates), residual_depth=depth, state=state, against=measuring.against)
    if measuring.horizon:
        ds["cosine"].attrs["horizon"] = measuring.horizon
    ds.attrs = {
        "run": run.name,
        "learning_rates": rates.source,
        "pinned_samples": first.evaluation.tokens.shape[0],
        "batch_sha256": first.evaluation.first(measuring.settings["batch"]).sha256,
        "params": json.dumps({p.probe.name: p.plain() for p in measuring.parts}),
    }
    refused = [f"{name} is left out: {reason}" for name, reason in measuring.refused.items()]
    notes = (*([rates.note] if rates.note else []), *measuring.notes, *refused)
    return Drift(ds, tuple(measuring.missing), measuring.measured, measuring.found, notes)


def _too_few(run: RunSnapshots) -> str:
    if run.snapshots:
        one = run.snapshots[0].label
        return (
            f"of the run {run.name!r} there is one snapshot to look at ({one}) and a drift needs two; ask for more of "
            f"its steps, keep more of them in training (dyneq train --set run.snapshot_every=50), or look at this one "
            "alone with `dyneq diagnose`"
        )
    reasons = "; ".join(f"{m.name}: {m.reason}" for m in run.missing[:3])
    return f"the run {run.name!r} has no usable snapshot ({reasons or 'none are left'}); name another run"


def _with_rates(ds: xr.Dataset, rates: Rates) -> xr.Dataset:
    """Add the cumulative learning rate, and what the log recorded on its way."""
    steps = [int(s) for s in ds["step"].values]
    ds = ds.assign(
        cumulative_lr=("step", [rates.cumulative(s) for s in steps]),
        lr=("step", [np.nan if s == 0 or (r := rates.rate(s)) is None else r for s in steps]),
    )
    between = sorted(s for s in rates.evaluations if steps[0] <= s <= steps[-1])
    if between:
        ds = ds.assign(
            log_loss=("update", [rates.evaluations[s] for s in between]),
            log_cumulative_lr=("update", [rates.cumulative(s) for s in between]),
        ).assign_coords(update=between)
    return ds


def _places(parts: Sequence[Part]) -> tuple[int | None, str]:
    """Return the depth of loss and residual, and where the spectrum is taken."""
    depth, state = None, ""
    for part in parts:
        values = part.params.model_dump()
        if part.probe.name == "residual":
            depth = int(values["depth"][-1])
        elif part.probe.name == "spectrum":
            state = "the root" if values["at"] == "root" else f"depth {values['depth'][-1]}"
    return depth, state
