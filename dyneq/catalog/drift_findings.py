"""What a reader should take away from a drift: how far the run came, when it turned, and what came first."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from dyneq.catalog.drift_moved import moved
from dyneq.catalog.drift_turns import FAITHFUL, Turn, conditions, turn, unknown_pairs, unordered
from dyneq.probes.base import Finding
from dyneq.probes.decompose_summary import NOISE


def findings(ds: xr.Dataset, notes: Sequence[str] = ()) -> list[Finding]:
    """Return the findings of one run, the first of them its summary.

    Args:
        ds: The series of one run.
        notes: What a reader has to know besides.
    """
    return [_summary(ds), *_turns(ds), *moved(ds), *_doubts(ds), *(Finding("warning", note) for note in notes)]


def _summary(ds: xr.Dataset) -> Finding:
    steps = [int(s) for s in ds["step"].values]
    text = f"{ds.attrs['run']}: {len(steps)} snapshots from step {steps[0]} to {steps[-1]}"
    for name, what in (("validation_loss", "validation loss"), ("recorded_loss", "recorded validation loss")):
        values = ds[name].values if name in ds else np.array([np.nan])
        if np.isfinite(values).any():
            known = np.flatnonzero(np.isfinite(values))
            best = int(np.nanargmin(values))
            text += (
                f"; {what} {values[known[0]]:.4f} to {values[known[-1]]:.4f} (best {values[best]:.4f} at {steps[best]})"
            )
            break
    counts = ds["unsettled"].values if "unsettled" in ds else np.zeros(0)
    counts = counts[np.isfinite(counts)]
    if len(counts):
        most = f"at most {counts.max():.0f}" if counts.max() > 0 else "none"
        text += f"; {most} of {ds.sizes['sample']} samples unsettled at any of them"
    return Finding("fact", text)


def turns_of(ds: xr.Dataset) -> list[Turn]:
    """Return the turns of one run, in the order of the snapshots between which they lie."""
    steps = [int(s) for s in ds["step"].values]
    found = [turn(steps, condition) for condition in conditions(ds)]
    return sorted((t for t in found if t is not None), key=lambda t: (-1 if t.after is None else t.after, t.by))


def _turns(ds: xr.Dataset) -> list[Finding]:
    turns = turns_of(ds)
    watched = conditions(ds)
    if not turns:
        never = [c.text for c in watched if all(a.value == "no" for a in c.answers)]
        text = "nothing is known to have turned" if watched else "nothing was measured that could turn"
        if watched and len(never) == len(watched):
            text = "nothing turned: at no snapshot is any of these known to hold: " + "; ".join(never)
        return [Finding("fact" if len(never) == len(watched) else "undetermined", text)]
    found = [Finding("warning", f"{t.text}: {t.where}") for t in turns]
    if len(turns) > 1:
        found += _order(unordered(turns))
    return found


def _order(groups: Sequence[Sequence[Turn]]) -> list[Finding]:
    """Return what came before what, and what the snapshots are too coarse to order."""
    found = [
        Finding(
            "fact",
            f"first {_of(earlier)}; then {_of(later)}: by step {_reached(earlier)} the former held, and the "
            "latter did not yet",
        )
        for earlier, later in pairwise(groups)
    ]
    for group in groups:
        pairs = unknown_pairs(group)
        if not pairs:
            continue
        members = [t for t in group if any(t in pair for pair in pairs)]
        listed = "; ".join(f"{t.text} ({t.where})" for t in members)
        found.append(
            Finding(
                "undetermined",
                f"the snapshots are too coarse to say which came first: {listed}; {_cure(members)}",
            )
        )
        found += [
            Finding("fact", f"that {a.text} came before that {b.text}") for a in group for b in group if a.precedes(b)
        ]
    return found


def _cure(turns: Sequence[Turn]) -> str:
    begins, end = [t.after for t in turns], max(t.by for t in turns)
    known = [b for b in begins if b is not None]
    if len(known) < len(begins):
        return f"snapshots before step {min(t.by for t in turns)} would tell"
    return f"snapshots between steps {min(known)} and {end} would tell (dyneq train --set run.snapshots=[...])"


def _reached(group: Sequence[Turn]) -> int:
    return max(t.by for t in group)


def _of(group: Sequence[Turn]) -> str:
    return " and ".join(t.text for t in group)


def _doubts(ds: xr.Dataset) -> list[Finding]:
    """Return what makes numbers of the table less than they seem."""
    found = []
    if "samples_without_loss" in ds and (lost := np.nansum(ds["samples_without_loss"].values)):
        at = ds["step"].values[ds["samples_without_loss"].values > 0]
        text = (
            f"{lost:.0f} losses are not finite, at the steps {', '.join(map(str, at[:6]))}: the mean there is over the "
            "other samples; comparisons use the samples that are finite everywhere"
        )
        found.append(Finding("warning", text))
    horizon = str(ds["cosine"].attrs.get("horizon", "")) if "cosine" in ds else ""
    if horizon:
        low = ds["cosine_interval"].sel(estimator=horizon, bound="low").values
        if (open_at := ds["step"].values[low < FAITHFUL]).size:
            text = (
                f"the reference {ds['cosine'].attrs['reference']} is not known to be settled at the steps "
                f"{', '.join(map(str, open_at[:6]))} (cosine with {horizon} not above {FAITHFUL:g}): a low cosine "
                "there need not be the estimator's fault"
            )
            found.append(Finding("warning", text))
    found += _followed(ds)
    if "no_fixed_point" in ds and np.nansum(ds["no_fixed_point"].values):
        worst = int(np.nanargmax(ds["no_fixed_point"].values))
        text = (
            f"some samples have no fixed point to take a spectrum at (most at step {ds['step'].values[worst]}: "
            f"{ds['no_fixed_point'].values[worst]:.0f}); the abscissa is that of the others, and stability of all is "
            "not claimed there"
        )
        found.append(Finding("warning", text))
    return found


def _followed(ds: xr.Dataset) -> list[Finding]:
    """Return what makes numbers of decompose and lrsweep less than they seem."""
    found = []
    if "penalty_noise" in ds:
        noise = ds["penalty_noise"].transpose("penalty", "step").values
        for name, share in zip(ds["penalty"].values, noise, strict=True):
            if (noisy := ds["step"].values[share > NOISE]).size:
                text = (
                    f"{name}: up to {100 * np.nanmax(share):.2g} % of its squared norm is the noise of random vectors "
                    f"(above {100 * NOISE:g} % at the steps {_listed(noisy)}): its k there is too large and its cosine "
                    "too near 0; ask for more (--follow decompose:draws=16)"
                )
                found.append(Finding("warning", text))
    if "step_inside" in ds:
        at_end: dict[str, list[str]] = {}
        for name, inside in zip(
            ds["gradient"].values, ds["step_inside"].transpose("gradient", "step").values, strict=True
        ):
            if (ends := ds["step"].values[inside == 0]).size:
                at_end.setdefault(_listed(ends), []).append(str(name))
        for steps, names in at_end.items():
            text = (
                f"the best rate of one step along {', '.join(names)} is at an end of those tried at the steps {steps}: "
                "it may be better still beyond; give other rates (--follow lrsweep:lr=[0.01,0.1,1,10,100])"
            )
            found.append(Finding("warning", text))
    return found


def _listed(steps: np.ndarray) -> str:
    return ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")


def comparison(ds: xr.Dataset, reasons: Sequence[str] = ()) -> list[Finding]:
    """Return how the runs stand at equal cumulative learning rate.

    Args:
        ds: Several runs along ``run``.
        reasons: Why some are not compared.
    """
    found = [Finding("warning", reason) for reason in reasons]
    if "difference" not in ds:
        return [Finding("undetermined", "no two runs can be compared at equal cumulative learning rate"), *found]
    names = [str(n) for n in ds["run"].values]
    rate = ds["at_cumulative_lr"].values
    compared = [i for i in range(len(names)) if np.isfinite(ds["at_loss"].values[i]).any()]
    return found + [_pair(ds, names, compared[0], row, rate) for row in compared[1:]]


def _pair(ds: xr.Dataset, names: Sequence[str], first: int, row: int, rate: np.ndarray) -> Finding:
    """Return how one run stands against the first, at the end of their common range and over it."""
    apart, bar = ds["difference"].values[row], ds["difference_error"].values[row]
    at = [f"{names[i]} step {ds['at_step'].values[i, -1]:.0f}" for i in (first, row)]
    place = f"at equal cumulative learning rate {rate[-1]:.4g} ({', '.join(at)})"
    size = f"{names[row]} minus {names[first]} is {apart[-1]:+.4f} +- {bar[-1]:.4f} nats per token"
    sign = np.where(apart > bar, 1, np.where(apart < -bar, -1, 0))
    if not sign[-1]:
        return Finding("undetermined", f"{place} it is open which of the two has the lower loss: {size}")
    better, worse = (row, first) if sign[-1] < 0 else (first, row)
    same, opposite = (int((sign[:-1] == s).sum()) for s in (sign[-1], -sign[-1]))
    course = f"at the {len(rate) - 1} earlier points in common: {same} times the same, {opposite} times the other way"
    return Finding("fact", f"{place} {names[better]} has a lower loss than {names[worse]}: {size}; {course}")
