"""The epsilon probe: relaxations with several step sizes at equal time, and the critical step foretold and observed."""

import math
import time
from typing import Any, ClassVar

import torch
import xarray as xr
from pydantic import Field, field_validator
from torch import Tensor

from dyneq.dynamics.counting import counted
from dyneq.dynamics.eps_sweep import EpsRun, sweep_eps
from dyneq.dynamics.observed_step import ObservedSteps, observe_steps
from dyneq.dynamics.relax import Relaxation, default_tolerance
from dyneq.dynamics.residuals import least_size, relative_size, sample_norm
from dyneq.dynamics.roots import Roots, find_root
from dyneq.dynamics.rootview import view_roots
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Trajectory
from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.epsilon_dataset import build
from dyneq.probes.epsilon_judge import Approach, Blame, Evidence, Judgement, judge
from dyneq.probes.epsilon_prediction import Prediction, predictions
from dyneq.systems.protocol import System, Time


class EpsilonParams(Params):
    """Parameters of the epsilon probe."""

    eps: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5), min_length=1, description="step sizes; the system's own is always tried as well"
    )
    horizon: float = Field(80.0, gt=0, allow_inf_nan=False, description="time n eps all relaxations end at")
    tol: float | None = Field(None, gt=0, description="force residual called settled; default 1e-6, in float32 1e-5")
    refine: int = Field(4, ge=0, description="further steps tried near each root to close in on the critical one")
    seed: int = Field(0, description="seed of the displacements and of root starts")

    @field_validator("eps")
    @classmethod
    def _positive(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        for step in steps:
            if not 0 < step < math.inf:
                raise ValueError(f"a step size is positive and finite, not {step}")
        return tuple(sorted(set(steps)))


class EpsilonProbe(Probe):
    """Who is to blame where a relaxation does not settle: the flow, or Euler's step size.

    Every step size is run to the same time n eps and judged by the force residual. At the root the eigenvalues foretell
    the critical step; small displacements from the root, which grow above it and decay below, show it.
    """

    name = "epsilon"
    version = 1
    Params: ClassVar[type[Params]] = EpsilonParams
    overrides = frozenset({"eps"})

    def check(self, system: System) -> None:
        """Verify that the system is a flow.

        Raises:
            UsageError: If it is a map.
        """
        super().check(system)
        if system.time is Time.MAP:
            raise UsageError(
                f"{system.name} is a map: its steps are the dynamics themselves, so there is no eps to vary or to "
                "blame; dyneq spectrum shows its multipliers"
            )

    def run(self, system: System, params: EpsilonParams, progress: Progress = silent) -> xr.Dataset:
        """Measure; dimensions ``eps``, ``sample`` and ``time``.

        Args:
            system: A flow.
            params: Step sizes, horizon and tolerance.
            progress: Told how far the measurement is.
        """
        self.check(system)
        begun = time.perf_counter()
        meter = counted(system)
        tol = default_tolerance(system.initial_state().dtype) if params.tol is None else params.tol
        steps = sorted({*params.eps, system.eps})
        own = steps.index(system.eps)
        progress(f"relaxing with {len(steps)} step sizes to time {params.horizon:g}", 0.0)
        runs = sweep_eps(meter, steps, params.horizon, tol=tol)
        sweep_forces = sum(r.forces for r in runs)
        progress("finding roots", 0.4)
        roots = find_root(
            meter,
            relaxation=_best_of(meter, runs, own, tol),
            generator=torch.Generator().manual_seed(params.seed),
        )
        index = roots.found.nonzero().flatten()
        foretold: list[Prediction] = []
        observed: ObservedSteps | None = None
        if len(index):
            at = index.to(roots.z.device)
            part = meter if len(index) == len(roots.status) else meter.select(at)
            progress("eigenvalues at the roots", 0.5)
            generator = torch.Generator().manual_seed(params.seed)
            foretold = predictions(view_roots(part, roots.z[at], generator=generator))
            progress("displacements from the roots", 0.6)
            observed = observe_steps(
                part,
                roots.z[at],
                steps,
                params.horizon,
                rounds=params.refine,
                generator=torch.Generator().manual_seed(params.seed),
            )
        approach = _approach(system, runs, roots)
        judged = _judge(runs, own, approach, foretold, observed, index.tolist(), len(roots.status), tol)
        ds = build(
            runs,
            own=own,
            asked=params.eps,
            roots=roots,
            rows=index.numpy(),
            foretold=foretold,
            observed=observed,
            approach=approach,
            judged=judged,
            per_token=system.structure.causal,
            tol=tol,
        )
        costs = {
            "sweep_evaluations": (float(sweep_forces), "force evaluations of the whole batch for the relaxations", "1"),
            "evaluations": (
                meter.cost.total,
                "force evaluations and Jacobian products of the whole batch in all, the relaxations included",
                "1",
            ),
            "seconds": (time.perf_counter() - begun, "time spent", "s"),
        }
        for name, (value, long_name, units) in costs.items():
            ds[name] = ((), value, {"long_name": long_name, "units": units, "role": "cost"})
        progress("done", 1.0)
        return ds

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return who is to blame for what does not settle, and how foretold and observed critical steps compare."""
        from dyneq.probes.epsilon_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return a table of the steps and one of the samples."""
        from dyneq.probes.epsilon_summary import tables

        return tables(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the steps and the samples as plain values."""
        from dyneq.probes.epsilon_summary import entries

        return entries(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the residual at equal time for every step and sample, and its course; ``ax`` is a pair of axes."""
        from dyneq.probes.epsilon_plot import plot_epsilon

        return plot_epsilon(ds, ax)


def _best_of(system: System, runs: list[EpsRun], own: int, tol: float) -> Relaxation:
    """Return as a start for the roots what settled at the own step, else the end with the smallest residual."""
    ends = torch.stack([r.z for r in runs])
    residual = torch.stack([r.residuals.force for r in runs])
    residual = torch.where(torch.isfinite(residual), residual, torch.inf)
    best = residual.argmin(0)
    best = torch.where(residual[own] <= tol, own, best)
    z = ends[best, torch.arange(ends.shape[1], device=ends.device)]
    run = runs[own]
    empty = z.new_empty(0, z.shape[0])
    # a root must be found in any case, so what overflowed at every step starts over
    z = torch.where(torch.isfinite(z).flatten(1).all(1).view(-1, *[1] * (z.ndim - 1)), z, system.initial_state())
    trajectory = Trajectory(run.eps, empty, z.new_empty(0, z.shape[0], 0), None, run.mean)
    return Relaxation(
        z, run.steps, run.steps, run.residuals, [Status.MAX_STEPS] * len(z), tol, run.eps, False, trajectory
    )


def _approach(system: System, runs: list[EpsRun], roots: Roots) -> Approach:
    """Return how far the ends are from the roots, and how fast they came nearer."""
    least = least_size(system)
    scale = torch.maximum(sample_norm(roots.z), least)
    rows: list[list[Tensor]] = []
    for run in runs:
        distance = relative_size(run.z - roots.z, roots.z, least)
        before = relative_size(run.late - roots.z, roots.z, least)
        rate = (before / distance).log() / (run.eps * (run.steps - 3 * run.steps // 4))
        table = [distance, rate, run.residuals.absolute / scale]
        found = roots.found.to(distance.device)
        rows.append([torch.where(found & torch.isfinite(x), x, torch.nan) for x in table])
    parts = [torch.stack(column).double().cpu().numpy() for column in zip(*rows, strict=True)]
    return Approach(*parts)


def _judge(
    runs: list[EpsRun],
    own: int,
    approach: Approach,
    foretold: list[Prediction],
    observed: ObservedSteps | None,
    rows: list[int],
    samples: int,
    tol: float,
) -> list[Judgement]:
    judged = [Judgement(Blame.UNDETERMINED, "no root was found to compare with")] * samples
    for row, sample in enumerate(rows):
        assert observed is not None
        judged[sample] = judge(
            Evidence.collect(runs, own, sample, approach.of(sample), foretold[row], observed, row, tol)
        )
    return judged
