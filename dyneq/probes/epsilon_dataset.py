"""The dataset of an epsilon result: what its variables are, with units, error bars and roles."""

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.eps_sweep import ROWS, EpsRun
from dyneq.dynamics.observed_step import ObservedSteps
from dyneq.dynamics.roots import Roots
from dyneq.dynamics.step_bracket import StepBracket
from dyneq.probes.base import CERTIFICATE, EXACT, annotate
from dyneq.probes.epsilon_judge import Approach, Judgement, outcomes
from dyneq.probes.epsilon_prediction import Prediction, agreement

Array = NDArray[np.float64]

_BARS = {
    "growth": "growth_error",
    "critical_eps": "critical_eps_error",
    "observed_critical_eps": "observed_critical_eps_error",
    "rightmost_mu": "rightmost_error",
    "critical_mu": "critical_mu_error",
}
_ROLES = {
    **dict.fromkeys(("root_residual", "distance"), CERTIFICATE),
    **dict.fromkeys(("steps", "settled_after", "rightmost_token", "critical_token", "observed_token"), EXACT),
    **dict.fromkeys(("confirmed", "flow_unstable_observed"), EXACT),
}
_PREDICTED: dict[str, tuple[str, str]] = {
    "rightmost_mu": ("eigenvalue of J at the root with the largest real part, imaginary part not below 0", "1/time"),
    "rightmost_error": ("first-order estimate of its error, the root's included; NaN: not known", "1/time"),
    "rightmost_token": ("its token; -1 for whole samples, NaN without a root", ""),
    "critical_mu": ("eigenvalue that sets the critical step; NaN unless the flow is stable", "1/time"),
    "critical_mu_error": ("first-order estimate of its error; NaN: not known", "1/time"),
    "critical_token": ("its token; -1 for whole samples, NaN unless the flow is stable", ""),
    "critical_eps": ("foretold critical step, min over modes of -2 Re mu/abs(mu)^2; NaN unless the flow is stable", ""),
    "critical_eps_error": ("first-order estimate of its error; NaN: not known", ""),
}


def build(
    runs: list[EpsRun],
    *,
    own: int,
    asked: tuple[float, ...],
    roots: Roots,
    rows: NDArray[np.int64],
    foretold: list[Prediction],
    observed: ObservedSteps | None,
    approach: Approach,
    judged: list[Judgement],
    per_token: bool,
    tol: float,
) -> xr.Dataset:
    """Return the dataset of a measurement.

    Args:
        runs: Relaxations, by increasing step.
        own: Index of the system's own step.
        asked: Steps that were asked for.
        roots: Roots, one a sample.
        rows: Samples that have a root, in the order of ``foretold`` and ``observed``.
        foretold: Predictions at these roots.
        observed: Growth near them.
        approach: Where the relaxations ended with respect to the roots.
        judged: Verdicts, one a sample.
        per_token: Whether blocks are tokens.
        tol: Force residual called settled.
    """
    eps = np.array([r.eps for r in runs])
    variables: dict[str, Any] = {}

    def put(name: str, dims: Any, values: Any, long_name: str, units: str = "") -> None:
        variables[name] = (dims, values, {"long_name": long_name, "units": units})

    def words(name: str, dims: Any, values: Any, long_name: str) -> None:
        put(name, dims, np.array(values, dtype=object), long_name)

    at = ("eps", "sample")
    put("steps", "eps", np.array([float(r.steps) for r in runs]), "steps the relaxation stands for", "steps")
    put("end_time", "eps", np.array([r.time for r in runs]), "time n eps reached, the horizon to the next step", "time")
    put("force_residual", at, _rows(runs, "force"), "norm(F)/norm(z) at the end, which does not know eps", "1/time")
    put("step_residual", at, _rows(runs, "step"), "eps norm(F)/norm(z) at the end; not evidence of convergence", "1")
    words("outcome", at, [[str(o) for o in outcomes(r)] for r in runs], "how the relaxation ended")
    first = np.stack([r.first_within.cpu().numpy() for r in runs]).astype(np.float64)
    put("settled_after", at, np.where(first < 0, np.nan, first), f"steps until first within {tol:g}", "steps")
    tail = np.stack([r.tail_rate.double().cpu().numpy() for r in runs])
    put("tail_rate", at, tail, "rate at which the largest residual fell from the third to the last quarter", "1/time")
    put(
        "distance",
        at,
        approach.distance,
        "relative distance of the end from the root; NaN without a root or where lost",
        "1",
    )
    put(
        "history",
        ("eps", "time", "sample"),
        _history(runs),
        "norm(F)/norm(z) at the step nearest to the time",
        "1/time",
    )
    _observed(put, eps, observed, rows, len(judged), per_token)
    _predicted(put, foretold, rows, len(judged), per_token)
    kinds = {int(s): p for s, p in zip(rows, foretold, strict=True)}
    blank = [""] * len(judged)
    words("verdict", "sample", [str(j.blame) for j in judged], "who is to blame at the system's own step")
    words("reason", "sample", [j.reason for j in judged], "why")
    flow = [kinds[i].instability if i in kinds else "" for i in range(len(judged))]
    words("flow_kind", "sample", flow, "how the flow leaves the root: hopf, real, unresolved; empty where it does not")
    step = [kinds[i].step_instability if i in kinds else "" for i in range(len(judged))]
    words("step_kind", "sample", step, "what Euler does above the critical step: neimark-sacker, flip, unresolved")
    words(
        "agreement", "sample", _agreements(blank, foretold, observed, rows), "of critical steps foretold and observed"
    )
    put("needed_time", "sample", np.array([j.needed_time for j in judged]), "time it is foretold to settle at", "time")
    put(
        "confirmed",
        "sample",
        np.array([j.confirmed for j in judged]),
        "1: settles or nears the root below the critical step, 0: not, NaN: none tried",
    )
    words("root_status", "sample", [s.value for s in roots.status], "whether a root was found")
    put("root_residual", "sample", roots.residual.double().cpu().numpy(), "norm(F)/norm(z) at the root", "1/time")
    coords = {
        "eps": ("eps", eps, {"long_name": "step size", "units": "time"}),
        "time": ("time", _grid(runs), {"long_name": "time n eps", "units": "time"}),
        "sample": np.arange(len(judged)),
    }
    ds = xr.Dataset(variables, coords)
    for name in ("critical_eps", "critical_eps_error"):
        ds[name].attrs["units"] = "time"
    asked_for = [float(e) for e in asked]
    ds = ds.assign_attrs(eps_asked=asked_for, own_eps=float(eps[own]), tol=tol)
    return annotate(ds, bars=_BARS, roles=_ROLES)


def _rows(runs: list[EpsRun], name: str) -> Array:
    return np.stack([getattr(r.residuals, name).double().cpu().numpy() for r in runs])


def _grid(runs: list[EpsRun]) -> Array:
    return np.linspace(0.0, max(r.time for r in runs), ROWS)


def _history(runs: list[EpsRun]) -> Array:
    """Return the force residual of every run on one grid of times, ``[eps, time, sample]``; NaN after its end."""
    grid, table = _grid(runs), []
    for run in runs:
        times = run.eps * np.array(run.history_steps, dtype=np.float64)
        values = run.history.double().cpu().numpy()
        nearest = np.abs(times[:, None] - grid[None, :]).argmin(0)
        past = grid > run.time + run.eps
        table.append(np.where(past[:, None], np.nan, values[nearest]))
    return np.stack(table)


def _observed(
    put: Any,
    eps: Array,
    observed: ObservedSteps | None,
    rows: NDArray[np.int64],
    samples: int,
    per_token: bool,
) -> None:
    growth, bar = np.full((2, len(eps), samples), np.nan)
    low, high, middle, half, token, flow = np.full((6, samples), np.nan)
    if observed is not None:
        with np.errstate(invalid="ignore"):
            width = np.maximum(observed.high - observed.rate, observed.rate - observed.low)
        growth[:, rows] = observed.rate / eps[:, None]
        bar[:, rows] = np.where(np.isfinite(width), width, np.nan) / eps[:, None]
        low[rows] = [b.low for b in observed.brackets]
        high[rows] = [b.high for b in observed.brackets]
        middle[rows] = [0.5 * (b.low + b.high) if b.closed else math.nan for b in observed.brackets]
        half[rows] = [0.5 * (b.high - b.low) if b.closed else math.nan for b in observed.brackets]
        token[rows] = observed.block if per_token else -1
        flow[rows] = [float(b.flow_unstable) for b in observed.brackets]
    where = "growth of a small displacement from the root, of its fastest token or of the sample"
    put("growth", ("eps", "sample"), growth, f"{where}; above 0: the step is unstable", "1/time")
    put("growth_error", ("eps", "sample"), bar, "half-width of its bounds; NaN: not known", "1/time")
    put("observed_low", "sample", low, "displacements decay up to this step; 0: none seen to", "time")
    put("observed_high", "sample", high, "displacements grow above this step; infinite: none seen to", "time")
    put(
        "observed_critical_eps", "sample", middle, "critical step as observed; NaN unless bounded on both sides", "time"
    )
    put("observed_critical_eps_error", "sample", half, "half-width of its bounds", "time")
    put("observed_token", "sample", token, "fastest token at the step measured next to the critical one; -1: none")
    put(
        "flow_unstable_observed",
        "sample",
        flow,
        "1: growth at the smallest steps, extended to eps = 0, is above 0: no step is stable",
    )


def _predicted(put: Any, foretold: list[Prediction], rows: NDArray[np.int64], samples: int, per_token: bool) -> None:
    columns: dict[str, NDArray[Any]] = {
        name: np.full(samples, np.nan, dtype=np.complex128 if name.endswith("mu") else np.float64)
        for name in _PREDICTED
    }
    for i, p in zip(rows.tolist(), foretold, strict=True):
        width = max(p.high - p.step, p.step - p.low)
        values = {
            "rightmost_mu": p.rightmost,
            "rightmost_error": p.rightmost_error,
            "rightmost_token": p.rightmost_block if per_token else -1,
            "critical_mu": p.critical,
            "critical_mu_error": p.critical_error,
            "critical_token": math.nan if p.critical_block < 0 else p.critical_block if per_token else -1,
            "critical_eps": p.step,
            "critical_eps_error": width if math.isfinite(width) else math.nan,
        }
        for name, value in values.items():
            columns[name][i] = value
    for name, (long_name, units) in _PREDICTED.items():
        put(name, "sample", columns[name], long_name, units)


def _agreements(
    blank: list[str], foretold: list[Prediction], observed: ObservedSteps | None, rows: NDArray[np.int64]
) -> list[str]:
    brackets: list[StepBracket] = [] if observed is None else observed.brackets
    named = list(blank)
    for i, p, b in zip(rows.tolist(), foretold, brackets, strict=True):
        named[i] = agreement(p, b)
    return [word or "untested" for word in named]
