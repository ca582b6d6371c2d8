"""The solver probe: what Euler's method, Anderson acceleration and the root finder need to converge."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator

from dyneq.dynamics.solvers import NEAR, STALLED, Passage, anderson_passage, euler_passage, root_passage
from dyneq.errors import UsageError
from dyneq.probes.base import CERTIFICATE, COST, Finding, Params, Probe, Progress, annotate, silent
from dyneq.systems.protocol import System, Time


class SolverParams(Params):
    """Parameters of the solver probe."""

    target: tuple[float, ...] = Field((1e-2, 1e-4, 1e-6), min_length=1, description="force residuals to reach")
    euler_eps: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5), description="steps of Euler's method; a map has one step only, 1"
    )
    memory: tuple[int, ...] = Field((2, 5, 10), description="memories of Anderson acceleration")
    anderson_eps: tuple[float, ...] = Field((0.1, 0.2), description="mixing steps of Anderson; for a map 1")
    max_evaluations: int = Field(2000, ge=1, description="force evaluations each solver may use")
    root: bool = Field(True, description="also Newton's root finder")
    root_depth: int = Field(100, ge=0, description="steps of the relaxation the root finder starts from")
    seed: int = Field(0, description="seed of the root finder's starts")

    @field_validator("target", "euler_eps", "anderson_eps")
    @classmethod
    def _positive(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not 0 < value < float("inf"):
                raise ValueError(f"a step or a residual is positive and finite, not {value}")
        return tuple(sorted(set(values)))

    @field_validator("memory")
    @classmethod
    def _at_least_one(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for value in values:
            if value < 1:
                raise ValueError(f"a memory is at least 1 difference, not {value}")
        return tuple(sorted(set(values)))


class SolverProbe(Probe):
    """Force evaluations that Euler's method, Anderson acceleration and the root finder need to converge."""

    name = "solver"
    version = 1
    Params: ClassVar[type[Params]] = SolverParams

    def run(self, system: System, params: SolverParams, progress: Progress = silent) -> xr.Dataset:
        """Run every solver from the initial state; dimensions ``solver``, ``target``, ``sample``, ``evaluation``.

        Args:
            system: Any system.
            params: Solvers and targets.
            progress: Told how far the measurement is.

        Raises:
            UsageError: If no solver is left, or steps are asked for a map.
        """
        euler, mixing = _steps(system, params)
        plan = [("euler", e, 0) for e in euler]
        plan += [("anderson", e, m) for m in params.memory for e in mixing]
        plan += [("root finder", system.eps, 0)] if params.root else []
        if not plan:
            raise UsageError("no solver is left to run; give a step (--euler-eps), a memory, or --root")
        targets = tuple(sorted(params.target, reverse=True))
        budget, done = params.max_evaluations, []
        for i, (kind, eps, memory) in enumerate(plan):
            progress(_label(kind, eps, memory, system), i / len(plan))
            part = system if eps == system.eps else system.with_eps(eps)
            if kind == "euler":
                done.append(euler_passage(part, targets, budget))
            elif kind == "anderson":
                done.append(anderson_passage(part, memory, targets, budget))
            else:
                generator = torch.Generator().manual_seed(params.seed)
                done.append(root_passage(part, targets, budget, depth=params.root_depth, generator=generator))
        progress("done", 1.0)
        labels = [_label(*entry, system) for entry in plan]
        ds = _dataset(done, labels, plan, targets).assign_attrs(budget=budget, dtype_of_state=_dtype(system))
        return ds.assign_attrs(root_depth=params.root_depth)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return which solver is the cheapest that converges for all samples, and what never converges."""
        from dyneq.probes.solver_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the table of solvers."""
        from dyneq.probes.solver_summary import table_of

        return table_of(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the solvers as plain values."""
        from dyneq.probes.solver_summary import entries

        return entries(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the evaluations each solver needs, and the residual against them; ``ax`` is a pair of axes."""
        from dyneq.probes.solver_plot import plot_solver

        return plot_solver(ds, ax)


def _dtype(system: System) -> str:
    return str(system.initial_state().dtype).removeprefix("torch.")


def _steps(system: System, params: SolverParams) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the steps of Euler's method and of Anderson acceleration that the system allows."""
    if system.time is not Time.MAP:
        return params.euler_eps, params.anderson_eps
    for name in ("euler_eps", "anderson_eps"):
        steps = getattr(params, name)
        if steps not in {(), (1.0,), SolverParams.model_fields[name].default}:
            raise UsageError(
                f"{system.name} is a map: it is iterated with step 1 only, but {name.replace('_', '-')} {steps} was "
                "asked for; leave it out"
            )
    return (1.0,) if params.euler_eps else (), (1.0,) if params.anderson_eps else ()


def _label(kind: str, eps: float, memory: int, system: System) -> str:
    if kind == "root finder":
        return kind
    step = "" if system.time is Time.MAP else f" eps={eps:g}"
    if kind == "anderson":
        return f"anderson({memory}){step}"
    return f"euler{step}" if step else "iteration"


def _dataset(
    done: list[Passage], labels: list[str], plan: list[tuple[str, float, int]], targets: tuple[float, ...]
) -> xr.Dataset:
    def stack(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.stack([getattr(p, name).double().numpy() for p in done])

    evaluations = stack("evaluations")
    # of samples that never arrive the number is beyond all others, so the median is that of all samples
    ordered = np.where(np.isnan(evaluations), np.inf, evaluations)
    unit = "evaluations"

    def entry(dims: Any, values: Any, long_name: str, units: str = "") -> tuple[Any, Any, dict[str, str]]:
        return dims, values, {"long_name": long_name, "units": units}

    by = ("solver", "sample")
    each = ("solver", "target")
    variables = {
        "evaluations": entry(
            ("solver", "target", "sample"),
            evaluations,
            "force evaluations after which the force residual first met the target (of Euler's method: steps + 1); of "
            "the root finder with its relaxation, a Jacobian product counted as one and a token's as one over their "
            "number; NaN: never",
            unit,
        ),
        "median_evaluations": entry(
            each, np.median(ordered, axis=2), "median over all samples; infinite: half of them never arrive", unit
        ),
        "worst_evaluations": entry(
            each, ordered.max(axis=2), "of the slowest sample; infinite: one never arrives", unit
        ),
        "reached": entry(each, np.isfinite(evaluations).sum(2), "samples that met the target", "samples"),
        "best_residual": entry(by, stack("best"), "smallest force residual norm(F)/norm(z) on the way", "1/time"),
        "last_residual": entry(by, stack("last"), "force residual at the end", "1/time"),
        "gain": entry(
            by,
            stack("gain"),
            "decades by which the best residual fell in the second half of the budget, of samples that did not arrive",
            "1",
        ),
        "outcome": entry(
            by,
            np.array([p.outcome for p in done], dtype=object),
            f"reached: every target; falling: best residual fell by a factor {STALLED:g} in the second half of the "
            f"budget and the last is within a factor {NEAR:g} of it; stalled: not so; diverged; no root",
        ),
        "history": entry(
            ("solver", "evaluation", "sample"), stack("history"), "best residual so far; NaN: no longer run", "1/time"
        ),
        "kind": entry("solver", np.array([kind for kind, _, _ in plan], dtype=object), "kind of solver"),
        "solver_eps": entry("solver", np.array([e for _, e, _ in plan]), "step of the solver or its start", "time"),
        "memory": entry("solver", np.array([m for _, _, m in plan]), "differences Anderson keeps, 0 for others"),
        "spent": entry(by, stack("spent"), "evaluations asked for; more than needed where others took longer", unit),
        "seconds": entry("solver", np.array([p.seconds for p in done]), "time spent by the solver", "s"),
        "total_evaluations": entry(
            "solver", stack("spent").mean(1), "evaluations of the whole batch spent by the solver", unit
        ),
    }
    coords = {
        "solver": np.array(labels, dtype=object),
        "target": ("target", np.array(targets), {"long_name": "force residual to reach", "units": "1/time"}),
        "evaluation": ("evaluation", np.array(done[0].rows), {"long_name": "force evaluations", "units": unit}),
        "sample": np.arange(evaluations.shape[2]),
    }
    roles = {
        **dict.fromkeys(("seconds", "total_evaluations", "spent"), COST),
        **dict.fromkeys(("best_residual", "last_residual"), CERTIFICATE),
    }
    return annotate(xr.Dataset(variables, coords), bars={}, roles=roles)
