"""Reading an ablation: sentences, the table and plain values."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.ablation_effects import Effect
from dyneq.probes.base import Finding
from dyneq.probes.gradient_text import (
    between,
    cosine_text,
    legend,
    mark_findings,
    marks_text,
    median_text,
    names,
    number,
    plus_minus,
    sample_findings,
    table,
)
from dyneq.probes.triangulate_json import estimator_entry
from dyneq.probes.triangulate_rules import Ends


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the best point, what each option does, and reservations."""
    rows = [e for e in range(1, ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    found = [_best(ds, rows)]
    if rows:
        found += [*_options(ds, "cosine", "direction", "the cosine"), *_options(ds, "log_norm_ratio", "scale", "log k")]
    reasons: dict[str, list[str]] = {}
    for e in range(1, ds.sizes["estimator"]):
        if ds["refusal"].values[e]:
            reasons.setdefault(str(ds["refusal"].values[e]), []).append(str(ds["point"].values[e]))
    for why, points in reasons.items():
        many = f" and {len(points) - 3} more" if len(points) > 3 else ""
        found.append(Finding("warning", f"refused at {', '.join(points[:3])}{many}: {why}"))
    return [*found, *_marks(ds, rows), *sample_findings(ds)]


def _marks(ds: xr.Dataset, rows: list[int]) -> list[Finding]:
    """Return the marks under the names of the points."""
    return mark_findings(ds.assign_coords(estimator=ds["point"].values), rows)


def _best(ds: xr.Dataset, rows: list[int]) -> Finding:
    best, points = int(ds.attrs["best"]), ds.sizes["estimator"] - 1
    what = f"{ds.attrs['base']} on a grid of {points} points against {ds['reference'].values[0]}"
    if best < 0:
        return Finding("undetermined", f"{what}: no point gives a direction; the reasons are below")
    cosine, ratio = (Ends.of(ds, n, reference=0, estimator=best, group=0) for n in ("cosine", "norm_ratio"))
    tied = int(ds["tied"].values.sum()) - 1
    faithful = [e for e in rows if Ends.of(ds, "cosine", reference=0, estimator=e, group=0).low >= ds.attrs["faithful"]]
    text = f"{what}: best is {ds['point'].values[best]} (cosine {cosine_text(cosine)}, k {between(ratio)})"
    others = f"{tied} other point{'s' if tied != 1 else ''} cannot be told from it" if tied else "no other is as good"
    count = f"{len(faithful)} of {points} are faithful in direction" if faithful else "none is faithful in direction"
    return Finding("fact", f"{text}; {others}; {count}")


def _options(ds: xr.Dataset, name: str, what: str, quantity: str) -> list[Finding]:
    """Return which options do what to direction or scale."""
    found = []
    effect, change, bound = (ds[f"{name}{end}"].values for end in ("_effect", "_change", "_change_bound"))
    options = [str(o) for o in ds["option"].values]

    def of(kind: Effect) -> list[int]:
        return [o for o in range(len(options)) if effect[o] == str(kind)]

    def listed(which: list[int], of_each: np.ndarray) -> str:
        return names([f"{options[o]} ({number(float(of_each[o]))})" for o in which])

    if which := of(Effect.MATTERS):
        verb = "matter" if len(which) > 1 else "matters"
        text = f"{what}: {listed(which, change)} {verb}: in brackets the largest change of {quantity} by it alone"
        found.append(Finding("fact", text))
    if which := of(Effect.NOTHING):
        verb = "do" if len(which) > 1 else "does"
        text = f"{what}: {listed(which, bound)} {verb} nothing: in brackets what {quantity} may change by at most"
        found.append(Finding("fact", text))
    if which := of(Effect.UNDETERMINED):
        found.append(
            Finding(
                "undetermined",
                f"{what}: whether {listed(which, bound)} matter{'s' if len(which) == 1 else ''} is undetermined: in "
                f"brackets what {quantity} may change by; ask for more --batches or --samples",
            )
        )
    return found


def ablation_text(ds: xr.Dataset) -> str:
    """Return the table of the grid, all parameters."""
    rows = [e for e in range(1, ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    lines = [
        f"  {ds.attrs['base']} against {ds['reference'].values[0]}, all parameters; {100 * ds.attrs['level']:g} % "
        f"intervals over {ds.sizes['batch']} batches of {ds.attrs['batch_size']}; * best, ~ not to be told from it"
    ]
    lines += table([_HEAD, *(_row(ds, e) for e in rows)])
    notes = legend(ds, rows) if rows else []
    if notes:
        lines += ["  marks, with the number of samples:", *(f"  {n}" for n in notes)]
    effects = [("", "direction", "change of cosine", "scale", "change of log k")]
    for o, option in enumerate(ds["option"].values):
        one = ds.isel(option=o)
        effects.append(
            (
                str(option),
                str(one["cosine_effect"].item()),
                _change(one, "cosine"),
                str(one["log_norm_ratio_effect"].item()),
                _change(one, "log_norm_ratio"),
            )
        )
    return "\n".join([*lines, "", "  what each option does by itself, the others held fixed in turn", *table(effects)])


_HEAD = ("", "", "cosine", "marks", "k", "self-cosine", "adj. res.", "T2", "forces")


def _row(ds: xr.Dataset, e: int) -> tuple[str, ...]:
    at = {"reference": 0, "estimator": e, "group": 0}
    one = ds.isel(estimator=e)
    t2, cost = one["t2"].values, float(one["cost"])
    return (
        str(one["point"].item()),
        "*" if e == ds.attrs["best"] else "~" if bool(one["tied"]) else "",
        plus_minus(Ends.of(ds, "cosine", **at)),
        marks_text(ds, e),
        between(Ends.of(ds, "norm_ratio", **at)),
        plus_minus(Ends.of(ds, "self_cosine", estimator=e, group=0)),
        median_text(one["adjoint_residual"].values),
        f"{np.nanmedian(t2):.0f}" if np.isfinite(t2).any() else "-",
        number(round(cost)) if np.isfinite(cost) else "-",
    )


def _change(one: xr.Dataset, name: str) -> str:
    largest, bound = float(one[f"{name}_change"]), float(one[f"{name}_change_bound"])
    return f"{number(largest)} (at most {number(bound)})" if np.isfinite(bound) else number(largest)


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return the result as plain values."""
    points = [
        {
            **estimator_entry(ds, e),
            "point": str(ds["point"].values[e]),
            "best": e == ds.attrs["best"],
            "tied_with_best": bool(ds["tied"].values[e]),
        }
        for e in range(1, ds.sizes["estimator"])
    ]
    options = {
        str(option): {
            name: {
                "effect": str(ds[f"{name}_effect"].values[o]),
                "change": float(ds[f"{name}_change"].values[o]),
                "bound": float(ds[f"{name}_change_bound"].values[o]),
            }
            for name in ("cosine", "log_norm_ratio")
        }
        for o, option in enumerate(ds["option"].values)
    }
    return {
        "estimator": str(ds.attrs["base"]),
        "reference": str(ds["reference"].values[0]),
        "t1": int(ds.attrs["t1"]),
        "batches": ds.sizes["batch"],
        "batch_size": int(ds.attrs["batch_size"]),
        "level": float(ds.attrs["level"]),
        "options": options,
        "points": points,
    }
