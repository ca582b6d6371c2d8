"""The cycle probe: what a long relaxation ends on, with the period, amplitude, exponents and multipliers of cycles."""

import time
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from dyneq.dynamics.attractor import Followed, follow
from dyneq.dynamics.attractor_kinds import AttractorKind
from dyneq.dynamics.monitor import Record, observe
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.cycle_dataset import attractor_variables, describe, history_variables, window_variables
from dyneq.probes.cycle_floquet import Multipliers, multipliers
from dyneq.probes.cycle_summary import document, summarize, table
from dyneq.systems.protocol import System


class CycleParams(Params):
    """Parameters of the cycle probe."""

    depth: int = Field(
        2000, ge=1, description="transient that is recorded first, steps; what has settled by then rests"
    )
    steps: int = Field(6000, ge=200, description="steps recorded of what moves; half of them again from a second start")
    projections: int = Field(8, ge=2, description="random unit vectors the state is projected on")
    exponents: int = Field(3, ge=0, description="Lyapunov exponents of what moves; 0 for none, and no verdict on it")
    second_start: bool = Field(True, description="follow a second start, without which no cycle or torus is named")
    shooting: bool = Field(True, description="look for the periodic orbit behind each cycle")
    multipliers: int = Field(4, ge=0, description="Floquet multipliers of each orbit found; 0 for none")
    all_tokens: bool = Field(False, description="multipliers of every token of causal blocks, not of the first alone")
    seed: int = Field(0, description="seed of directions, tangent vectors, second start and 0-1 test")


class CycleProbe(Probe):
    """What the relaxation ends on: fixed point, cycle, torus or chaos, with period, amplitude and multipliers."""

    name = "cycle"
    version = 1
    Params: ClassVar[type[Params]] = CycleParams

    def run(self, system: System, params: CycleParams, progress: Progress = silent) -> xr.Dataset:
        """Follow every sample; no state is ever stored over time.

        The dataset has dimensions ``sample``, ``row`` (blocks of steps of the residual's history), ``exponent``,
        ``mode`` (Floquet multipliers), ``instant`` and ``axis`` (the last stretch of the orbit, two projections).

        Args:
            system: Any system.
            params: Transient, length, and what is measured.
            progress: Told how far the measurement is.
        """
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(params.seed)
        z0 = system.initial_state().detach()
        transient = observe(
            system,
            z0,
            params.depth,
            projections=params.projections,
            generator=generator,
            progress=lambda share: progress(f"relaxing to depth {params.depth}", 0.3 * share),
        )
        followed = follow(
            system,
            transient.z,
            steps=params.steps,
            generator=generator,
            second_start=params.second_start,
            exponents=params.exponents,
            shooting=params.shooting,
            projections=params.projections,
            progress=lambda what, share: progress(what, 0.3 + 0.6 * share),
        )
        _mend_lost(followed, transient)
        progress("Floquet multipliers", 0.9)
        found: dict[int, Multipliers] = {}
        if params.multipliers:
            found = multipliers(
                system, followed.attractors, params.multipliers, all_tokens=params.all_tokens, seed=params.seed
            )
        ds = xr.Dataset(
            {
                **attractor_variables(system, followed, found, transient.evaluations),
                **history_variables(followed, transient),
                **window_variables(followed),
            },
            {"sample": np.arange(z0.shape[0])},
        )
        progress("done", 1.0)
        ds = describe(ds.assign(seconds=((), time.perf_counter() - begun)))
        return ds.assign_attrs(eps=system.eps, time=str(system.time), depth=params.depth, steps=params.steps)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return the count of every kind, and what a newcomer should know of the samples that do not settle."""
        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return a table of the samples that do not rest, with the reasons of each verdict."""
        return table(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return how many samples are of each kind, and one entry a sample."""
        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw residual histories, the orbit of a cycling sample and the multipliers; ``ax`` is three axes."""
        from dyneq.probes.cycle_plot import plot_cycle

        return plot_cycle(ds, ax)


def _mend_lost(followed: Followed, transient: Record) -> None:
    """Name the samples that were lost in the transient: later records hold them where they were last seen."""
    for i, step in enumerate(transient.lost.tolist()):
        if step >= 0:
            a = followed.attractors[i]
            a.kind, a.token, a.of_the_flow, a.orbit = AttractorKind.DIVERGED, -1, None, None
            a.period_steps = a.period_error = a.amplitude = float("nan")
            a.evidence = [f"the state was lost after {step} steps: it stopped being finite or grew beyond any root"]
            a.against = []
