"""Reading what averaging does: sentences, tables and plain values."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding
from dyneq.probes.gradient_text import (
    between,
    cosine_text,
    legend,
    mark_findings,
    marks_text,
    names,
    number,
    plus_minus,
    sample_findings,
    table,
)
from dyneq.probes.triangulate_json import estimator_entry, interval
from dyneq.probes.triangulate_rules import Ends, Reading, read


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the one-line summary, and for every estimator its bias and what averaging can bring."""
    judged = _judged(ds)
    shown = [e for e in judged if not ds["refusal"].values[e]]
    own = Ends.of(ds, "self_cosine", estimator=0, group=0)
    found = [_headline(ds, judged), *(_estimator(ds, e) for e in judged)]
    reference = str(ds["reference"].values[0])
    if np.isfinite(own.value):
        text = f"of {reference} itself a share of {between(own)} is common to batches of {ds.attrs['batch_size']}"
        rest = "an error whose share of bias is as large averages away no faster than the gradient itself"
        found.append(Finding("fact", f"{text} (their mean cosine with each other): {rest}"))
    return [*found, *mark_findings(ds, shown), *sample_findings(ds)]


def _judged(ds: xr.Dataset) -> list[int]:
    return [e for e in range(ds.sizes["estimator"]) if ds["role"].values[e] == "estimator"]


def _reading(ds: xr.Dataset, e: int) -> Reading:
    if ds["refusal"].values[e]:
        return Reading.REFUSED
    at = {"reference": 0, "estimator": e, "group": 0}
    cosine, limit, ratio = (Ends.of(ds, n, **at) for n in ("cosine", "limit_cosine", "norm_ratio"))
    return read(cosine, limit, ratio, None, float(ds.attrs["faithful"]))


_HEADLINE = {
    Reading.FAITHFUL: "{} faithful already in one batch",
    Reading.WRONG_SCALE: "{} of the right direction already in one batch, but of another scale",
    Reading.SCALE_OPEN: "{} of the right direction already in one batch",
    Reading.BIASED: "{} biased, so that averaging will not help",
    Reading.NOISY: "{} noisy, so that averaging helps",
    Reading.OFF: "{} not faithful, whether by bias or by noise is undetermined",
    Reading.UNDETERMINED: "{} undetermined",
    Reading.NOTHING: "{} without a gradient",
    Reading.REFUSED: "{} refused",
}


def _headline(ds: xr.Dataset, judged: list[int]) -> Finding:
    kinds = {e: _reading(ds, e) for e in judged}
    parts = []
    for kind, words in _HEADLINE.items():
        which = [str(ds["estimator"].values[e]) for e in judged if kinds[e] is kind]
        if which:
            parts.append(words.format(names(which)))
    text = f"over 1 to {ds.sizes['batch']} batches of {ds.attrs['batch_size']} against {ds['reference'].values[0]}"
    clear = any(k not in (Reading.OFF, Reading.UNDETERMINED, Reading.NOTHING) for k in kinds.values())
    return Finding("fact" if clear else "undetermined", f"{text}: {'; '.join(parts) or 'nothing to compare'}")


def _estimator(ds: xr.Dataset, e: int) -> Finding:
    """Return one estimator's bias and limit in words."""
    label, refusal = str(ds["estimator"].values[e]), str(ds["refusal"].values[e])
    if refusal:
        return Finding("warning", f"{label}: refused: {refusal}")
    at = {"reference": 0, "estimator": e, "group": 0}
    share, limit, cosine = (Ends.of(ds, n, **at) for n in ("bias_share", "limit_cosine", "cosine"))
    if not np.isfinite(cosine.value):
        text = "gives no direction: its gradient, or the reference's, is zero or not finite"
        return Finding("undetermined", f"{label}: {text}")
    if not np.isfinite(share.value):
        known = ds.sizes["batch"] > 1
        text = "its error is not above rounding, there is nothing to average" if known else "one batch tells nothing"
        return Finding("fact" if known else "undetermined", f"{label}: {text}")
    last = Ends.of(ds, "same_cosine", reference=0, estimator=e, count=ds.sizes["count"] - 1, group=0)
    bias = f"{_percent(share.value)} of the squared error of one batch is bias {_percents(share)}"
    kind = _reading(ds, e)
    if np.isfinite(limit.low):
        best = f"averaging over ever more batches brings the cosine to {cosine_text(limit)}"
        if kind in (Reading.OFF, Reading.UNDETERMINED):
            best += ", an interval that leaves it open: use more samples"
    else:
        best = (
            "what averaging over ever more batches would bring is not known, because the expected gradient cannot be "
            "told from 0 with these batches: use more samples"
        )
    counted = f"from {cosine_text(cosine)} in one batch to {cosine_text(last)} in the mean of {ds['count'].values[-1]}"
    vague = kind in (Reading.OFF, Reading.UNDETERMINED) or not np.isfinite(limit.low)
    return Finding("undetermined" if vague else "fact", f"{label}: {bias}; {best}; measured {counted}")


def _percent(x: float) -> str:
    return f"{100 * x:.2g} %" if x < 0.0995 else f"{100 * x:.0f} %"


def _percents(end: Ends) -> str:
    if not np.isfinite(end.low):
        return "[no interval]"
    return f"[{_percent(end.low)}, {_percent(end.high)}]"


def navg_text(ds: xr.Dataset) -> str:
    """Return cosines against the number of batches, and bias and variance by group."""
    rows = [e for e in range(ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    reference, level = ds["reference"].values[0], f"{100 * ds.attrs['level']:g} %"
    counts = [str(n) for n in ds["count"].values]
    size = ds.attrs["batch_size"]
    lines = [f"  cosine of the mean over n batches of {size} with {reference}, all parameters; {level} intervals"]
    head = ("", "", "marks", *(f"n={n}" for n in counts), "n -> inf")
    lines += table([head, *(row for e in rows for row in _curve_rows(ds, e))])
    notes = legend(ds, rows)
    if notes:
        lines += ["  marks, with the number of samples:", *(f"  {n}" for n in notes)]
    lines += [
        "",
        "  squared error of one batch's direction (from s g_ref, s fitted), relative to the estimate's mean square",
        *table([_HEAD, *(_parts_row(ds, e, g) for e in rows[1:] for g in range(ds.sizes["group"]))]),
    ]
    return "\n".join(lines)


_HEAD = ("", "group", "bias^2", "variance", "share of bias", "cosine tends to", "k")


def _curve_rows(ds: xr.Dataset, e: int) -> list[tuple[str, ...]]:
    label = str(ds["estimator"].values[e])
    limit = plus_minus(Ends.of(ds, "limit_cosine", reference=0, estimator=e, group=0))
    rows = []
    for name, words in (("same_cosine", "same batches"), ("mean_cosine", "mean of all")):
        if name == "same_cosine" and e == 0:
            continue  # the reference with itself
        ends = [Ends.of(ds, name, reference=0, estimator=e, count=i, group=0) for i in range(ds.sizes["count"])]
        first = name == "same_cosine" or e == 0
        cells = (*map(plus_minus, ends), limit if name == "same_cosine" else "")
        rows.append((label if first else "", words, marks_text(ds, e) if first else "", *cells))
    return rows


def _parts_row(ds: xr.Dataset, e: int, g: int) -> tuple[str, ...]:
    at = {"reference": 0, "estimator": e, "group": g}
    share = Ends.of(ds, "bias_share", **at)
    return (
        str(ds["estimator"].values[e]) if g == 0 else "",
        str(ds["group"].values[g]),
        _sized(Ends.of(ds, "bias", **at)),
        _sized(Ends.of(ds, "variance", **at)),
        f"{_percent(share.value)} {_percents(share)}" if np.isfinite(share.value) else "-",
        plus_minus(Ends.of(ds, "limit_cosine", **at)),
        between(Ends.of(ds, "norm_ratio", **at)),
    )


def _sized(end: Ends) -> str:
    """Return a number that may be tiny, with the ends of its interval."""
    if not np.isfinite(end.value):
        return "-"
    half = max(end.high - end.value, end.value - end.low)
    return f"{number(end.value)} +- {number(half) if np.isfinite(half) else '?'}"


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return the result as plain values."""
    found = []
    for e in range(ds.sizes["estimator"]):
        curves = {
            name: [
                {"n": int(n), **interval(ds, name, reference=0, estimator=e, count=i, group=0)}
                for i, n in enumerate(ds["count"].values)
            ]
            for name in ("same_cosine", "mean_cosine")
        }
        reading = str(_reading(ds, e)) if ds["role"].values[e] == "estimator" else ""
        found.append({**estimator_entry(ds, e), **curves, "reading": reading})
    return {
        "t1": int(ds.attrs["t1"]),
        "batches": ds.sizes["batch"],
        "batch_size": int(ds.attrs["batch_size"]),
        "level": float(ds.attrs["level"]),
        "faithful": float(ds.attrs["faithful"]),
        "reference": str(ds["reference"].values[0]),
        "estimators": found,
    }
