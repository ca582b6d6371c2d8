"""The diagnose probe: a census, what else its answer needs, and one verdict with its evidence."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from dyneq.dynamics.moving import PATIENCE
from dyneq.dynamics.relax import relax
from dyneq.dynamics.trajectory import Recorder
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.dynamics.watching import WATCH
from dyneq.errors import DyneqError
from dyneq.probes.base import COST, Finding, Params, Probe, Progress, annotate, silent
from dyneq.probes.census import CensusParams, CensusProbe
from dyneq.probes.census_reading import Overall, overall
from dyneq.probes.registry import get_probe, make_params
from dyneq.systems.protocol import System

#: Samples whose residual is kept against depth for the figure, at most so many of each verdict.
TRACES = 2
#: Points of such a trace.
POINTS = 200
#: Samples a further probe looks at.
FURTHER = 4


class DiagnoseParams(Params):
    """Parameters of the diagnose probe."""

    depth: int = Field(1000, ge=1, description="relaxation steps after which what still moves is looked at")
    watch: int = Field(WATCH, ge=200, description="steps an attractor is watched for at most")
    patience: int = Field(PATIENCE, ge=0, description="steps a slow relaxation is continued for at most")
    further: bool = Field(True, description="run further probes where the census leaves the cause open")
    seed: int = Field(0, description="seed of all randomness")


@dataclass(frozen=True)
class Stage:
    """One further probe: which, with what parameters, on which samples, and why."""

    probe: str
    params: dict[str, Any]
    samples: list[int]
    reason: str


class DiagnoseProbe(Probe):
    """Why the relaxation does not settle: the battery, one verdict, what speaks against it, what cures it."""

    name = "diagnose"
    version = 1
    Params: ClassVar[type[Params]] = DiagnoseParams

    def run(self, system: System, params: DiagnoseParams, progress: Progress = silent) -> xr.Dataset:
        """Run the census, and further probes as long as the answer is not certain.

        The dataset is that of the census, with the stages run (dimension ``stage``) and the force residual of some
        samples against depth (dimensions ``trace``, ``step``).
        """
        begun = time.perf_counter()
        census = CensusProbe()
        shared = params.model_dump(include={"depth", "watch", "patience", "seed"})
        ds = census.run(system, CensusParams(**shared), lambda what, share: progress(what, 0.7 * share))
        reason = "always first: it relaxes the batch and names a cause for every sample"
        stages: list[tuple[str, str, list[str], float]] = [("census", reason, [], time.perf_counter() - begun)]
        for stage in plan(ds, params):
            progress(f"{stage.probe} on {len(stage.samples)} samples", 0.75)
            started = time.perf_counter()
            found = _run_stage(system, stage)
            stages.append((stage.probe, stage.reason, found, time.perf_counter() - started))
        progress("residuals against depth", 0.95)
        ds = ds.merge(_traces(system, ds, params.depth))

        def words(index: int, long_name: str) -> tuple[str, Any, dict[str, str]]:
            texts = [json.dumps(s[2]) if index == 2 else s[index] for s in stages]
            return "stage", np.array(texts, dtype=object), {"long_name": long_name, "units": ""}

        ds = ds.assign(
            stage_probe=words(0, "probe run"),
            stage_reason=words(1, "why it was run"),
            stage_findings=words(2, "what it found, a JSON list of sentences"),
            stage_seconds=("stage", np.array([s[3] for s in stages]), {"long_name": "time it took", "units": "s"}),
        )
        progress("done", 1.0)
        return annotate(ds, bars={}, roles={"stage_seconds": COST})

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return the verdict with its shares, what speaks against it, and what is left open."""
        from dyneq.probes.diagnose_reading import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the verdict, its evidence, cure and next step, the census and what was run."""
        from dyneq.probes.diagnose_reading import report

        return report(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the verdict, what it rests on, and the census, one entry a sample."""
        from dyneq.probes.diagnose_reading import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the one-page figure: the verdict in words, the map, the pairs, residuals against depth."""
        from dyneq.probes.diagnose_plot import plot_diagnose

        return plot_diagnose(ds, ax)


def plan(ds: xr.Dataset, params: DiagnoseParams) -> list[Stage]:
    """Return what is still to be measured after a census, most urgent first; nothing where every cause is certain.

    Args:
        ds: A census.
        params: Parameters of the diagnosis.
    """
    if not params.further:
        return []
    found = overall(ds)
    stages: list[Stage] = []
    for verdict, build in _FURTHER.items():
        which = [i for i in found.samples.get(verdict, []) if _open(ds, i, verdict, found)]
        if which:
            stages.append(build(which[:FURTHER], params))
    return stages


def _open(ds: xr.Dataset, sample: int, verdict: Verdict, found: Overall) -> bool:
    """Return whether a sample's cause is worth a further probe."""
    if verdict in (Verdict.DIVERGED, Verdict.ABSORBED):
        return True  # the cause is certain, but what has grown is not named yet
    if verdict is Verdict.SLOW:  # what to do about it decides the cure, where nothing worse is the verdict
        return found.verdict is Verdict.SLOW
    return str(ds["confidence"].values[sample]) in (Confidence.NONE.value, Confidence.PREDICTED.value)


_FURTHER: dict[Verdict, Callable[[list[int], DiagnoseParams], Stage]] = {
    Verdict.UNDETERMINED: lambda which, p: Stage(
        "cycle",
        {"depth": p.depth, "steps": p.watch, "seed": p.seed},
        which[:2],
        "the cause is open: the motion of the whole sample is recorded and named",
    ),
    Verdict.ABSORBED: lambda which, p: Stage("branches", {}, which, "which branch the state no longer feels"),
    Verdict.DIVERGED: lambda which, p: Stage("branches", {"depth": (0,)}, which, "which branch is large at the start"),
    Verdict.FOLD: lambda which, p: Stage(
        "root", {"depth": p.depth, "explore": True, "seed": p.seed}, which, "whether other roots are near"
    ),
    Verdict.DISCRETE_INSTABILITY: lambda which, p: Stage(
        "epsilon", {"seed": p.seed}, which, "the critical step as observed"
    ),
    Verdict.SLOW: lambda which, p: Stage("solver", {"seed": p.seed}, which, "which solver reaches the root soonest"),
}


def _run_stage(system: System, stage: Stage) -> list[str]:
    """Return what a further probe says of its samples; a failure is a sentence of its own."""
    try:
        probe = get_probe(stage.probe)
        known = {name: value for name, value in stage.params.items() if name in probe.Params.model_fields}
        part = system.select(torch.tensor(stage.samples, device=system.initial_state().device))
        probe.check(part)
        ds = probe.run(part, make_params(probe, known))
        ds = ds.assign_attrs({"eps": system.eps, "time": str(system.time), **ds.attrs})
        return [f.text for f in probe.summary(ds)]
    except DyneqError as error:
        return [f"{stage.probe} could not be run: {error}"]


@torch.no_grad()
def _traces(system: System, ds: xr.Dataset, depth: int) -> xr.Dataset:
    """Return the force residual against depth of a few samples of each verdict."""
    chosen = sorted(i for which in overall(ds).samples.values() for i in which[:TRACES])
    part = system.select(torch.tensor(chosen, device=system.initial_state().device))
    recorder = Recorder(part.eps, depth)
    recorded = relax(part, depth, recorder=recorder).trajectory
    assert recorded is not None
    stride = max(1, recorded.steps // POINTS)
    residual = recorded.force_residual[::stride].double().cpu().numpy().T
    attrs = {"long_name": "norm(F)/norm(z) against depth", "units": "1/time"}
    return xr.Dataset(
        {"trace_residual": (("trace", "step"), np.where(np.isfinite(residual), residual, np.nan), attrs)},
        {"trace": chosen, "step": np.arange(residual.shape[1]) * stride},
    )
