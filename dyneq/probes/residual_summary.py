"""Reading a residual result: sentences and a table for people."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.probes.base import Finding

#: Change of a sample's loss, relative to the larger of 1 and the loss, that counts as one.
CHANGE = 1e-3

_TRENDS = {
    "falling": "have not converged yet, but their force still falls",
    "level": "still move, and between the last two depths their force does not fall beyond its fluctuations: they "
    "oscillate or sit on a plateau; dyneq census and dyneq cycle tell why",
    "rising": "move away: their force grows between the last two depths, as it does on the way to an oscillation",
    "undetermined": "have not converged, and between the last two depths their force neither falls steadily nor stays "
    "level (or these depths are too close to tell); add a larger --depth",
    "diverged": "diverged: their state grew beyond any fixed point; relax with a smaller eps, or take an earlier "
    "snapshot",
    "absorbed": "are frozen by rounding: their steps vanish in the last place of the state, so that a small residual "
    "is no convergence; see dyneq branches, and repeat in float64",
}


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return what a reader should take away."""
    trend = ds["trend"].values
    samples, depth = ds.sizes["sample"], int(ds["depth"].values[-1])
    residual = ds["force_residual"].values[-1]
    good = int((trend == "converged").sum())
    finite = residual[np.isfinite(residual)]
    spread = f"; median force residual {np.median(finite):.1e}, worst {finite.max():.1e}" if len(finite) else ""
    text = f"after {depth} steps {good} of {samples} samples have converged (force residual <= {ds.attrs['tol']:g})"
    found = [Finding("fact" if len(finite) else "undetermined", text + spread)]
    for kind, meaning in _TRENDS.items():
        which = np.flatnonzero(trend == kind)
        if len(which):
            level = "undetermined" if kind == "undetermined" else "fact" if kind == "falling" else "warning"
            found.append(Finding(level, f"{_some(which, samples)} {meaning}{_outlook(ds, which, kind)}"))
    return found + (_of_loss(ds) if "loss" in ds else [_no_loss(ds)])


def _outlook(ds: xr.Dataset, which: NDArray[np.intp], kind: str) -> str:
    """Return when falling samples would arrive."""
    if kind != "falling":
        return ""
    more = ds["steps_left"].values[which]
    if np.isnan(more).all():
        return "; not steadily enough to say when they arrive"
    far = int(np.nanargmax(more))
    bar = ds["steps_left_error"].values[which][far]
    several = "the slowest needs" if len(which) > 1 else "it needs"
    unsure = "" if not np.isnan(more).any() else ", of those that fall steadily"
    return f"; at its present rate {several} about {more[far]:.0f} +- {max(bar, 1):.0f} more steps{unsure}"


def _no_loss(ds: xr.Dataset) -> Finding:
    name = ds.attrs.get("system", "the system")
    return Finding("fact", f"{name} has no loss, so only residuals are given; bind it with targets for a loss")


def _of_loss(ds: xr.Dataset) -> list[Finding]:
    """Return whether the loss that is read out depends on how long one relaxes, and on how it is read out."""
    loss, depths = ds["loss"].values, ds["depth"].values
    found = []
    usable = np.isfinite(loss).all(0)
    if len(depths) > 1 and usable.any():
        means = loss[:, usable].mean(1)
        left_out = "" if usable.all() else f" ({int((~usable).sum())} samples whose state overflowed left out)"
        best = int(means.argmin())
        lowest = "" if best == len(depths) - 1 else f" (lowest {means[best]:.4f} at depth {depths[best]})"
        text = f"mean loss {means[0]:.4f} at depth {depths[0]}, {means[-1]:.4f} at depth {depths[-1]}{lowest}{left_out}"
        found.append(Finding("fact", text))
        change = np.abs(loss[-1] - loss[-2])
        moving = np.flatnonzero(change > CHANGE * np.maximum(1, np.abs(loss[-1])))
        if len(moving):
            worst = int(moving[change[moving].argmax()])
            text = (
                f"the loss is not that of an equilibrium: between depths {depths[-2]} and {depths[-1]} it changes in "
                f"{_some(moving, ds.sizes['sample'])}, most by {change[worst]:.2g} in sample {worst}"
            )
            found.append(Finding("warning", text))
        elif usable.all():
            text = f"no sample's loss changes by more than {CHANGE:g} between depths {depths[-2]} and {depths[-1]}"
            found.append(Finding("fact", f"the loss no longer depends on the depth: {text}"))
    return found + _of_mean(ds)


def _of_mean(ds: xr.Dataset) -> list[Finding]:
    """Return what reading out from the time mean changes for samples that keep moving."""
    moving = np.flatnonzero(np.isin(ds["trend"].values, ("level", "rising", "undetermined", "falling")))
    if "mean_loss" not in ds or not len(moving):
        return []
    last, mean = (ds["loss"].values[-1][moving], ds["mean_loss"].values[moving])
    bar = ds["mean_loss_error"].values[moving]
    known = np.isfinite(last) & np.isfinite(mean) & np.isfinite(bar)
    if not known.any():
        return []
    gap = (mean - last)[known]
    differs = np.abs(gap) > np.maximum(CHANGE * np.maximum(1, np.abs(last[known])), 2 * bar[known])
    text = (
        f"read out from the time mean of the state, the loss of the {int(known.sum())} moving samples is "
        f"{mean[known].mean():.4f} on average, {last[known].mean():.4f} at their last state"
    )
    if "root_loss" in ds:
        root = ds["root_loss"].values[moving]
        both = known & np.isfinite(root)
        if both.any():
            same = "" if both.sum() == known.sum() else f" ({int(both.sum())} of them have one)"
            text += f", {root[both].mean():.4f} at their root{same}"
    text += f"; mean and last state differ in {int(differs.sum())} of them"
    return [Finding("fact", text)]


def table(ds: xr.Dataset) -> str:
    """Return what there is at every depth, over the samples."""
    depths = ds["depth"].values
    rows = [("depth", "converged", "median", "worst", "step (worst)", "rate", *(["loss"] if "loss" in ds else []))]
    for i, depth in enumerate(depths):
        state = ds.isel(depth=i)
        row = [
            str(int(depth)),
            f"{int((state['status'] == 'converged').sum())} of {ds.sizes['sample']}",
            _cell(state["force_residual"].median(), ".1e"),
            _cell(state["force_residual"].max(), ".1e"),
            _cell(state["step_residual"].max(), ".1e"),
            _cell(state["rate"].median(), "+.4f"),
        ]
        rows.append((*row, *([_cell(state["loss"].mean(), ".4f")] if "loss" in ds else [])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    for name, label in (("mean_loss", "time mean of the state"), ("root_loss", "root")):
        if name in ds:
            value = ds[name]
            missing = int(value.isnull().sum())
            lines.append(
                f"  loss at the {label}: {_cell(value.mean(), '.4f')}" + (f" ({missing} missing)" if missing else "")
            )
    lines.append(
        "  median and worst are force residuals norm(F)/norm(z); rate is the median slope of log norm(F) a step"
    )
    return "\n".join(lines)


def _cell(value: xr.DataArray, form: str) -> str:
    number = float(value)
    return format(number, form) if np.isfinite(number) else "-"


def _some(which: NDArray[np.intp], samples: int) -> str:
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"
