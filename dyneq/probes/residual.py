"""The residual probe: residuals and loss against relaxation depth, and read out from the time mean of the state."""

import dataclasses
import time
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.residuals import least_size, relative_size
from dyneq.dynamics.roots import STARTS, Roots, find_root
from dyneq.dynamics.status import Status
from dyneq.probes.base import CERTIFICATE, COST, Finding, Params, Probe, Progress, annotate, silent
from dyneq.probes.residual_measure import resreg
from dyneq.probes.residual_record import Averager
from dyneq.systems.protocol import System

#: Change of log norm(F) between the last two depths below which a sample is level, however regular the change is.
LEVEL = 0.05
#: Change, and error of it, below which a sample is level where the change is not beyond its error.
FLUCTUATION = 0.5
#: Relative difference between the two halves of the last stretch up to which its rate is extrapolated.
STEADY = 0.2


class ResidualParams(Params):
    """Parameters of the residual probe."""

    depth: tuple[int, ...] = Field(
        (0, 10, 25, 50, 100, 200, 400, 800, 1600), min_length=1, description="relaxation depths, steps"
    )
    root: bool = Field(True, description="also find the root, and read the loss out there")
    tol: float | None = Field(None, gt=0, description="force residual called converged; 1e-6 in float64, else 1e-5")
    seed: int = Field(0, description="seed of the root's random start")

    @field_validator("depth")
    @classmethod
    def _increasing(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        for depth in depths:
            if depth < 0:
                raise ValueError(f"a relaxation depth is at least 0 steps, not {depth}")
        return tuple(sorted(set(depths)))


class ResidualProbe(Probe):
    """Force, step and absolute residual and the loss against relaxation depth; the loss at the time mean and root."""

    name = "residual"
    version = 1
    Params: ClassVar[type[Params]] = ResidualParams

    def run(self, system: System, params: ResidualParams, progress: Progress = silent) -> xr.Dataset:
        """Relax once through all depths; dimensions ``depth`` and ``sample``.

        Args:
            system: Any system; without a loss there are residuals alone.
            params: Depths, tolerance, and whether to find the root.
            progress: Told how far the measurement is.
        """
        begun = time.perf_counter()
        depths = list(params.depth)
        averager = Averager(system.eps, depths)
        reached: list[Relaxation] = []
        variables: dict[str, list[Tensor]] = {name: [] for name in ("resreg", *(["loss"] if system.has_loss else []))}
        for depth in depths:
            progress(f"relaxing to depth {depth}", depth / (depths[-1] + 1))
            start = reached[-1] if reached else None
            reached.append(relax(system, depth, start=start, tol=params.tol, recorder=averager))
            with torch.no_grad():
                variables["resreg"].append(resreg(system, reached[-1].z))
                if system.has_loss:
                    variables["loss"].append(system.loss(reached[-1].z))
        last = reached[-1]
        averager.rest(last.z)
        last = dataclasses.replace(last, trajectory=averager.finish(last.z))
        ds = _along_depths(system, reached, averager, variables)
        ds = ds.assign(_means(system, averager, last))
        if params.root:
            progress("finding the root", 0.9)
            generator = torch.Generator().manual_seed(params.seed)
            ds = ds.assign(_at_root(system, find_root(system, relaxation=last, starts=STARTS, generator=generator)))
        ds["seconds"] = ((), time.perf_counter() - begun)
        progress("done", 1.0)
        return _describe(ds, last)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how many samples converged, what the others do, and whether the loss depends on the depth."""
        from dyneq.probes.residual_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the table of depths."""
        from dyneq.probes.residual_summary import table

        return table(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the residuals and the loss against depth; ``ax`` is a pair of axes."""
        from dyneq.probes.residual_plot import plot_residual

        return plot_residual(ds, ax)


def _numbers(x: Tensor) -> NDArray[np.float64]:
    return x.detach().cpu().double().numpy()


def _finite(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers with NaN where a state that overflowed made them infinite."""
    return np.where(np.isfinite(x), x, np.nan)


def _along_depths(
    system: System, reached: list[Relaxation], averager: Averager, variables: dict[str, list[Tensor]]
) -> xr.Dataset:
    """Return what there is at every depth."""
    dims = ("depth", "sample")
    columns: dict[str, Any] = {
        "status": np.array([[s.value for s in r.status] for r in reached], dtype=object),
        "force_residual": _finite(np.stack([_numbers(r.residuals.force) for r in reached])),
        "step_residual": _finite(np.stack([_numbers(r.residuals.step) for r in reached])),
        "absolute_residual": _finite(np.stack([_numbers(r.residuals.absolute) for r in reached])),
        **{name: _finite(np.stack([_numbers(v) for v in values])) for name, values in variables.items()},
    }
    rate, error = (_numbers(x) for x in averager.rates(reached[-1].z))
    columns |= {"rate": rate, "rate_error": error}
    ds = xr.Dataset(
        {name: (dims, values) for name, values in columns.items()},
        {"depth": [r.depth for r in reached], "sample": np.arange(system.samples)},
    )
    # two more at every depth: the residual and the measure
    ds["forces"] = ("depth", [r.steps + 2 * (i + 1) for i, r in enumerate(reached)])
    trend, more, bar = _outlook(ds, reached[-1])
    return ds.assign(trend=("sample", trend), steps_left=("sample", more), steps_left_error=("sample", bar))


def _outlook(ds: xr.Dataset, last: Relaxation) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Return what each sample does after the last depth, and where that is a steady decay, how long it will take."""
    depths = ds["depth"].values
    length = depths[-1] - (depths[-2] if len(depths) > 1 else 0)
    rate, error = ds["rate"].values[-1], ds["rate_error"].values[-1]
    residual = ds["force_residual"].values[-1]
    kinds = np.full(len(rate), "undetermined", dtype=object)
    known = np.isfinite(rate) & np.isfinite(error)
    with np.errstate(invalid="ignore", divide="ignore"):
        change, bar = rate * length, error * length
        trendless = (np.abs(change) <= 2 * bar) & (np.abs(change) < FLUCTUATION) & (bar < FLUCTUATION)
        kinds[known & (((np.abs(change) < LEVEL) & (bar < LEVEL)) | trendless)] = "level"
        kinds[known & (change <= -LEVEL) & (change + 2 * bar < 0)] = "falling"
        kinds[known & (change >= LEVEL) & (change - 2 * bar > 0)] = "rising"
        steady = (kinds == "falling") & (2 * error < STEADY * np.abs(rate))
        more = np.where(steady, np.log(last.tol / residual) / rate, np.nan)
        unsure = np.where(steady, more * error / np.abs(rate), np.nan)
    status = np.array([s.value for s in last.status], dtype=object)
    for ended in (Status.CONVERGED, Status.DIVERGED, Status.ABSORBED):
        kinds[status == ended.value] = ended.value
    moving = kinds == "falling"
    return kinds, np.where(moving, more, np.nan), np.where(moving, unsure, np.nan)


@torch.no_grad()
def _means(system: System, averager: Averager, last: Relaxation) -> dict[str, Any]:
    """Return what the time means of the state give, per sample."""
    mean, late = (m.value() for m in averager.means)
    if mean is None or late is None:
        return {}
    least = least_size(system)
    residual = relative_size(system.force(mean), mean, least)
    away = relative_size(last.z - mean, mean, least)
    found = {"mean_force_residual": _numbers(residual), "mean_distance": _numbers(away)}
    if system.has_loss:
        values = [_finite(_numbers(system.loss(m))) for m in (mean, late)]
        rounding = 8 * torch.finfo(mean.dtype).eps * np.abs(values[0])
        found |= {"mean_loss": values[0], "mean_loss_error": np.abs(values[1] - values[0]) + rounding}
    return {name: ("sample", _finite(values)) for name, values in found.items()}


@torch.no_grad()
def _at_root(system: System, roots: Roots) -> dict[str, Any]:
    """Return what there is at the roots found; NaN for samples without one."""
    found = roots.found.numpy()
    relaxation = roots.relaxation
    assert relaxation is not None
    least = least_size(system)
    columns = {
        "root_force_residual": roots.residual,
        "root_distance": relative_size(relaxation.z - roots.z, roots.z, least),
    }
    mean = None if relaxation.trajectory is None else relaxation.trajectory.mean
    if mean is not None:
        columns["root_mean_distance"] = relative_size(mean - roots.z, roots.z, least)
    if system.has_loss:
        columns["root_loss"] = system.loss(roots.z)
    named = {name: ("sample", np.where(found, _finite(_numbers(v)), np.nan)) for name, v in columns.items()}
    return {**named, "root_status": ("sample", np.array([s.value for s in roots.status], dtype=object))}


_WINDOW = "mean of the states over the second half of the steps, weighted by a smooth bump"
_ATTRIBUTES = {
    "status": ("how the relaxation stands", ""),
    "force_residual": ("norm(F)/norm(z), norm(z) not below norm(z_0)/1000: the measure of convergence", "1/time"),
    "step_residual": ("eps norm(F)/norm(z); not evidence of convergence", "1"),
    "absolute_residual": ("norm(F)", "state/time"),
    "resreg": ("norm(eps F)^2/norm(z)^2, what the penalty resreg takes", "1"),
    "loss": ("loss read out from the state", "nats"),
    "rate": ("slope of log norm(F) over the steps from the depth before to this one; below 0 it falls", "1/step"),
    "rate_error": ("half the difference between the slopes of the two halves of those steps", "1/step"),
    "trend": ("what the force residual does at the last depth", ""),
    "steps_left": ("steps until the tolerance is reached if a steady decay goes on; NaN where it is none", "steps"),
    "steps_left_error": ("its error from that of the rate", "steps"),
    "mean_force_residual": (f"norm(F)/norm(z) at the {_WINDOW}", "1/time"),
    "mean_distance": (f"distance of the last state from the {_WINDOW}, relative", "1"),
    "mean_loss": (f"loss read out from the {_WINDOW}", "nats"),
    "mean_loss_error": ("its difference to the same over the last quarter of the steps, and rounding", "nats"),
    "root_force_residual": ("norm(F)/norm(z) at the root found", "1/time"),
    "root_distance": ("distance of the last state from the root, relative", "1"),
    "root_mean_distance": (f"distance of the {_WINDOW} from the root, relative", "1"),
    "root_loss": ("loss read out at the root", "nats"),
    "root_status": ("whether a root was found", ""),
    "forces": ("force evaluations up to this depth, without those of Newton's method", "evaluations"),
    "seconds": ("wall time", "s"),
}
_BARS = {"rate": "rate_error", "steps_left": "steps_left_error", "mean_loss": "mean_loss_error"}
_ROLES = {
    "force_residual": CERTIFICATE,
    "mean_force_residual": CERTIFICATE,
    "root_force_residual": CERTIFICATE,
    "forces": COST,
    "seconds": COST,
}


def _describe(ds: xr.Dataset, last: Relaxation) -> xr.Dataset:
    for name in ds.data_vars:
        long_name, units = _ATTRIBUTES[str(name)]
        ds[name].attrs.update(long_name=long_name, units=units)
    ds["depth"].attrs.update(long_name="steps taken", units="steps")
    return annotate(ds, bars=_BARS, roles=_ROLES).assign_attrs(tol=last.tol, eps=last.eps)
