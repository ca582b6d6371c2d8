"""Reading a triangulation: sentences for people."""

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding
from dyneq.probes.gradient_dataset import ALL
from dyneq.probes.gradient_text import between, cosine_text, mark_findings, names, sample_findings
from dyneq.probes.triangulate_rules import Ends, Reading, Settled, ceilings
from dyneq.probes.triangulate_without import arms_words

#: Worst first: the order in which the groups of an estimator are told.
_ORDER = (
    Reading.NOTHING,
    Reading.BIASED,
    Reading.OFF,
    Reading.NOISY,
    Reading.AMBIGUOUS,
    Reading.UNDETERMINED,
    Reading.WRONG_SCALE,
    Reading.SCALE_OPEN,
    Reading.FAITHFUL,
)
_SHORT = {
    Reading.FAITHFUL: "faithful",
    Reading.WRONG_SCALE: "of wrong scale",
    Reading.SCALE_OPEN: "of undetermined scale",
    Reading.BIASED: "biased",
    Reading.NOISY: "noisy",
    Reading.OFF: "off",
    Reading.AMBIGUOUS: "within the ambiguity of the reference",
    Reading.UNDETERMINED: "undetermined",
    Reading.NOTHING: "without a gradient",
    Reading.REFUSED: "refused",
}


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the one-line summary, the state of the references, and a reading of every estimator."""
    judged = [e for e in range(ds.sizes["estimator"]) if ds["role"].values[e] == "estimator"]
    shown = [e for e in range(ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    found = [_headline(ds, judged)]
    for r in range(ds.sizes["reference"]):
        found += _reference(ds, r)
    found += [_estimator(ds, e) for e in judged]
    return [*found, *_scales(ds), *mark_findings(ds, shown), *sample_findings(ds)]


def _headline(ds: xr.Dataset, judged: list[int]) -> Finding:
    """Return which estimators are what, all parameters together."""
    parts = []
    reading = ds["reading"].values[0]
    for kind in reversed((Reading.REFUSED, *_ORDER)):
        which = [str(ds["estimator"].values[e]) for e in judged if _overall(ds, reading[e]) == kind]
        if which:
            parts.append(f"{names(which)} {_SHORT[kind]}")
    batches, size = ds.sizes["batch"], ds.attrs["batch_size"]
    many = f"{batches} batch{'es' if batches > 1 else ''} of {size} sample{'s' if size > 1 else ''}"
    text = f"against {ds['reference'].values[0]} on {many}: {'; '.join(parts) or 'nothing to compare'}"
    clear = {Reading.UNDETERMINED, Reading.AMBIGUOUS}
    vague = judged and all(_overall(ds, reading[e]) in clear for e in judged)
    return Finding("undetermined" if vague else "fact", text)


def _overall(ds: xr.Dataset, reading: np.ndarray) -> Reading:
    """Return the reading over all parameters together."""
    return Reading(reading[ds["group"].values.tolist().index(ALL)])


def _groups(ds: xr.Dataset) -> list[int]:
    """Return the groups that are told apart: all but the one of all parameters, unless it is the only one."""
    own = [g for g in range(ds.sizes["group"]) if ds["group"].values[g] != ALL]
    return own if len(own) > 1 else [0]


def _reference(ds: xr.Dataset, r: int) -> list[Finding]:
    """Return whether a reference is settled."""
    label = str(ds["reference"].values[r])
    which, bounds = ceilings(ds, r)
    overall = bounds[0]
    if overall is None:
        if ds.sizes["reference"] > 1 or r:
            return []
        text = f"the reference {label} was compared with nothing, so whether it is settled is not known"
        return [Finding("warning", f"{text}; leave --horizon to its default, or give a second --ref")]
    state = Settled(ds["settled"].values[r, 0])
    other = str(ds["estimator"].values[which[0]])
    value = f"cosine {cosine_text(overall)} with {other}"
    own = ds["role"].values[which[0]] == "horizon"
    depths = [int(ds["depth"].values[e]) for e in (which[0], ds["estimator"].values.tolist().index(label))]
    where = f"between {depths[0]} and {depths[1]} steps" if own else f"between {other} and {label}"
    ambiguous = [g for g in _groups(ds) if ds["settled"].values[r, g] != Settled.SETTLED]
    low = [str(ds["group"].values[g]) for g in ambiguous]
    if state is Settled.SETTLED and not ambiguous:
        return [Finding("fact", f"the reference {label} is settled: {value}; no estimator can be held to more")]
    part = f" in {names(low)}" if low and len(low) < len(_groups(ds)) else ""
    advice = f"compare with a deeper reference (--ref bptt{2 * max(depths)}), or see which samples settle (diagnose)"
    if any(ds["settled"].values[r, g] == Settled.AMBIGUOUS for g in [*_groups(ds), 0]):
        text = f"reference itself ambiguous {where}{part}: {value} over all parameters"
        return [Finding("warning", f"{text}; no estimator can be held to more than that: {advice}")]
    text = f"whether the reference is settled {where} is undetermined{part}: {value} over all parameters"
    return [Finding("undetermined", f"{text}; ask for more --batches")]


def _estimator(ds: xr.Dataset, e: int) -> Finding:
    """Return the reading of one estimator against the first reference, groups told apart where they differ."""
    label, refusal = str(ds["estimator"].values[e]), str(ds["refusal"].values[e])
    if refusal:
        return Finding("warning", f"{label}: refused: {refusal}")
    reading = [Reading(x) for x in ds["reading"].values[0, e]]
    groups = _groups(ds)
    parts = []
    kinds = [k for k in _ORDER if any(reading[g] is k for g in groups)]
    for k in kinds:
        where = [g for g in groups if reading[g] is k]
        if len(kinds) == 1:
            place = ""
        elif k is kinds[-1] and len(where) > 2:
            place = " elsewhere"
        else:
            place = f" in {names([str(ds['group'].values[g]) for g in where])}"
        parts.append(_words(ds, e, k, place, 0 if len(kinds) == 1 else where[0], len(where) == 1 or len(kinds) == 1))
    cosine, ratio = (Ends.of(ds, n, reference=0, estimator=e, group=0) for n in ("cosine", "norm_ratio"))
    text = f"{label}: {'; '.join(parts)}"
    if len(kinds) > 1:
        text += f"; over all parameters it is {_SHORT[reading[0]]}"
    text += f" (cosine {cosine_text(cosine)}, k {between(ratio)})" if np.isfinite(cosine.value) else ""
    text += arms_words(ds, e)
    vague = set(kinds) <= {Reading.UNDETERMINED, Reading.AMBIGUOUS, Reading.NOTHING}
    return Finding("undetermined" if vague else "fact", text)


def _words(ds: xr.Dataset, e: int, kind: Reading, place: str, group: int, single: bool) -> str:
    """Return a reading in words; numbers where they belong to one group."""
    limit, ratio = (Ends.of(ds, n, reference=0, estimator=e, group=group) for n in ("limit_cosine", "norm_ratio"))
    tends = f" (cosine tends to {cosine_text(limit)})" if single and np.isfinite(limit.value) else ""
    k = f" (k = {between(ratio)})" if single else ""
    return {
        Reading.FAITHFUL: f"faithful{place}",
        Reading.WRONG_SCALE: f"wrong scale{k}, right direction{place}",
        Reading.SCALE_OPEN: f"right direction{place}, but whether its scale is right is undetermined{k}",
        Reading.BIASED: f"biased{place}: averaging will not help{tends}",
        Reading.NOISY: f"noisy{place}: averaging over batches helps{tends}",
        Reading.OFF: f"not faithful{place}, whether by bias or by noise is undetermined (see dyneq navg)",
        Reading.AMBIGUOUS: f"no farther{place} from the reference than the reference is ambiguous",
        Reading.UNDETERMINED: f"undetermined{place}: the interval is too wide, ask for more --batches",
        Reading.NOTHING: f"gives no direction{place}: its gradient, or the reference's, is zero or not finite",
        Reading.REFUSED: "refused",
    }[kind]


def _scales(ds: xr.Dataset) -> list[Finding]:
    """Return the losses of estimators that were taken at another state than the reference."""
    depth, role = ds["depth"].values, ds["role"].values
    reference = depth[0]
    other = [
        str(ds["estimator"].values[e]) for e in range(len(depth)) if role[e] == "estimator" and depth[e] != reference
    ]
    if not other:
        return []
    text = f"{names(other)} relax{'es' if len(other) == 1 else ''} to another depth than the reference ({reference:g})"
    return [Finding("warning", f"{text}: what differs may be the state, not the estimator")]
