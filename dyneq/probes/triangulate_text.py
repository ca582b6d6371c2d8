"""The tables of a triangulation."""

import numpy as np
import xarray as xr

from dyneq.probes.gradient_text import between, legend, marks_text, median_text, number, plus_minus, table
from dyneq.probes.triangulate_rules import Ends
from dyneq.probes.triangulate_without import arms_table


def triangulate_text(ds: xr.Dataset) -> str:
    """Return the tables: estimators over all parameters, by group, with one group removed, and by reference."""
    rows = [e for e in range(ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    level = f"{100 * ds.attrs['level']:g} %"
    lines = [
        f"  all parameters against {ds['reference'].values[0]}; +- and [] are {level} intervals over "
        f"{ds.sizes['batch']} batches of {ds.attrs['batch_size']}"
    ]
    lines += table([_HEAD, *(_row(ds, e) for e in rows)])
    notes = legend(ds, rows)
    if notes:
        lines += ["  marks, with the number of samples:", *(f"  {n}" for n in notes)]
    lines += ["", f"  cosine with {ds['reference'].values[0]} by group", *table(_by_group(ds, rows))]
    arms = arms_table(ds, rows[1:])
    if arms:
        lines += ["", f"  all parameters but one group: cosine with {ds['reference'].values[0]}, and k", *table(arms)]
    if ds.sizes["reference"] > 1:
        lines += ["", "  cosine with each reference, all parameters", *table(_by_reference(ds, rows))]
    asymmetry = ds["asymmetry"].values
    if np.isfinite(asymmetry).any():
        mean = float(np.nanmean(asymmetry))
        lines += ["", f"  free state at {ds.attrs['t1']} steps: asymmetry |Jv - J'v|/|Jv| {mean:.2f}, {_free(ds)}"]
    return "\n".join(lines)


_HEAD = ("", "cosine", "marks", "of means", "k", "self-cosine", "adj. res.", "|a|", "|z^b - z*|", "T2", "forces")


def _row(ds: xr.Dataset, e: int) -> tuple[str, ...]:
    at = {"reference": 0, "estimator": e, "group": 0}
    one = ds.isel(estimator=e)
    t2, cost = one["t2"].values, float(one["cost"])
    return (
        str(ds["estimator"].values[e]),
        plus_minus(Ends.of(ds, "cosine", **at)),
        marks_text(ds, e),
        plus_minus(Ends.of(ds, "cosine_of_means", **at)),
        between(Ends.of(ds, "norm_ratio", **at)),
        plus_minus(Ends.of(ds, "self_cosine", estimator=e, group=0)),
        median_text(one["adjoint_residual"].values),
        median_text(one["adjoint_norm"].values),
        median_text(one["displacement"].values),
        f"{np.nanmedian(t2):.0f}" if np.isfinite(t2).any() else "-",
        number(round(cost)) if np.isfinite(cost) else "-",
    )


def _by_group(ds: xr.Dataset, rows: list[int]) -> list[tuple[str, ...]]:
    groups = range(ds.sizes["group"])
    lines = [("", *map(str, ds["group"].values))]
    for e in rows[1:]:
        ends = (Ends.of(ds, "cosine", reference=0, estimator=e, group=g) for g in groups)
        lines.append((str(ds["estimator"].values[e]), *map(plus_minus, ends)))
    return lines


def _by_reference(ds: xr.Dataset, rows: list[int]) -> list[tuple[str, ...]]:
    references = range(ds.sizes["reference"])
    lines = [("", *map(str, ds["reference"].values))]
    for e in rows:
        ends = (Ends.of(ds, "cosine", reference=r, estimator=e, group=0) for r in references)
        lines.append((str(ds["estimator"].values[e]), *map(plus_minus, ends)))
    return lines


def _free(ds: xr.Dataset) -> str:
    residual = ds["free_residual"].values[ds["batch_of_sample"].values >= 0]
    finite = residual[np.isfinite(residual)]
    return f"force residual median {number(float(np.median(finite)))}, worst {number(float(finite.max()))}"
