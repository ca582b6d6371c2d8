"""Reading a census: the checkpoint's verdict, its shares, and the tables people and scripts take from it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dyneq.dynamics.judgement import show
from dyneq.dynamics.verdict import Verdict
from dyneq.probes.base import Finding
from dyneq.probes.census import sentences

#: A batch smaller than this needs one sample to support a verdict, a larger one two.
SMALL = 8
_NAMES = "  sample token  verdict               rests on   mu at the root         critical eps   period  residual"
#: Lines of the printed table; further samples are counted.
LINES = 24


@dataclass(frozen=True)
class Overall:
    """The verdict of a checkpoint.

    Attributes:
        verdict: The worst cause that enough samples support.
        samples: The samples of each verdict, the worst first.
        total: All samples.
        needed: How many had to support it.
    """

    verdict: Verdict
    samples: dict[Verdict, list[int]]
    total: int
    needed: int

    def share(self, verdict: Verdict) -> float:
        """Return the share of samples with a verdict."""
        return len(self.samples.get(verdict, [])) / self.total


def overall(ds: xr.Dataset) -> Overall:
    """Return the checkpoint's verdict: the worst cause that at least two samples support, or one of fewer than 8.

    Undetermined where two or more samples have worse causes, each its own.
    """
    given = [Verdict.of(str(v)) for v in ds["verdict"].values]
    total, needed = len(given), 1 if len(given) < SMALL else 2
    worst_first = sorted(set(given), key=lambda v: -v.severity)
    samples = {v: [i for i, w in enumerate(given) if w is v] for v in worst_first}
    enough = [v for v in worst_first if len(samples[v]) >= needed]
    verdict = enough[0] if enough else Verdict.UNDETERMINED
    # samples that each say something worse, no two the same, have no second witness but cannot be passed over
    alone = sum(len(samples[v]) for v in worst_first if v.severity > verdict.severity)
    if alone >= max(needed, 2) and verdict.severity < Verdict.UNDETERMINED.severity:
        verdict = Verdict.UNDETERMINED
    return Overall(verdict, samples, total, needed)


def headline(ds: xr.Dataset) -> str:
    """Return the verdicts with their shares: ``limit-cycle: 3 of 64 samples, first at token 13; slow: 4 of 64``."""
    found = overall(ds)
    order = sorted(found.samples, key=lambda v: (v is not found.verdict, -v.severity))
    parts: list[str] = []
    for verdict in order:
        which = found.samples[verdict]
        text = f"{verdict.value}: {len(which)} of {found.total}{' samples' if not parts else ''}"
        tokens = ds["origin"].values[which]
        if verdict not in (Verdict.FIXED_POINT, Verdict.SLOW) and (tokens >= 0).any():
            text += f", first at token {tokens[tokens >= 0].min()}"
        parts.append(text)
    if found.verdict not in found.samples:
        parts.insert(0, f"{found.verdict.value}: no two samples agree")
    return "; ".join(parts)


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the verdict, then for every cause what it means, its strongest evidence and what speaks against it."""
    found = overall(ds)
    open_ = found.verdict is Verdict.UNDETERMINED
    findings = [Finding("undetermined" if open_ else "fact", headline(ds))]
    for verdict, which in found.samples.items():
        findings.append(Finding("undetermined" if verdict is Verdict.UNDETERMINED else "fact", _of(ds, verdict, which)))
        findings += _against(ds, verdict, which)
        if verdict.severity < found.verdict.severity and len(which) >= found.needed:
            continue
        if len(which) < found.needed:
            text = f"one sample alone ({which[0]}) is {verdict.value}: too few to call the checkpoint so"
            findings.append(Finding("warning", text))
    evaluations = float(ds["evaluations"])
    findings.append(Finding("fact", f"cost: {evaluations:.0f} force evaluations of the whole batch"))
    return findings


def _of(ds: xr.Dataset, verdict: Verdict, which: list[int]) -> str:
    clear = clearest(ds, verdict, which)
    because = sentences(ds["supports"].values[clear])
    where = place(ds, clear)
    evidence = f" ({where}: {'; '.join(because)})" if because else ""
    return f"{verdict.value}: {verdict.meaning}{evidence}"


def clearest(ds: xr.Dataset, verdict: Verdict, which: list[int]) -> int:
    """Return the sample of ``which`` that shows a verdict most clearly: confirmed ones first, then the strongest."""
    rank = {"confirmed": 0, "observed": 1, "predicted": 2, "none": 3}
    strength = np.nan_to_num(ds["mu"].values[which].real, nan=-np.inf)
    if verdict is Verdict.DISCRETE_INSTABILITY:
        strength = -np.nan_to_num(ds["critical_eps"].values[which], nan=np.inf)
    order = sorted(range(len(which)), key=lambda k: (rank[str(ds["confidence"].values[which[k]])], -strength[k]))
    return which[order[0]]


def _against(ds: xr.Dataset, verdict: Verdict, which: list[int]) -> list[Finding]:
    """Return what speaks against a verdict, equal sentences of several samples once."""
    said: dict[str, list[int]] = {}
    for i in which:
        for text in sentences(ds["against"].values[i]):
            said.setdefault(text, []).append(i)
    rows = [(text, samples) for text, samples in said.items()]
    found = [Finding("warning", f"against {verdict.value} ({_samples(samples)}): {text}") for text, samples in rows[:4]]
    if len(rows) > 4:
        found.append(Finding("warning", f"against {verdict.value}: {len(rows) - 4} further remarks in the dataset"))
    return found


def _samples(which: list[int]) -> str:
    shown = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"sample {shown}" if len(which) == 1 else f"samples {shown}"


def place(ds: xr.Dataset, sample: int) -> str:
    """Return ``sample 16, token 13``."""
    token = int(ds["origin"].values[sample])
    return f"sample {sample}" + (f", token {token}" if token >= 0 else "")


def table(ds: xr.Dataset) -> str:
    """Return the samples that are no fixed points as lines, the worst verdict first."""
    found = overall(ds)
    rows = [i for v, which in found.samples.items() if v is not Verdict.FIXED_POINT for i in which]
    lines = [f"{len(found.samples.get(Verdict.FIXED_POINT, []))} of {found.total} samples at a stable fixed point"]
    if rows:
        lines += ["", _NAMES]
    for i in rows[:LINES]:
        row = ds.isel(sample=i)
        token = int(row["origin"])
        mu = complex(row["mu"].item())
        cells = [
            f"  {i:6d} {str(token) if token >= 0 else '-':>5}",
            f"{row['verdict'].item():<20}",
            f"{row['confidence'].item():<9}",
            f"{'-' if np.isnan(mu.real) else show(mu):<22} {_number(row['critical_eps']):>12}",
            f"{_number(row['period']):>7}",
            f"{float(row['force_residual']):.1e}",
        ]
        lines.append("  ".join(cells))
    if len(rows) > LINES:
        lines.append(f"  ... and {len(rows) - LINES} more (--json lists all)")
    return "\n".join(lines)


def _number(value: xr.DataArray) -> str:
    return "-" if np.isnan(float(value)) else f"{float(value):.4g}"


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return the verdict and the census as plain values."""
    found = overall(ds)
    return {
        "verdict": found.verdict.value,
        "share": found.share(found.verdict),
        "counts": {v.value: len(which) for v, which in found.samples.items()},
        "headline": headline(ds),
        "evaluations": float(ds["evaluations"]),
        "census": [entry(ds, i) for i in range(found.total)],
    }


def entry(ds: xr.Dataset, sample: int) -> dict[str, Any]:
    """Return one sample of a census as plain values; NaN where a number is not known."""
    row = ds.isel(sample=sample)
    token, mu, mode = int(row["origin"]), complex(row["mu"].item()), complex(row["critical_mu"].item())
    numbers = (
        "mu_error",
        "critical_eps",
        "critical_eps_error",
        "sample_critical_eps",
        "root_residual",
        "force_residual",
        "period",
        "amplitude",
        "exponent",
        "exponent_error",
        "passage",
    )
    return {
        "sample": sample,
        "token": None if token < 0 else token,
        "verdict": str(row["verdict"].item()),
        "kind": str(row["kind"].item()) or None,
        "confidence": str(row["confidence"].item()),
        "mu": None if np.isnan(mu.real) else [mu.real, mu.imag],
        "critical_mu": None if np.isnan(mode.real) else [mode.real, mode.imag],
        **{name: float(row[name]) for name in numbers},
        "status": str(row["status"].item()),
        "supports": sentences(row["supports"].item()),
        "against": sentences(row["against"].item()),
    }
