"""Reading a cycle result: the table and the sentences for people."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.dynamics.attractor_kinds import AttractorKind
from dyneq.probes.base import Finding

#: What a kind means for whoever meets it first, and what to do.
_MEANING = {
    AttractorKind.SLOW: "on the way to a fixed point, only slowly: relax deeper, or use another solver (dyneq solver)",
    AttractorKind.CYCLE: "repeat themselves for ever and never settle: no depth of relaxation makes them converge",
    AttractorKind.TORUS: "oscillate with two or more frequencies and never settle",
    AttractorKind.CHAOS: "move irregularly for ever: neighbouring states part exponentially, and nothing settles",
    AttractorKind.DIVERGED: "grew beyond any fixed point: relax with a smaller eps, or take an earlier snapshot",
}
_ORDER = tuple(AttractorKind)


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of a cycle result, the census of kinds first."""
    kind = np.array([str(k) for k in ds["kind"].values])
    found = [Finding("fact", _census(ds, kind))]
    for name, meaning in _MEANING.items():
        which = np.nonzero(kind == name)[0]
        if len(which):
            level = "fact" if name in (AttractorKind.SLOW, AttractorKind.CYCLE) else "warning"
            found.append(Finding(level, f"{name}: {_some(which, len(kind))} {meaning}"))
    found += _origin(ds, kind)
    found += _orbits(ds, kind)
    for i in np.nonzero(kind == AttractorKind.UNDETERMINED)[0]:
        reason = str(ds["against"].values[i]) or "the evidence supports no kind"
        found.append(Finding("undetermined", f"sample {i}: {reason}"))
    return found


def _census(ds: xr.Dataset, kind: np.ndarray) -> str:
    parts = []
    for name in _ORDER:
        which = np.nonzero(kind == name)[0]
        if not len(which):
            continue
        where = ""
        if "token" in ds and name not in (AttractorKind.FIXED_POINT, AttractorKind.DIVERGED):
            tokens = ds["token"].values[which]
            if (tokens >= 0).any():
                where = f" (first at token {int(tokens[tokens >= 0].min())})"
        parts.append(f"{name} {len(which)}{where}")
    return f"of {len(kind)} samples: {', '.join(parts)}"


def _origin(ds: xr.Dataset, kind: np.ndarray) -> list[Finding]:
    """Say whether cycles are the flow's own or made by Euler's step."""
    if ds.attrs.get("time") == "map":
        return []
    cycles, flow = kind == AttractorKind.CYCLE, ds["of_the_flow"].values
    found = []
    made, own = np.nonzero(cycles & (flow == 0))[0], np.nonzero(cycles & (flow == 1))[0]
    eps = float(ds.attrs["eps"])
    if len(made):
        cycles_of = f"{'cycle' if len(made) == 1 else 'cycles'} of {_some(made, len(kind))}"
        verb = "is" if len(made) == 1 else "are"
        text = f"the {cycles_of} {verb} made by the step eps={eps:g}: without its error the state rests"
        found.append(Finding("warning", f"{text}; relax with a smaller eps (dyneq epsilon)"))
    if len(own):
        cycles_of = f"{'cycle' if len(own) == 1 else 'cycles'} of {_some(own, len(kind))}"
        are, them = ("is", "it") if len(own) == 1 else ("are", "them")
        text = f"the {cycles_of} {are} there in the flow too: no step size removes {them}"
        ratio = ds["orbit_amplitude"].values[own]
        if (np.abs(ratio - 1) > 0.1).any():
            low, high = f"{ratio.min():.2f}", f"{ratio.max():.2f}"
            share = low if low == high else f"{low} to {high}"
            text += f", though with {share} times the amplitude that the step gives them"
        found.append(Finding("fact", text))
    open_ = np.nonzero(cycles & ~np.isfinite(flow))[0]
    if len(open_):
        found.append(
            Finding("undetermined", f"whether the flow cycles too was not shown for {_some(open_, len(kind))}")
        )
    return found


def _orbits(ds: xr.Dataset, kind: np.ndarray) -> list[Finding]:
    """Say what the multipliers tell of the orbits found."""
    log = ds["log_multiplier"].values
    has = np.nonzero(np.isfinite(log).any(1))[0] if log.size else np.zeros(0, dtype=int)
    if not len(has):
        return []
    error, trivial = ds["log_multiplier_error"].values, ds["trivial_error"].values
    stable, unstable, unsure = [], [], []
    for i in has:
        values, doubt = log[i][np.isfinite(log[i])], np.nan_to_num(error[i][np.isfinite(log[i])], nan=np.inf)
        if np.isfinite(trivial[i]):  # a flow has one multiplier 1: that nearest to it
            drop = int(np.abs(ds["multiplier"].values[i][: len(values)] - 1).argmin())
            values, doubt = np.delete(values, drop), np.delete(doubt, drop)
            doubt = np.maximum(doubt, trivial[i])
        if (values > 3 * doubt).any():
            unstable.append(i)
        elif (values < -3 * doubt).all():
            stable.append(i)
        else:
            unsure.append(i)
    found = []
    if stable:
        found.append(
            Finding("fact", f"the orbits of {_some(np.array(stable), len(kind))} attract: all multipliers are below 1")
        )
    if unstable:
        found.append(
            Finding("warning", f"the orbits of {_some(np.array(unstable), len(kind))} repel: a multiplier exceeds 1")
        )
    if unsure:
        found.append(
            Finding(
                "undetermined",
                f"error bars leave open whether the orbits of {_some(np.array(unsure), len(kind))} attract",
            )
        )
    return found


def _some(which: np.ndarray, samples: int) -> str:
    if samples == 1:
        return "the sample"
    if len(which) == samples:
        return f"all {samples} samples"
    listed = ", ".join(str(int(i)) for i in which[:8]) + (", ..." if len(which) > 8 else "")
    return f"sample{'' if len(which) == 1 else 's'} {listed}"


def table(ds: xr.Dataset) -> str:
    """Return the printed body: one line for each sample that does not rest, and its reasons."""
    kind = np.array([str(k) for k in ds["kind"].values])
    moving = np.nonzero(kind != AttractorKind.FIXED_POINT)[0]
    total = float(ds["evaluations"].sum())
    lines = [
        f"  recorded {ds.attrs['depth']} steps, then {ds.attrs['steps']} of what moves; "
        f"{total:.3g} forces of one sample, {float(ds['seconds']):.1f} s"
    ]
    rest = len(kind) - len(moving)
    if rest:
        worst = float(ds["force_residual"].values[kind == AttractorKind.FIXED_POINT].max())
        lines.append(f"  {rest} of {len(kind)} samples at a fixed point (worst force residual {worst:.1e})")
    if not len(moving):
        return "\n".join(lines)
    lines.append(
        "  sample token  kind          residual  period (steps)   amplitude  lyapunov 1, 2 (per step)  K      flow"
    )
    lines += [_line(ds.isel(sample=int(i)), int(i)) for i in moving]
    return "\n".join(lines)


def _line(row: xr.Dataset, i: int) -> str:
    token = int(row["token"]) if "token" in row else -1
    period = float(row["period_steps"])
    exponents = [float(v) for v in row["lyapunov"].values[:2]] if "exponent" in row.dims else []
    flow = {0.0: "rests", 1.0: "cycles"}.get(float(row["of_the_flow"]), "-")
    numbers = " ".join(f"{v:+10.2e}" if np.isfinite(v) else f"{'-':>10}" for v in (*exponents, np.nan, np.nan)[:2])
    chaos = _short(float(row["zero_one"]), ".2f")
    residual, amplitude = _short(float(row["force_residual"]), ".1e"), _short(float(row["amplitude"]), ".3g")
    return (
        f"  {i:6d} {token if token >= 0 else '-':>5}  {row['kind'].item():<13} {residual:>8}"
        f"  {_short(period, '.7g'):>14}   {amplitude:>9}  {numbers:>24}  {chaos:>5}  {flow}"
    )


def _short(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"


#: What the JSON of a sample holds, as the dataset calls it.
_NUMBERS = (
    "force_residual",
    "decay_rate",
    "decay_rate_error",
    "decay_exponent",
    "predicted_steps",
    "period_steps",
    "period_steps_error",
    "period_time",
    "period_time_error",
    "amplitude",
    "amplitude_spread",
    "amplitude_trend",
    "misfit",
    "recurrence",
    "second_gap",
    "zero_one",
    "zero_one_spread",
    "orbit_period",
    "orbit_period_error",
    "orbit_amplitude",
    "trivial_error",
    "evaluations",
)
_FLAGS = ("stationary", "of_the_flow")


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return a result as the plain values ``--json`` prints: how many of each kind, and one entry a sample."""
    samples: list[dict[str, Any]] = []
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        token = int(row["token"]) if "token" in ds else -1
        entry: dict[str, Any] = {"sample": i, "kind": str(row["kind"].item()), "token": None if token < 0 else token}
        entry["decay"] = str(row["decay_kind"].item())
        entry |= {name: float(row[name]) for name in _NUMBERS}
        flags = {name: float(row[name]) for name in _FLAGS}
        entry |= {name: bool(value) if np.isfinite(value) else None for name, value in flags.items()}
        for name in ("lyapunov", "lyapunov_error", "log_multiplier", "log_multiplier_error"):
            entry[name] = row[name].values[np.isfinite(row[name].values)].tolist()
        mu = row["multiplier"].values
        entry["multiplier"] = [[m.real, m.imag] for m in mu[np.isfinite(mu)]]
        entry |= {name: str(row[name].item()) for name in ("evidence", "against")}
        samples.append(entry)
    kinds = [entry["kind"] for entry in samples]
    return {
        "kinds": {str(k): kinds.count(k) for k in _ORDER if k in kinds},
        "depth": int(ds.attrs["depth"]),
        "steps": int(ds.attrs["steps"]),
        "samples": samples,
    }
