"""Reading an epsilon result: findings, tables, plain values."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.dynamics.step_bracket import NARROW
from dyneq.probes.aligned import aligned, some
from dyneq.probes.base import Finding
from dyneq.probes.epsilon_judge import Blame, Outcome
from dyneq.probes.spectrum_summary import show

#: Rows of the table of samples, the worst first.
MOST_ROWS = 24
_ORDER = (Blame.FLOW, Blame.EULER, Blame.SLOW, Blame.UNDETERMINED, Blame.SETTLES, Blame.STABLE)


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of an epsilon result."""
    verdict, samples, own = ds["verdict"].values, ds.sizes["sample"], float(ds.attrs["own_eps"])
    at = {b: np.flatnonzero(verdict == str(b)).tolist() for b in Blame}
    settling = len(at[Blame.STABLE]) + len(at[Blame.SETTLES])
    parts = [f"{len(at[b])} {_WORDS[b]}" for b in _ORDER[:4] if at[b]]
    rest = f"; {', '.join(parts)}" if parts else ""
    found = [Finding("fact", f"{settling} of {samples} samples settle at eps={own:g}{rest}")]
    for blame, tell in ((Blame.FLOW, _flow), (Blame.EULER, _euler), (Blame.SLOW, _slow)):
        if at[blame]:
            found.append(tell(ds.isel(sample=at[blame]), some(at[blame], samples), own))
    if at[Blame.SETTLES]:
        part = ds.isel(sample=at[Blame.SETTLES])
        step = f", where the smallest critical step is {float(part['critical_eps'].min()):.4g}"
        text = f"{some(at[Blame.SETTLES], samples)} settle at eps={own:g} but not at every step tried{step}"
        found.append(Finding("fact", text))
    found += _reasons(ds, at[Blame.UNDETERMINED])
    return [*found, *_comparison(ds), *_reached(ds), *_lost(ds)]


_WORDS = {
    Blame.FLOW: "left by the flow itself",
    Blame.EULER: "kept moving by Euler's step",
    Blame.SLOW: "merely slow",
    Blame.UNDETERMINED: "undetermined",
}


def _place(row: xr.Dataset, name: str) -> str:
    token = float(row[f"{name}_token"])
    return f"sample {int(row['sample'])}" + (f", token {int(token)}" if token >= 0 else "")


def _flow(part: xr.Dataset, who: str, own: float) -> Finding:
    row = part.isel(sample=int(part["rightmost_mu"].values.real.argmax()))
    kinds = part["flow_kind"].values
    pairs = int((kinds == "hopf").sum())
    kind = "a complex pair, a Hopf instability" if pairs == len(kinds) else f"a complex pair in {pairs}, else real"
    seen = int((part["flow_unstable_observed"] == 1).sum())
    mu = complex(row["rightmost_mu"])
    return Finding(
        "fact",
        f"{who} have a root that the flow itself leaves ({kind}; largest mu {show(mu)} at {_place(row, 'rightmost')}): "
        f"no step size helps; growth near the root, extended to eps = 0, shows the same in {seen} of {len(kinds)}",
    )


def _euler(part: xr.Dataset, who: str, own: float) -> Finding:
    row = part.isel(sample=int(part["critical_eps"].values.argmin()))
    flips = int((part["step_kind"] == "flip").sum())
    n = part.sizes["sample"]
    made = "flips (period 2)" if flips == n else "oscillations (Neimark-Sacker)"
    made += f", flips in {flips}" if 0 < flips < n else ""
    confirmed, untried = int((part["confirmed"] == 1).sum()), int(np.isnan(part["confirmed"].values).sum())
    proof = f"at a smaller step {confirmed} of {n} were seen to settle, or to near the root as fast as foretold"
    if untried:
        least = float(part["critical_eps"].min())
        proof += f", for {untried} none was tried that is small enough (try --eps {0.7 * least:.2g})"
    return Finding(
        "fact",
        f"{who} have a root that is stable for the flow but not for Euler's step eps={own:g}, which makes {made}: "
        f"smallest critical step {float(row['critical_eps']):.4g}, set by {show(complex(row['critical_mu']))} at "
        f"{_place(row, 'critical')}; {proof}",
    )


def _slow(part: xr.Dataset, who: str, own: float) -> Finding:
    longest = float(part["needed_time"].max())
    return Finding(
        "fact",
        f"{who} are stable at eps={own:g} but had not settled by the horizon; the slowest should by time "
        f"{longest:.3g} ({longest / own:.0f} steps): relax deeper",
    )


def _reasons(ds: xr.Dataset, which: list[int]) -> list[Finding]:
    reasons: dict[str, list[int]] = {}
    for i in which:
        reasons.setdefault(str(ds["reason"].values[i]), []).append(i)
    return [Finding("undetermined", f"{some(rows, ds.sizes['sample'])}: {why}") for why, rows in reasons.items()]


def _comparison(ds: xr.Dataset) -> list[Finding]:
    """Return how foretold and observed critical steps compare."""
    step, seen, bar = (ds[n].values for n in ("critical_eps", "observed_critical_eps", "observed_critical_eps_error"))
    both = np.isfinite(step) & np.isfinite(seen)
    against = np.flatnonzero(ds["agreement"].values == "disagrees").tolist()
    found = []
    if both.any():
        agree = int((ds["agreement"].values[both] == "agrees").sum())
        text = (
            f"critical steps foretold by the eigenvalues and observed by displacing the root agree within their "
            f"errors in {agree} of {int(both.sum())} samples where both are known"
        )
        close = both & (np.nan_to_num(bar, nan=np.inf) <= NARROW * np.nan_to_num(seen, nan=0.0))
        if close.any():
            gap = float((np.abs(step - seen)[close] / step[close]).max())
            text += f" (largest difference of those closed in on: {100 * gap:.2g} %)"
        found.append(Finding("fact", text))
    if against:
        text = f"{some(against, ds.sizes['sample'])}: growth near the root contradicts its eigenvalues"
        found.append(Finding("warning", f"{text}; do not trust either before the reason is known"))
    return found


def _reached(ds: xr.Dataset) -> list[Finding]:
    """Return what the steps tried cannot say."""
    steps = ds["eps"].values
    if len(steps) == 1:
        text = f"only one step was tried (eps={steps[0]:g}): whether another one settles is foretold, not observed"
        return [Finding("warning", f"{text}; give several --eps")]
    if len(ds.attrs["eps_asked"]) == 1:
        text = f"only eps={ds.attrs['eps_asked'][0]:g} was asked for, beside the system's own {ds.attrs['own_eps']:g}"
        return [Finding("warning", f"{text}: give several --eps to see where it changes")]
    return []


def _lost(ds: xr.Dataset) -> list[Finding]:
    """Return which samples overflowed or were frozen, and where."""
    found = []
    for kind, level, advice in (
        (Outcome.DIVERGED, "fact", "these steps are too large for their initial state"),
        (Outcome.ABSORBED, "warning", "steps vanish in rounding, which is no convergence"),
    ):
        mask = ds["outcome"].values == str(kind)
        for i in np.flatnonzero(mask.any(1)):
            which = np.flatnonzero(mask[i]).tolist()
            text = f"at eps={ds['eps'].values[i]:g} {some(which, ds.sizes['sample'])} {kind}: {advice}"
            found.append(Finding(level, text))
    return found


def tables(ds: xr.Dataset) -> str:
    """Return a table of the steps and one of the samples, the worst first."""
    head = ["eps", "steps", "time", *(str(o) for o in Outcome), "median residual", "worst residual"]
    rows = []
    for i in range(ds.sizes["eps"]):
        row = ds.isel(eps=i)
        residual = row["force_residual"].values
        residual = np.where(np.isfinite(residual), residual, np.inf)
        own = " own" if float(row["eps"]) == float(ds.attrs["own_eps"]) else ""
        counts = [str(int((row["outcome"] == str(o)).sum())) for o in Outcome]
        numbers = [f"{np.median(residual):.1e}", f"{residual.max():.1e}"]
        rows.append(
            [
                f"{float(row['eps']):g}{own}",
                f"{float(row['steps']):.6g}",
                f"{float(row['end_time']):g}",
                *counts,
                *numbers,
            ]
        )
    return "\n".join([*aligned(head, rows), "", *_samples(ds)])


def _samples(ds: xr.Dataset) -> list[str]:
    order = sorted(range(ds.sizes["sample"]), key=lambda i: _ORDER.index(Blame(str(ds["verdict"].values[i]))))
    head = ["sample", "verdict", "rightmost mu", "token", "critical eps", "set by", "token", "kind", "observed"]
    rows = []
    for i in order[:MOST_ROWS]:
        r = ds.isel(sample=i)
        rows.append(
            [
                str(int(r["sample"])),
                str(r["verdict"].item()),
                _mu(r["rightmost_mu"]),
                _token(r["rightmost_token"]),
                _step(r["critical_eps"], r["critical_eps_error"]),
                _mu(r["critical_mu"]),
                _token(r["critical_token"]),
                str(r["flow_kind"].item()) or str(r["step_kind"].item()) or "-",
                _seen(r),
            ]
        )
    left = ds.sizes["sample"] - len(rows)
    return [*aligned(head, rows), *([f"  ... and {left} more"] if left > 0 else [])]


def _mu(value: xr.DataArray) -> str:
    return show(complex(value)) if np.isfinite(complex(value)) else "-"


def _token(value: xr.DataArray) -> str:
    return str(int(value)) if float(value) >= 0 else "-"


def _step(value: xr.DataArray, error: xr.DataArray) -> str:
    if not np.isfinite(float(value)):
        return "-"
    return f"{float(value):.5f}" + (f" +- {float(error):.0e}" if np.isfinite(float(error)) else " +- ?")


def _seen(row: xr.Dataset) -> str:
    if float(row["flow_unstable_observed"]) == 1:
        return "none"
    low, high = float(row["observed_low"]), float(row["observed_high"])
    if not (low > 0 or np.isfinite(high)):
        return "-"
    if np.isfinite(float(row["observed_critical_eps"])):
        return _step(row["observed_critical_eps"], row["observed_critical_eps_error"])
    return f"> {low:g}" if low > 0 else f"< {high:.3g}"


def entries(ds: xr.Dataset) -> dict[str, Any]:
    """Return the steps and samples of a result as plain values; NaN and infinity are left in."""
    steps = []
    for i in range(ds.sizes["eps"]):
        row = ds.isel(eps=i)
        steps.append(
            {
                "eps": float(row["eps"]),
                "steps": float(row["steps"]),
                "time": float(row["end_time"]),
                "outcomes": [str(o) for o in row["outcome"].values],
                "force_residual": row["force_residual"].values.tolist(),
                "growth": row["growth"].values.tolist(),
                "growth_error": row["growth_error"].values.tolist(),
            }
        )
    numbers = ("critical_eps", "critical_eps_error", "observed_low", "observed_high", "observed_critical_eps")
    words = ("verdict", "reason", "flow_kind", "step_kind", "agreement", "root_status")
    samples = []
    for i in range(ds.sizes["sample"]):
        r = ds.isel(sample=i)
        samples.append(
            {
                "sample": int(r["sample"]),
                **{name: str(r[name].item()) for name in words},
                **{name: float(r[name]) for name in (*numbers, "observed_critical_eps_error", "needed_time")},
                **{name: _pair(r[name]) for name in ("rightmost_mu", "critical_mu")},
                **{name: _index(r[name]) for name in ("rightmost_token", "critical_token", "observed_token")},
                "confirmed": None if np.isnan(float(r["confirmed"])) else bool(r["confirmed"]),
            }
        )
    verdict = ds["verdict"].values
    return {
        "own_eps": float(ds.attrs["own_eps"]),
        "verdicts": {str(b): int((verdict == str(b)).sum()) for b in Blame},
        "steps": steps,
        "samples": samples,
        "evaluations": float(ds["evaluations"]),
    }


def _pair(value: xr.DataArray) -> list[float]:
    mu = complex(value)
    return [mu.real, mu.imag]


def _index(value: xr.DataArray) -> int | None:
    return int(value) if np.isfinite(float(value)) and float(value) >= 0 else None
