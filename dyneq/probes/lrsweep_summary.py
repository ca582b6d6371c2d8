"""Reading a sweep over learning rates: sentences for people."""

import numpy as np
import xarray as xr

from dyneq.gradients.base import Mark
from dyneq.probes.base import Finding
from dyneq.probes.gradient_text import names
from dyneq.probes.lrsweep_measure import BATCH, HELDOUT, LEFT_OUT
from dyneq.probes.lrsweep_rules import EQUAL, Place, Verdict
from dyneq.probes.triangulate_rules import Ends

#: Relative departure from first order at the lowest rate above which it is said.
LINEAR = 0.1
#: Factor by which the median force residual changes before it is said.
MOVED = 5.0
_OPEN = (Verdict.UNDETERMINED, Verdict.FIRST, Verdict.REFUSED)


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the one-line summary, a sentence on every gradient, and reservations."""
    count = ds.sizes["estimator"]
    found = [_headline(ds)]
    found += [_gradient(ds, e) for e in range(count)]
    return [*found, *_edges(ds), *_unsettled(ds), *_first_order(ds), *_marks(ds), *_samples(ds)]


def change_text(end: Ends) -> str:
    """Return ``-0.161 [-0.180, -0.142]`` of a change of the loss."""
    if not np.isfinite(end.value):
        return "-"
    if not np.isfinite(end.low):
        return f"{_signed(end.value)} [?]"
    return f"{_signed(end.value)} [{_signed(end.low)}, {_signed(end.high)}]"


def verdict_of(ds: xr.Dataset, e: int) -> Verdict:
    """Return what is said of a gradient."""
    return Verdict(str(ds["verdict"].values[e]))


def best_ends(ds: xr.Dataset, e: int, part: str = BATCH) -> Ends:
    """Return the change at the best rate of a gradient."""
    return Ends.of(ds, "best_change", part=ds["part"].values.tolist().index(part), estimator=e)


def _signed(x: float) -> str:
    return f"{x:+.2e}" if x != 0 and (abs(x) < 1e-3 or abs(x) >= 1e3) else f"{x:+.4f}"


def _labels(ds: xr.Dataset, which: list[int]) -> str:
    return names([str(ds["estimator"].values[e]) for e in which])


def _headline(ds: xr.Dataset) -> Finding:
    """Return how far the first gradient descends and what becomes of the others."""
    first = str(ds["estimator"].values[0])
    n = int((ds["sample_role"].values == BATCH).sum())
    where = f"one step on {n} sample{'s' if n > 1 else ''}"
    if not np.isfinite(ds["best_lr"].values[0]):
        return Finding("undetermined", f"{where}: {first} gives no finite loss at any learning rate tried")
    end = best_ends(ds, 0)
    text = f"{where}: {first} changes the loss by {_signed(end.value)} nats at lr {ds['best_lr'].values[0]:g}"
    parts = []
    for kind, words in (
        (Verdict.FARTHER, "descends farther"),
        (Verdict.AS_FAR, "descends as far"),
        (Verdict.LEARNING_RATE, "descends as far at a learning rate of its own"),
        (Verdict.DIRECTION, "falls short at every learning rate: the deficit is direction, not learning rate"),
        (Verdict.UPHILL, "points uphill"),
        (Verdict.UNDETERMINED, "undetermined"),
        (Verdict.REFUSED, "refused"),
    ):
        which = [e for e in range(1, ds.sizes["estimator"]) if verdict_of(ds, e) is kind]
        if which:
            parts.append(f"{_labels(ds, which)} {_plural(words, len(which))}")
    said = [verdict_of(ds, e) for e in range(1, ds.sizes["estimator"])]
    vague = bool(said) and all(v in _OPEN for v in said)
    return Finding("undetermined" if vague else "fact", "; ".join([text, *parts]))


def _plural(words: str, count: int) -> str:
    verb, space, rest = words.partition(" ")
    if count > 1 and verb in ("descends", "falls", "points"):
        verb = verb[:-1]
        rest = rest.replace("of its own", "of their own").replace("the deficit is", "their deficit is")
    return verb + space + rest


def _gradient(ds: xr.Dataset, e: int) -> Finding:
    """Return what a step along one gradient does."""
    label = str(ds["estimator"].values[e])
    if ds["refusal"].values[e]:
        return Finding("warning", f"{label}: refused: {ds['refusal'].values[e]}")
    rate, verdict = float(ds["best_lr"].values[e]), verdict_of(ds, e)
    if not np.isfinite(rate):
        return Finding("warning", f"{label}: no finite loss at any learning rate tried; try lower ones")
    text = f"{label}: best at lr {rate:g}, loss {change_text(best_ends(ds, e))} nats"
    if HELDOUT in ds["part"].values:
        text += f", {change_text(best_ends(ds, e, HELDOUT))} on samples it has not seen{_unseen(ds, e)}"
    slope, promise = float(ds["slope"].values[e]), float(ds["promise"].values[e])
    if promise < 0 and np.isfinite(slope):
        kept = slope / promise
        said = "all" if abs(kept - 1) < 5e-4 else f"{100 * kept:.3g} %"
        text += f"; to first order it keeps {said} of the descent its own norm promises"
    text += _residual(ds, e)
    first = str(ds["estimator"].values[0])
    lag = Ends.of(ds, "lag", estimator=e)
    text += {
        Verdict.FIRST: "",
        Verdict.UPHILL: "; its exact slope is positive, so no learning rate is small enough: it points uphill",
        Verdict.DIRECTION: f"; it falls short of {first} by {change_text(lag)} at the best rate of each, and by "
        "more than a finer grid would close: the deficit is direction, not learning rate",
        Verdict.AS_FAR: f"; it descends as far as {first} to within {100 * EQUAL:g} % ({change_text(lag)})",
        Verdict.LEARNING_RATE: f"; it descends as far as {first}, but at another learning rate: its scale differs, "
        "not its direction",
        Verdict.FARTHER: f"; it descends farther than {first} ({change_text(lag)})",
        Verdict.UNDETERMINED: (
            f"; it falls short of {first}, whether for want of direction or of learning rate is undetermined"
            if lag.low > 0
            else f"; whether it descends as far as {first} is undetermined"
        )
        + f" ({change_text(lag)} at the best rate of each)",
        Verdict.REFUSED: "",
    }[verdict]
    return Finding("undetermined" if verdict is Verdict.UNDETERMINED else "fact", text)


def _unseen(ds: xr.Dataset, e: int) -> str:
    """Return where the held-out samples' loss is lowest, if at another rate than the batch's."""
    part = ds["part"].values.tolist().index(HELDOUT)
    mean = ds["change"].values[part, e]
    i = int(np.where(np.isfinite(mean), mean, np.inf).argmin())
    if ds["lr"].values[i] == ds["best_lr"].values[e]:
        return ""
    end = Ends.of(ds, "change", part=part, estimator=e, lr=i)
    return f" (lowest at lr {ds['lr'].values[i]:g}: {change_text(end)})"


def _residual(ds: xr.Dataset, e: int) -> str:
    """Return what the step at the best rate does to the force residual, if that is much."""
    used = ds["sample_role"].values == BATCH
    best = int(np.flatnonzero(ds["lr"].values == ds["best_lr"].values[e])[0])
    before, after = np.median(ds["base_residual"].values[used]), np.median(ds["residual"].values[e, best, used])
    if not before > 0 or 1 / MOVED < after / before < MOVED:
        return ""
    return f"; the batch's median force residual goes from {before:.1e} to {after:.1e}"


def _edges(ds: xr.Dataset) -> list[Finding]:
    """Return which gradients have their best rate at an end of the grid."""
    found = []
    place = ds["best_place"].values
    for kind, words, advice in (
        (Place.LOWEST, "at the lowest rate tried", "try lower ones"),
        (Place.HIGHEST, "at the highest rate tried", "try higher ones"),
    ):
        which = [e for e in range(len(place)) if place[e] == kind.value and not ds["refusal"].values[e]]
        if which:
            text = f"{_labels(ds, which)}: best {words}, so it may be better still beyond; {advice} (--lr)"
            found.append(Finding("warning", text))
    if Place.SINGLE.value in place:
        text = "a single learning rate was tried, so which is best, or whether direction is to blame, cannot be told"
        found.append(Finding("warning", f"{text}; give several --lr"))
    return found


def _unsettled(ds: xr.Dataset) -> list[Finding]:
    """Return at which rates relaxations no longer settle or blow up, and whether the best one is among them."""
    found = []
    lr = ds["lr"].values
    for e in range(ds.sizes["estimator"]):
        label = str(ds["estimator"].values[e])
        blown, lost = (ds[n].isel(estimator=e).values for n in ("blown_up", "unsettled"))
        parts = []
        for counts, one, more in (
            (blown, "sample diverges after the step", "samples diverge after the step"),
            (lost, "sample no longer settles", "samples no longer settle"),
        ):
            at, most = np.flatnonzero(counts), int(counts.max(initial=0))
            if len(at):
                upto = "up to " if most > 1 and len(at) > 1 else ""
                parts.append(f"{upto}{most} {one if most == 1 else more} (at lr {', '.join(f'{x:g}' for x in lr[at])})")
        if not parts:
            continue
        best = np.flatnonzero(lr == ds["best_lr"].values[e])
        hit = bool(len(best)) and bool(lost[best[0]])
        note = "; its best rate is among these: the loss is that of a state still moving" if hit else ""
        found.append(Finding("warning", f"{label}: {' and '.join(parts)}{note}"))
    return found


def _first_order(ds: xr.Dataset) -> list[Finding]:
    """Return for which gradients the lowest rate is not yet first order."""
    far = []
    change = ds["change"].sel(part=BATCH).values[:, 0]
    for e, foretold in enumerate(ds["foretold"].values[:, 0]):
        if np.isfinite(foretold) and foretold and not abs(change[e] / foretold - 1) <= LINEAR:
            far.append(f"{ds['estimator'].values[e]} ({_signed(change[e])} instead of {_signed(foretold)})")
    if not far:
        return []
    text = f"{names(far)}: at the lowest rate, lr {ds['lr'].values[0]:g}, the change is not that of first order"
    return [Finding("fact", f"{text}, so its slope is not seen in this grid; curvature sets in earlier")]


def _marks(ds: xr.Dataset) -> list[Finding]:
    """Return a warning for every reservation about the gradients."""
    found = []
    counts = ds["marked"].values.sum(2)
    n = int((ds["sample_role"].values == BATCH).sum())
    for i, mark in enumerate(Mark):
        which = np.flatnonzero(counts[i])
        if len(which):
            listed = names([f"{ds['estimator'].values[e]} ({counts[i, e]} of {n} samples)" for e in which])
            found.append(Finding("warning", f"{listed}: {mark.value}"))
    return found


def _samples(ds: xr.Dataset) -> list[Finding]:
    """Return which samples were left out, how many had not settled before, and whether intervals can be given."""
    found = []
    role = ds["sample_role"].values
    out = np.flatnonzero(role == LEFT_OUT)
    if len(out):
        listed = ", ".join(map(str, out[:8])) + (", ..." if len(out) > 8 else "")
        text = f"left out: sample{'s' if len(out) > 1 else ''} {listed}, whose relaxation diverged before any step"
        found.append(Finding("warning", f"{text}; every number is about the others"))
    used = role != LEFT_OUT
    moving = int((ds["base_residual"].values[used] > ds.attrs["tol"]).sum())
    if moving:
        text = f"{moving} of {int(used.sum())} samples had a force residual above {ds.attrs['tol']:g} before any step"
        advice = f"losses are those after {ds.attrs['depth']} steps, wherever the state has got to"
        found.append(Finding("warning", f"{text}: {advice}; see dyneq residual"))
    if int((role == BATCH).sum()) < 3:
        text = "the batch is too small for intervals that mean anything"
        found.append(Finding("warning", f"{text}; use more samples (--batch, --samples)"))
    return found
