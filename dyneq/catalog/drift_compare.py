"""Several runs on one axis: validation loss against cumulative learning rate, compared where that is equal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.drift_attributes import describe
from dyneq.catalog.drift_parts import half_width
from dyneq.errors import UsageError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The loss of one run against its cumulative learning rate.

    Attributes:
        name: The run.
        rate: Cumulative learning rate at the snapshots, increasing ``[snapshot]``.
        step: Their steps ``[snapshot]``.
        loss: Loss of every sample ``[snapshot, sample]``; NaN where it is not finite.
        batch: Digest of the samples.
    """

    name: str
    rate: Array
    step: Array
    loss: Array
    batch: str


def curve_of(ds: xr.Dataset) -> Curve | str:
    """Return the curve of one run's series, or why it has none.

    Args:
        ds: The series of one run.
    """
    if "sample_loss" not in ds:
        return "no loss was measured (it is read by the probe residual)"
    known = np.isfinite(ds["cumulative_lr"].values) & np.isfinite(ds["sample_loss"].values).any(axis=1)
    if known.sum() < 2:
        return "fewer than two of its snapshots have both a loss and a known cumulative learning rate"
    held = ds.isel(step=np.flatnonzero(known))
    return Curve(
        str(ds.attrs["run"]),
        held["cumulative_lr"].values,
        held["step"].values.astype(np.float64),
        held["sample_loss"].values,
        str(ds.attrs["batch_sha256"]),
    )


def join(series: Sequence[xr.Dataset]) -> tuple[xr.Dataset, list[str]]:
    """Return several runs as one dataset along ``run``, with their losses at equal cumulative learning rates.

    Args:
        series: The series of each run.

    Returns:
        The dataset, and for every run or pair that could not be compared a sentence that says why.

    Raises:
        UsageError: If two runs have the same name.
    """
    names = [str(ds.attrs["run"]) for ds in series]
    if len(set(names)) < len(names):
        raise UsageError(f"a run is named twice ({', '.join(names)}); name runs that differ")
    joined = xr.concat(
        series,
        xr.DataArray(np.array(names, dtype=object), dims="run", name="run"),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    reasons: list[str] = []
    curves: list[Curve] = []
    for ds, name in zip(series, names, strict=True):
        found = curve_of(ds)
        if isinstance(found, str):
            reasons.append(f"{name} is not compared: {found}")
        elif curves and found.batch != curves[0].batch:
            reasons.append(f"{name} is not compared: its loss is of other samples than that of {curves[0].name}")
        else:
            curves.append(found)
    if len(curves) < 2:
        return describe(joined), reasons
    first, last = max(c.rate[0] for c in curves), min(c.rate[-1] for c in curves)
    if first > last:
        return describe(joined), [*reasons, "the runs have no cumulative learning rate in common"]
    grid = np.unique(np.concatenate([c.rate for c in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return describe(joined.assign(_compared(curves, names, grid)).assign_coords(at_cumulative_lr=grid)), reasons


def _compared(curves: Sequence[Curve], names: Sequence[str], grid: Array) -> dict[str, tuple[tuple[str, str], Array]]:
    """Return losses and paired differences over run and cumulative learning rate."""
    shape = (len(names), len(grid))
    found = {
        n: np.full(shape, np.nan) for n in ("at_loss", "at_loss_error", "at_step", "difference", "difference_error")
    }
    # a sample without a loss somewhere in the common range would make means over different samples
    whole = np.logical_and.reduce([np.isfinite(c.loss).all(axis=0) for c in curves])
    if whole.any():
        reference: tuple[Array, Array] | None = None
        for curve in curves:
            row = names.index(curve.name)
            at, bend = interpolated(curve.rate, curve.loss[:, whole], grid)
            found["at_loss"][row] = at.mean(axis=1)
            found["at_loss_error"][row] = [half_width(one) + b for one, b in zip(at, bend, strict=True)]
            found["at_step"][row] = np.interp(grid, curve.rate, curve.step)
            if reference is None:
                reference = at, bend
                continue
            apart = at - reference[0]
            found["difference"][row] = apart.mean(axis=1)
            bars = [half_width(one) for one in apart]
            found["difference_error"][row] = np.array(bars) + bend + reference[1]
    return {name: (("run", "at_cumulative_lr"), values) for name, values in found.items()}


def interpolated(rate: Array, loss: Array, at: Array) -> tuple[Array, Array]:
    """Return losses between snapshots, and an estimate of the error that interpolation makes in their mean.

    The interpolation is linear. Its error between x1 and x2 is abs(x - x1) abs(x2 - x) abs(f[x1, x2, y]) for some y
    (Newton's form); the divided difference is taken with the snapshots on both sides, the larger of the two. Between
    the only two snapshots nothing is known of the bend, and the error is that of a monotonic curve at worst.

    Args:
        rate: Where the losses are known, increasing ``[snapshot]``.
        loss: They ``[snapshot, sample]``.
        at: Where they are wanted, within ``rate`` ``[point]``.

    Returns:
        Losses ``[point, sample]`` and errors ``[point]``.
    """
    right = np.clip(np.searchsorted(rate, at, side="left"), 1, len(rate) - 1)
    left = right - 1
    share = (at - rate[left]) / (rate[right] - rate[left])
    values = (1 - share)[:, None] * loss[left] + share[:, None] * loss[right]
    mean = loss.mean(axis=1)
    if len(rate) == 2:
        return values, np.where((share == 0) | (share == 1), 0.0, np.maximum(share, 1 - share)) * abs(mean[1] - mean[0])
    slope = np.diff(mean) / np.diff(rate)
    bend = np.abs(np.diff(slope) / (rate[2:] - rate[:-2]))  # of snapshots k, k + 1, k + 2
    sides = np.stack([np.clip(left - 1, 0, len(bend) - 1), np.clip(left, 0, len(bend) - 1)])
    # np.abs: rounding may put a point a hair outside
    return values, np.abs((at - rate[left]) * (rate[right] - at)) * bend[sides].max(axis=0)
