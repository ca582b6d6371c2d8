"""Reading a solver result: findings, the table, plain values."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.aligned import aligned, some
from dyneq.probes.base import Finding

#: Residuals below this are at the mercy of rounding in single precision.
SINGLE = 1e-5


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of a solver result."""
    goal = ds.isel(target=int(ds["target"].values.argmin()))
    found = [_best(goal), *_own(goal), *_never(goal), *_stuck(goal), *_diverged(goal)]
    if str(ds.attrs.get("time", "")) == "map":
        found.append(Finding("fact", "a map has no step to choose: Euler's method is its own iteration"))
    if ds.attrs.get("dtype_of_state") == "float32" and float(goal["target"]) < SINGLE:
        text = f"a residual of {float(goal['target']):g} may be below what float32 resolves"
        found.append(
            Finding("warning", f"{text}: samples that never reach it need not be unstable; use --dtype float64")
        )
    return found


def _count(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "-"


def _best(goal: xr.Dataset) -> Finding:
    """Return the cheapest solver that converges for all samples, by its slowest sample, or what comes nearest."""
    samples, target = goal.sizes["sample"], float(goal["target"])
    worst, median, reached = (goal[n].values for n in ("worst_evaluations", "median_evaluations", "reached"))
    names = goal["solver"].values
    if np.isfinite(worst).any():
        i = int(np.lexsort((median, worst))[0])
        others = int(np.isfinite(worst).sum()) - 1
        more = f"; {others} more of {len(names)} solvers do" if others else f"; none of the other {len(names) - 1} does"
        return Finding(
            "fact",
            f"cheapest solver that reaches force residual {target:g} for all {samples} samples: {names[i]} "
            f"({_count(worst[i])} force evaluations for the slowest sample, median {_count(median[i])}){more}",
        )
    i = int(np.lexsort((median, -reached))[0])
    return Finding(
        "fact",
        f"no solver reaches force residual {target:g} for all {samples} samples within {goal.attrs['budget']} "
        f"evaluations; {names[i]} comes nearest ({int(reached[i])} of them, median {_count(median[i])})",
    )


def _own(goal: xr.Dataset) -> list[Finding]:
    """Return what plain relaxation at the system's own step does, beside the best solver that iterates."""
    kind, eps, own = goal["kind"].values, goal["solver_eps"].values, float(goal.attrs.get("eps", np.nan))
    plain = np.flatnonzero((kind == "euler") & (eps == own))
    iterating = np.flatnonzero(kind != "root finder")
    if not len(plain) or len(iterating) < 2:
        return []
    reached, median = goal["reached"].values, goal["median_evaluations"].values
    i, best = int(plain[0]), int(iterating[np.lexsort((median[iterating], -reached[iterating]))[0]])
    text = (
        f"{_name(goal, i)}, the system's own relaxation, gets {int(reached[i])} of {goal.sizes['sample']} samples there"
    )
    text += f" (median {_count(median[i])})"
    if best != i:
        text += f"; of the solvers that iterate {_name(goal, best)} gets most: {int(reached[best])}"
        text += f" (median {_count(median[best])})"
    return [Finding("fact", text)]


def _never(goal: xr.Dataset) -> list[Finding]:
    """Return which samples plain relaxation never brings down, and whether others find the fixed point they have."""
    arrived, kind, samples = np.isfinite(goal["evaluations"].values), goal["kind"].values, goal.sizes["sample"]
    euler, root = kind == "euler", kind == "root finder"
    if not euler.any():
        return []
    lost = np.flatnonzero(~arrived[euler].any(0))
    if not len(lost):
        return []
    text = f"{some(lost.tolist(), samples)} never get there by Euler's method at any step tried"
    if (~euler).any():
        ways = [
            f"{name} {int(arrived[mask].any(0)[lost].sum())}"
            for name, mask in (("Anderson acceleration", kind == "anderson"), ("the root finder", root))
            if mask.any()
        ]
        text += f"; of these {' and '.join(ways)}"
    found = arrived[~euler].any(0)[lost]
    if found.any():
        text += (
            ": a fixed point exists, but the relaxation does not lead to it within the budget (dyneq census says why)"
        )
        return [Finding("warning", f"{text}; that a solver converges does not mean that the fixed point is stable")]
    return [Finding("undetermined", f"{text}: whether they have a fixed point at all is not known")]


def _stuck(goal: xr.Dataset) -> list[Finding]:
    """Return where Anderson acceleration stalls, with its residual, and what is still falling at the end."""
    found = []
    outcome, best = goal["outcome"].values, goal["best_residual"].values
    for i in np.flatnonzero(goal["kind"].values == "anderson").tolist():
        which = np.flatnonzero(outcome[i] == "stalled")
        if len(which):
            text = f"{_name(goal, i)} stalls in {some(which.tolist(), goal.sizes['sample'])}"
            found.append(Finding("warning", f"{text} at a force residual of {np.median(best[i, which]):.1e} (median)"))
    falling = [
        f"{_name(goal, i)} ({n})" for i in range(goal.sizes["solver"]) if (n := int((outcome[i] == "falling").sum()))
    ]
    if falling:
        text = f"still falling when the {goal.attrs['budget']} evaluations were spent: {', '.join(falling)} samples"
        found.append(Finding("fact", f"{text}; a larger --max-evaluations would tell"))
    return found


def _diverged(goal: xr.Dataset) -> list[Finding]:
    outcome = goal["outcome"].values
    return [
        Finding(
            "warning",
            f"{_name(goal, i)} diverges in {some(which.tolist(), goal.sizes['sample'])}: its step is too large",
        )
        for i in range(goal.sizes["solver"])
        if len(which := np.flatnonzero(outcome[i] == "diverged"))
    ]


def _name(goal: xr.Dataset, i: int) -> str:
    return str(goal["solver"].values[i])


def table_of(ds: xr.Dataset) -> str:
    """Return the table: median and slowest evaluations to each target, and how many never get there."""
    samples = ds.sizes["sample"]
    head = ["solver", *(f"to {t:g}" for t in ds["target"].values), "worst residual", "stalled", "diverged", "seconds"]
    rows = []
    for i in range(ds.sizes["solver"]):
        row = ds.isel(solver=i)
        cells = []
        for j in range(ds.sizes["target"]):
            at = row["evaluations"].isel(target=j).values
            there = at[np.isfinite(at)]
            slowest = f"{there.max():.0f}" if len(there) else "-"
            never = samples - len(there)
            missing = f" ({never} never)" if never else ""
            cells.append(f"{_count(float(row['median_evaluations'][j]))} / {slowest}{missing}")
        residual = row["best_residual"].values
        outcome = row["outcome"].values
        worst = "-" if np.isnan(residual).all() else f"{np.nanmax(residual):.1e}"
        ends = [str(int((outcome == e).sum())) for e in ("stalled", "diverged")]
        rows.append([_name(ds, i), *cells, worst, *ends, f"{float(row['seconds']):.1f}"])
    note = "  force evaluations to a force residual: median of all samples / slowest that gets there"
    return "\n".join([note, "", *aligned(head, rows)])


def entries(ds: xr.Dataset) -> dict[str, Any]:
    """Return the solvers of a result as plain values; NaN and infinity are left in."""
    solvers = []
    for i in range(ds.sizes["solver"]):
        row = ds.isel(solver=i)
        targets = [
            {
                "target": float(ds["target"][j]),
                "reached": int(row["reached"][j]),
                "median": float(row["median_evaluations"][j]),
                "worst": float(row["worst_evaluations"][j]),
                "evaluations": row["evaluations"].isel(target=j).values.tolist(),
            }
            for j in range(ds.sizes["target"])
        ]
        solvers.append(
            {
                "solver": _name(ds, i),
                "kind": str(row["kind"].item()),
                "eps": float(row["solver_eps"]),
                "memory": int(row["memory"]),
                "targets": targets,
                "outcomes": [str(o) for o in row["outcome"].values],
                "best_residual": row["best_residual"].values.tolist(),
                "gain": row["gain"].values.tolist(),
                "evaluations_spent": float(row["total_evaluations"]),
                "seconds": float(row["seconds"]),
            }
        )
    return {"budget": int(ds.attrs["budget"]), "solvers": solvers}
