"""Reading a diagnosis: the verdict in words, what speaks against it, what cures it, what to measure next."""

import json
from typing import Any

import numpy as np
import xarray as xr

from dyneq.dynamics.verdict import Verdict
from dyneq.probes import census_reading
from dyneq.probes.base import Finding
from dyneq.probes.census import sentences
from dyneq.probes.census_reading import Overall, headline, overall, place


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of the census and those of every further probe that was run."""
    findings = census_reading.summarize(ds)
    for probe, found in stages(ds)[1:]:
        findings += [Finding("fact", f"{probe}: {text}") for text in found]
    return findings


def stages(ds: xr.Dataset) -> list[tuple[str, list[str]]]:
    """Return the probes that were run with what they found."""
    names, found = ds["stage_probe"].values, ds["stage_findings"].values
    return [(str(name), list(json.loads(str(text)))) for name, text in zip(names, found, strict=True)]


def cure(ds: xr.Dataset, found: Overall) -> str:
    """Return what cures the verdict, with the numbers of this batch."""
    verdict = found.verdict
    which = found.samples.get(verdict, [])
    if verdict is Verdict.DISCRETE_INSTABILITY:
        steps = ds["sample_critical_eps"].values[which]
        steps = np.where(np.isnan(steps), ds["critical_eps"].values[which], steps)
        if np.isfinite(steps).any():
            least, middle = float(np.nanmin(steps)), float(np.nanmedian(steps))
            now = f"the step is {ds.attrs['eps']:g}"
            return (
                f"a step below {least:.3g} settles all of these samples, below {middle:.3g} half of them ({now}); or a "
                "solver that does not step (Newton, Anderson)"
            )
    return verdict.cure


def report(ds: xr.Dataset) -> str:
    """Return the body of the printed diagnosis."""
    found = overall(ds)
    verdict = found.verdict
    which = found.samples.get(verdict, [])
    lines = [f"VERDICT  {headline(ds)}", "", *_entry("meaning", [verdict.meaning])]
    if which:
        clear = census_reading.clearest(ds, verdict, which)
        lines += _entry("evidence", [f"{place(ds, clear)}: {text}" for text in sentences(ds["supports"].values[clear])])
        lines += _entry("for", [_kinds(ds, which)])
    lines += _entry("against", _against(ds, found))
    lines += _entry("cure", [cure(ds, found)])
    lines += _entry("next", [verdict.measure])
    lines += ["", census_reading.table(ds), ""]
    for i, (probe, texts) in enumerate(stages(ds)):
        reason, seconds = str(ds["stage_reason"].values[i]), float(ds["stage_seconds"].values[i])
        lines.append(f"  ran {probe} ({seconds:.1f} s): {reason}")
        lines += [f"      {text}" for text in texts]
    if len(stages(ds)) == 1:
        lines.append("  nothing further was run: every cause is confirmed, or further probes were not asked for")
    return "\n".join(lines)


def _entry(name: str, texts: list[str]) -> list[str]:
    return [f"  {name if i == 0 else '':<9}{text}" for i, text in enumerate(texts)]


def _kinds(ds: xr.Dataset, which: list[int]) -> str:
    confidence = [str(c) for c in ds["confidence"].values[which]]
    kinds = sorted({str(k) for k in ds["kind"].values[which]} - {""})
    counted = ", ".join(f"{confidence.count(c)} {c}" for c in dict.fromkeys(confidence))
    return f"{len(which)} samples: {counted}{'; kind: ' + ', '.join(kinds) if kinds else ''}"


def _against(ds: xr.Dataset, found: Overall) -> list[str]:
    """Return what speaks against the verdict: remarks on its samples, and the samples that say otherwise."""
    which = found.samples.get(found.verdict, [])
    said = list(dict.fromkeys(text for i in which for text in sentences(ds["against"].values[i])))[:4]
    others = [f"{len(s)} {v.value}" for v, s in found.samples.items() if v is not found.verdict]
    if others:
        said.append(f"other samples say otherwise: {', '.join(others)}")
    return said or ["nothing that was measured"]


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return the diagnosis as plain values."""
    found = overall(ds)
    which = found.samples.get(found.verdict, [])
    return {
        **census_reading.document(ds),
        "meaning": found.verdict.meaning,
        "supports": list(dict.fromkeys(text for i in which for text in sentences(ds["supports"].values[i]))),
        "against": _against(ds, found),
        "cure": cure(ds, found),
        "measure_next": found.verdict.measure,
        "stages": [
            {"probe": probe, "reason": str(ds["stage_reason"].values[i]), "findings": texts}
            for i, (probe, texts) in enumerate(stages(ds))
        ],
    }
