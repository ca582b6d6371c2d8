"""Reading an ftle result: sentences, a table, and plain values."""

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.dimension import ROUNDING
from dyneq.probes.base import Finding

#: Rows of the printed table.
ROWS = 12
#: Exponents printed in a row.
SHOWN = 4
#: An estimate drifts where it is this many errors, and this share of itself, from what half the horizon gave.
DRIFT, LEAST_DRIFT = 4.0, 1e-2


def unit(ds: xr.Dataset) -> tuple[str, str, float]:
    """Return the variable of the exponents a reader is shown, its unit in words, and what a step is in that unit."""
    return ("exponent", "step", 1.0) if ds.attrs["time"] == "map" else ("rate", "time", float(ds.attrs["eps"]))


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of a result; the first is its one-line summary."""
    name, per, length = unit(ds)
    reading = ds["reading"].values.astype(str)
    which = {word: np.flatnonzero(reading == word) for word in ("expanding", "neutral", "contracting", "lost")}
    leading = ds[name].values[:, 0]
    samples = ds.sizes["sample"]
    if len(which["lost"]) == samples:
        return [
            Finding(
                "undetermined",
                f"none of the {samples} samples has exponents: every state stopped being finite or grew beyond any "
                "fixed point; lower eps, or take an earlier snapshot",
            )
        ]
    top = int(np.nanargmax(leading))
    found = [
        Finding(
            "fact",
            f"perturbations grow in {len(which['expanding'])} and fade in {len(which['contracting'])} of {samples} "
            f"samples, in {len(which['neutral'])} the exponent cannot be told from 0; largest exponent {_at(ds, top)}",
        )
    ]
    if len(which["expanding"]):
        where = which["expanding"]
        text = (
            f"{_some(where, samples)} expand: their leading exponent is above 0 by more than its margin "
            f"(up to {leading[where].max():+.3g} nats per {per}); the exponent alone cannot tell chaos from a state "
            "that is still leaving an unstable root: look whether the cycle stays (dyneq cycle), and at the root "
            "(dyneq spectrum --at root)"
        )
        found.append(Finding("warning", text))
    if len(which["neutral"]):
        found.append(_neutral(ds, which["neutral"], ds["exponent_margin"].values[:, 0] / length, per))
    if len(which["contracting"]):
        where = which["contracting"]
        slowest = float(leading[where].max())
        found.append(
            Finding(
                "fact",
                f"in {_some(where, samples)} perturbations fade: by a factor e in at most {-1 / slowest:.3g} "
                f"{_units(per)}, so what they follow attracts",
            )
        )
    return found + _dimension(ds, which) + _finite(ds, which) + _trust(ds, which)


def _neutral(ds: xr.Dataset, where: NDArray[np.intp], margin: NDArray[np.float64], per: str) -> Finding:
    moving = where[ds["status"].values[where] != "converged"]
    rest = ""
    if len(moving):
        residual = ds["final_force_residual"].values[moving]
        rest = (
            f"; {len(moving)} of them still move at the end (force residual {residual.min():.1e} to "
            f"{residual.max():.1e}), as on a cycle, whose leading exponent is exactly 0"
        )
    return Finding(
        "fact",
        f"in {_some(where, ds.sizes['sample'])} the leading exponent cannot be told from 0 (margin "
        f"{margin[where].max():.1e} nats per {per}){rest}; a marginal or very slow mode looks the same, a longer "
        "horizon narrows the margin",
    )


def _dimension(ds: xr.Dataset, which: dict[str, NDArray[np.intp]]) -> list[Finding]:
    """Return the dimension of what does not contract to a point."""
    alive = np.concatenate([which["expanding"], which["neutral"]])
    if not len(alive):
        return []
    value, error = ds["kaplan_yorke"].values[alive], ds["kaplan_yorke_error"].values[alive]
    known, found = np.isfinite(value), []
    if known.any():
        i = int(np.nanargmax(value))
        found.append(
            Finding(
                "fact",
                f"Kaplan-Yorke dimensions of these, if they stay as they move now, up to {value[i]:.3g} +- "
                f"{error[i]:.1g} (sample {alive[i]}); "
                "that of a cycle is 1, of chaos in a flow above 2",
            )
        )
    if not known.all():
        text = f"the Kaplan-Yorke dimension of {_some(alive[~known], ds.sizes['sample'])} is undetermined: "
        text += "too many exponents cannot be told from 0, or too few were asked for; lengthen --horizon, raise --count"
        found.append(Finding("undetermined", text))
    return found


def _finite(ds: xr.Dataset, which: dict[str, NDArray[np.intp]]) -> list[Finding]:
    """Return what the fastest perturbations did, which says nothing of stability."""
    if "finite_time" not in ds or not np.isfinite(ds["finite_time"].values[:, 0]).any():
        return []
    largest, horizon = ds["finite_time"].values[:, 0], int(ds.attrs["horizon"])
    i = int(np.nanargmax(largest))
    factor, per_sample = largest[i] * horizon, ds.sizes["sample"]
    size = f"{math.exp(factor):.3g}" if abs(factor) < 10 else f"10^{factor / math.log(10):.1f}"
    found = [
        Finding(
            "fact",
            f"over the {horizon} steps the fastest perturbation of any whole sample changed by a factor of {size} "
            f"(sample {i})",
        )
    ]
    fading = which["contracting"]
    if len(fading) and len(passing := fading[largest[fading] > 0]):
        found.append(
            Finding(
                "fact",
                f"in {_some(passing, per_sample)} perturbations fade in the end but one is larger after the horizon "
                "than before: growth before decay, which non-normality makes, and no instability",
            )
        )
    return found


def drifting(ds: xr.Dataset) -> NDArray[np.intp]:
    """Return the samples whose leading exponent has not stopped moving since half the horizon."""
    if "history" not in ds:
        return np.arange(0)
    half = int(np.abs(ds["step"].values - ds["step"].values[-1] / 2).argmin())
    value, before = ds["exponent"].values[:, 0], ds["history"].values[half, :, 0]
    error = np.nan_to_num(ds["exponent_error"].values[:, 0])
    bar = np.maximum(DRIFT * error, np.maximum(LEAST_DRIFT * np.abs(value), ROUNDING))
    known = np.isfinite(value) & np.isfinite(before)
    return np.flatnonzero(known & (np.abs(np.subtract(value, before, where=known, out=np.zeros_like(value))) > bar))


def _trust(ds: xr.Dataset, which: dict[str, NDArray[np.intp]]) -> list[Finding]:
    found, samples = [], ds.sizes["sample"]
    if len(moved := drifting(ds)):
        text = f"the leading exponent of {_some(moved, samples)} still drifts by more than its error bar allows: "
        found.append(Finding("warning", text + "begin deeper (--depth) or lengthen the horizon (--horizon)"))
    loose = np.flatnonzero((ds["resolved"].values[:, 0] == 0) & (ds["reading"].values != "lost"))
    if len(loose):
        text = f"the leading exponent of {_some(loose, samples)} was lost in rounding between orthonormalisations: "
        found.append(Finding("warning", text + "an upper bound only; use a smaller --qr-every, or float64"))
    if len(which["lost"]):
        text = (
            f"{_some(which['lost'], samples)} left out: the state stopped being finite or grew beyond any fixed point"
        )
        found.append(Finding("warning", text + "; lower eps, or take an earlier snapshot"))
    return found


def table(ds: xr.Dataset) -> str:
    """Return the samples with the largest exponents, one a row."""
    name, per, length = unit(ds)
    values, errors = ds[name].values[:, :SHOWN], ds[f"{name}_error"].values
    order = [
        i for i in np.argsort(-values[:, 0], kind="stable") if np.isfinite(values[i, 0]) or values[i, 0] == -np.inf
    ]
    if not order:
        return "  no exponents"
    finite = ds["finite_time"].values[:, 0] / length if "finite_time" in ds else None
    rows = [["sample", "token", "reading", f"exponents (nats per {per})", "+-", "finite-time", "dimension", "residual"]]
    for i in order[:ROWS]:
        token = int(ds["exponent_token"].values[i, 0])
        rows.append(
            [
                str(int(ds["sample"].values[i])),
                "-" if token < 0 else str(token),
                str(ds["reading"].values[i]),
                " ".join(f"{v:+8.4f}" for v in values[i]),
                f"{errors[i, 0]:.1e}",
                "-" if finite is None else f"{finite[i]:+.4f}",
                f"{ds['kaplan_yorke'].values[i]:.3g}",
                f"{ds['final_force_residual'].values[i]:.1e}",
            ]
        )
    if finite is None:
        rows = [[c for j, c in enumerate(row) if j != 5] for row in rows]
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    lines = ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = [f"  ... and {len(order) - ROWS} more"] if len(order) > ROWS else []
    where = f"from depth {ds.attrs['depth']} over {ds.attrs['horizon']} steps, one step is {length:g} {_units(per)}"
    cost = f"{int(ds['forces'])} forces and {int(ds['products'])} products of the batch"
    return "\n".join([f"  {where}; {cost}", "", *lines, *more])


def json_entry(ds: xr.Dataset) -> dict[str, Any]:
    """Return a result as plain values; what is not known is NaN."""
    name, per, _ = unit(ds)
    samples = []
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        token = float(row["exponent_token"].values[0])
        samples.append(
            {
                "sample": int(row["sample"]),
                "status": str(row["status"].item()),
                "reading": str(row["reading"].item()),
                "token": None if math.isnan(token) or token < 0 else int(token),
                "exponents": row[name].values.tolist(),
                "errors": row[f"{name}_error"].values.tolist(),
                "finite_time": (row["finite_time"].values / unit(ds)[2]).tolist() if "finite_time" in ds else None,
                "kaplan_yorke": float(row["kaplan_yorke"]),
                "kaplan_yorke_error": float(row["kaplan_yorke_error"]),
                "force_residual": float(row["final_force_residual"]),
                "contraction_rate": float(row["contraction_rate"]),
            }
        )
    counts = {word: int((ds["reading"] == word).sum()) for word in ("expanding", "neutral", "contracting", "lost")}
    return {
        "depth": int(ds.attrs["depth"]),
        "horizon": int(ds.attrs["horizon"]),
        "units": f"nats/{per}",
        **counts,
        "forces": int(ds["forces"]),
        "products": int(ds["products"]),
        "seconds": float(ds["seconds"]),
        "samples": samples,
    }


def _at(ds: xr.Dataset, sample: int) -> str:
    name, per, _ = unit(ds)
    token = int(ds["exponent_token"].values[sample, 0])
    where = f"sample {int(ds['sample'].values[sample])}" + (f", token {token}" if token >= 0 else "")
    value, error = (ds[n].values[sample, 0] for n in (name, f"{name}_error"))
    return f"{value:+.4f} +- {error:.1e} nats per {per} ({where})"


def _some(which: NDArray[np.intp], samples: int) -> str:
    listed = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    return f"{len(which)} of {samples} samples ({listed})"


def _units(per: str) -> str:
    return "steps" if per == "step" else "time units"
