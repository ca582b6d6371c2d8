"""Reading a decomposition: sentences for people."""

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding
from dyneq.probes.decompose_rules import SMALL, Reading, bounds_of
from dyneq.probes.gradient_text import between, mark_findings, names, number
from dyneq.probes.triangulate_rules import Ends

#: Share of a penalty's squared norm that may be the noise of random vectors before it is said.
NOISE = 0.2
#: Share below which it is not written out.
LEAST = 1e-4


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the one-line summary, a sentence on every penalty, and reservations."""
    count = ds.sizes["penalty"]
    found = [_headline(ds)]
    found += [_penalty(ds, p) for p in range(count)]
    found += _parameters(ds)
    return [*found, *_noise(ds), *mark_findings(ds, [0]), *_samples(ds)]


def reading_of(ds: xr.Dataset, p: int) -> Reading:
    """Return what is said of a penalty."""
    return Reading(str(ds["reading"].values[p]))


def percent(end: Ends) -> str:
    """Return ``92 % [88 %, 96 %]`` of a share."""
    if not np.isfinite(end.value):
        return "-"
    if not np.isfinite(end.low):
        return f"{100 * end.value:.3g} % [?]"
    if max(abs(end.low), abs(end.high)) < LEAST:
        return f"below {100 * LEAST:g} %"
    return f"{100 * end.value:.3g} % [{100 * end.low:.3g} %, {100 * end.high:.3g} %]"


def _name(ds: xr.Dataset, p: int) -> str:
    return f"{ds['penalty'].values[p]}:{float(ds['weight'].values[p]):g}"


def _groups(ds: xr.Dataset, p: int) -> list[tuple[str, Ends]]:
    """Return the groups in which a penalty exceeds the task, the worst first."""
    ratios = [Ends.of(ds, "ratio", penalty=p, group=g) for g in range(1, ds.sizes["group"])]
    return bounds_of(ratios, [str(g) for g in ds["group"].values[1:]])


def _headline(ds: xr.Dataset) -> Finding:
    """Return who drives the update."""
    label = str(ds["estimator"].values[0])
    parts = []
    for p in range(ds.sizes["penalty"]):
        share, ratio = (Ends.of(ds, name, penalty=p, group=0) for name in ("share", "ratio"))
        over = _groups(ds, p)
        worst = f" drives {over[0][0]} {number(over[0][1].value)} times over" if over else ""
        parts.append(
            f"{_name(ds, p)} "
            + {
                Reading.TAKES_OVER: f"takes over the update: {100 * share.value:.3g} % of it is the penalty's",
                Reading.OVERDRIVES: worst.strip(),
                Reading.NOTICEABLE: f"is noticeable: {100 * share.value:.3g} % of the update",
                Reading.HARMLESS: f"is harmless (k = {number(ratio.value)})",
                Reading.SILENT: "is silent: its gradient is 0",
                Reading.UNDETERMINED: f"is undetermined (k = {between(ratio)})",
            }[reading_of(ds, p)]
        )
    vague = all(reading_of(ds, p) is Reading.UNDETERMINED for p in range(ds.sizes["penalty"]))
    cosine = between(Ends.of(ds, "task_cosine", group=0))
    text = f"beside {label}: {'; '.join(parts)}; cosine of task and update {cosine}"
    return Finding("undetermined" if vague else "fact", text)


def _penalty(ds: xr.Dataset, p: int) -> Finding:
    """Return what one penalty does, and at which weight it would take over."""
    at = {"penalty": p, "group": 0}
    cosine, ratio, share, weight = (Ends.of(ds, n, **at) for n in ("cosine", "ratio", "share", "equal_weight"))
    reading = reading_of(ds, p)
    if reading is Reading.SILENT:
        return Finding("fact", f"{_name(ds, p)}: its gradient is 0 at these states, so it does nothing at any weight")
    words = {
        Reading.TAKES_OVER: f"it takes over the update, {percent(share)} of its squared norm: lower the weight, freeze "
        "it, or cap what its controller may do",
        Reading.OVERDRIVES: "its norm is below the task's, but not in every group",
        Reading.NOTICEABLE: f"it makes {percent(share)} of the update's squared norm: watch its share over the run",
        Reading.HARMLESS: f"harmless: below {SMALL:g} of the task's norm, it cannot turn the update by more than "
        f"{np.degrees(np.arcsin(SMALL)):.0f} degrees",
        Reading.UNDETERMINED: "whether it matters is undetermined: the interval is too wide, ask for more --batches",
    }[reading]
    text = f"{_name(ds, p)}: k = norm(w g_penalty)/norm(g_task) = {between(ratio)}, cosine {between(cosine)}: {words}"
    text += f"; its norm reaches the task's at weight {between(weight)}"
    over = _groups(ds, p)
    if over:
        text += f"; it drives {names([f'{g} {between(k)} times over' for g, k in over])}"
    against = [
        str(ds["group"].values[g])
        for g in range(1, ds.sizes["group"])
        if Ends.of(ds, "cosine", penalty=p, group=g).high < 0
    ]
    if cosine.high < 0:
        text += "; it pulls against the task"
    elif against:
        text += f"; it pulls against the task in {names(against)}"
    return Finding("undetermined" if reading is Reading.UNDETERMINED else "fact", text)


def _parameters(ds: xr.Dataset) -> list[Finding]:
    """Return the single parameters that penalties drive more than the task does, beyond what their groups say."""
    found = []
    of = ds["parameter_group"].values
    for p in range(ds.sizes["penalty"]):
        groups = {g for g, _ in _groups(ds, p)}
        ends = [Ends.of(ds, "parameter_ratio", penalty=p, parameter=i) for i in range(ds.sizes["parameter"])]
        over = sorted(
            (i for i, k in enumerate(ends) if k.low > 1 and of[i] not in groups), key=lambda i: -ends[i].value
        )
        if over:
            listed = names([f"{ds['parameter'].values[i]} ({between(ends[i])})" for i in over[:4]])
            more = f" and {len(over) - 4} more" if len(over) > 4 else ""
            text = f"{_name(ds, p)} exceeds the task in single parameters: {listed}{more}"
            found.append(Finding("fact", f"{text}, which are too few to drive their groups"))
    return found


def _noise(ds: xr.Dataset) -> list[Finding]:
    """Return which penalties are estimated from random vectors so few that their noise counts."""
    found = []
    for p in range(ds.sizes["penalty"]):
        share = float(ds["draw_noise"].values[p, 0])
        if share > NOISE:
            many = int(ds["draws"].values[p])
            text = f"{_name(ds, p)}: {100 * share:.2g} % of its squared norm is the noise of {many} random vectors"
            found.append(Finding("warning", f"{text}, which makes its norm look larger; ask for more --draws"))
    return found


def _samples(ds: xr.Dataset) -> list[Finding]:
    """Return which samples were left out, and whether there are enough batches for intervals."""
    found = []
    gone = np.flatnonzero(ds["free_status"].values == "diverged")
    if len(gone):
        listed = ", ".join(map(str, gone[:8])) + (", ..." if len(gone) > 8 else "")
        text = f"left out: sample{'s' if len(gone) > 1 else ''} {listed}, whose relaxation diverged"
        found.append(Finding("warning", f"{text} within {ds.attrs['t1']} steps; every number is about the others"))
    rest = int((ds["batch_of_sample"].values < 0).sum()) - len(gone)
    if rest:
        text = f"{rest} sample{'s' if rest > 1 else ''} left over after dealing batches of equal size are not used"
        found.append(Finding("fact", text))
    if ds.sizes["batch"] < 3:
        text = "one batch gives no interval" if ds.sizes["batch"] == 1 else "two batches give hardly any interval"
        found.append(Finding("warning", f"{text}, so next to nothing can be said; ask for more --batches (4 or more)"))
    return found
