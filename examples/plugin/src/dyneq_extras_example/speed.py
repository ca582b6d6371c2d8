"""The speed probe: how many steps of the relaxation the loss needs to settle."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator

from dyneq.dynamics.relax import relax_through
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.systems.protocol import System


class SpeedParams(Params):
    """Parameters of the speed probe."""

    depth: tuple[int, ...] = Field(
        (0, 5, 10, 20, 40, 60, 100, 200, 400, 800), description="depths the loss is taken at, at least two, steps"
    )
    tolerance: float = Field(1e-3, gt=0, description="how near to its last value a loss counts as settled, nats")

    @field_validator("depth")
    @classmethod
    def _ascending(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        for depth in depths:
            if depth < 0:
                raise ValueError(f"a relaxation depth is at least 0 steps, not {depth}")
        if len(set(depths)) < 2:
            raise ValueError(f"settling is seen between two depths or more, but {list(depths)} was asked for")
        return tuple(sorted(set(depths)))


class SpeedProbe(Probe):
    """How many steps of the relaxation the loss of every sample needs to settle."""

    name = "speed"
    version = 1
    Params: ClassVar[type[Params]] = SpeedParams
    needs_loss = True

    def run(self, system: System, params: SpeedParams, progress: Progress = silent) -> xr.Dataset:
        """Take the loss at every depth of one relaxation; dimensions ``depth`` and ``sample``.

        Args:
            system: Any system with a loss.
            params: Depths and tolerance.
            progress: Told how far the measurement is.
        """
        progress(f"relaxing to depth {params.depth[-1]}", 0.0)
        states = relax_through(system, list(params.depth))
        progress("losses", 0.9)
        with torch.no_grad():
            loss = np.stack([system.loss(state.z).double().cpu().numpy() for state in states])
        residual = np.stack([state.residuals.force.double().cpu().numpy() for state in states])
        settled = np.abs(loss - loss[-1]) <= params.tolerance  # NaN is never settled
        # settled from a depth on: there and at every deeper one
        from_here = np.logical_and.accumulate(settled[::-1])[::-1]
        first = np.where(from_here.any(0), np.array(params.depth)[from_here.argmax(0)], np.nan)
        over = ("depth", "sample")
        depth = {"long_name": "relaxation depth", "units": "steps"}
        return xr.Dataset(
            {
                "loss": (over, loss, {"long_name": "loss at the depth", "units": "nats/token"}),
                "force_residual": (over, residual, {"long_name": "norm(F)/norm(z) of the state", "units": "1/time"}),
                "settled_depth": (
                    "sample",
                    first,
                    {
                        "long_name": "first depth asked for from which on the loss stays within the tolerance of its "
                        "last value; NaN where the last is not finite",
                        "units": "steps",
                    },
                ),
                "status": (
                    "sample",
                    np.array([status.value for status in states[-1].status], dtype=object),
                    {"long_name": "how the deepest state was reached", "units": ""},
                ),
            },
            {"depth": ("depth", list(params.depth), depth), "sample": np.arange(loss.shape[1])},
            {"tolerance": params.tolerance},
        )

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return when the losses settle, and where that says nothing about a fixed point."""
        last, samples = int(ds["depth"][-1]), ds.sizes["sample"]
        settled, found = ds["settled_depth"].values, []
        known = settled[np.isfinite(settled)]
        early = known[known < last]
        if early.size:
            found.append(
                Finding(
                    "fact",
                    f"{early.size} of {samples} losses stay within {ds.attrs['tolerance']:g} nats of their value at "
                    f"depth {last} from depth {np.median(early):g} on (median; slowest {early.max():g})",
                )
            )
        if late := known.size - early.size:
            found.append(Finding("warning", f"{late} of {samples} losses still move before depth {last}: look deeper"))
        if lost := samples - known.size:
            found.append(Finding("undetermined", f"{lost} of {samples} losses are not finite at depth {last}"))
        if moving := int((ds["status"] != "converged").sum()):
            text = f"{moving} of {samples} samples are not at a fixed point at depth {last}"
            found.append(Finding("warning", f"{text}: a loss may settle and move again"))
        return found

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the loss of every sample against depth, with the depth it settles at."""
        from matplotlib.figure import Figure

        if ax is None:
            ax = Figure(figsize=(7, 4), layout="constrained").subplots()
        depth, loss = ds["depth"].values, ds["loss"].values
        ax.plot(depth, loss, color="0.75", lw=0.8)
        ax.plot(depth, np.median(loss, axis=1), color="#08306b", lw=2, label="median over samples")
        at = ds["settled_depth"].values
        held = np.nonzero(at < depth[-1])[0]  # at the last depth everything has settled by definition
        rows = np.searchsorted(depth, at[held])
        ax.plot(at[held], loss[rows, held], ".", color="#d94801", ms=5, label="settled")
        # linear up to the first depth beyond 0, which a logarithm has no place for
        ax.set_xscale("symlog", linthresh=max(1, float(depth[depth > 0].min())))
        ax.set_xlim(left=float(depth[0]))
        ax.set_xlabel("depth (steps)")
        ax.set_ylabel("loss (nats per token)")
        ax.set_title(f"how fast the loss settles to within {ds.attrs['tolerance']:g} nats", fontsize=10)
        ax.legend(fontsize=8)
        return ax.figure
