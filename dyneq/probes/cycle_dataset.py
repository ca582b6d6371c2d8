"""The variables of a cycle result, their names, units, error bars and roles."""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.attractor import Followed
from dyneq.dynamics.attractor_kinds import Attractor, AttractorKind
from dyneq.dynamics.monitor import Record
from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate
from dyneq.probes.cycle_floquet import Multipliers
from dyneq.systems.protocol import System, Time

#: Rows of the last stretch of an orbit that are kept, for the phase portrait.
INSTANTS = 1024

_ATTRIBUTES = {
    "kind": ("what the sample ends on", ""),
    "token": ("token at which the motion starts; -1 where nothing moves or there are no tokens", ""),
    "force_residual": ("largest norm(F)/norm(z) over the last tenth of the record", "1/time"),
    "decay_kind": ("how the force residual falls over the record", ""),
    "decay_rate": ("rate at which it falls", "1/step"),
    "decay_rate_error": ("standard error of the rate, with the disagreement of both halves of the stretch", "1/step"),
    "decay_exponent": ("p where it falls as step^-p; NaN where it does not", "1"),
    "decay_exponent_error": ("standard error of the exponent of the power law", "1"),
    "predicted_steps": ("further steps to the tolerance, if it goes on falling as it does; NaN where unknown", "step"),
    "period_steps": ("period of the relaxation map's oscillation, a real number", "step"),
    "period_steps_error": ("standard error of the period, from the phases of parts of the record", "step"),
    "period_time": ("the same in units of time; Euler's own, see orbit_period for the flow's", "time"),
    "period_time_error": ("standard error of the same", "time"),
    "amplitude": ("root mean square distance from the time mean, relative to that of norm(z)", "1"),
    "amplitude_spread": ("largest relative deviation of the amplitude of a part of the record", "1"),
    "amplitude_trend": ("change of the logarithm of the amplitude over the record", "1"),
    "amplitude_trend_error": ("standard error of the trend", "1"),
    "periods": ("periods in the record; an amplitude is called stationary over at least 10", "1"),
    "stationary": ("1 where the amplitude stands still over at least ten periods, 0 where not, NaN at rest", ""),
    "misfit": ("root of the share of the signal's variance that is not periodic", "1"),
    "recurrence": ("closest return of the projections after about a period, relative to the amplitude", "1"),
    "second_gap": ("relative difference of the amplitudes that two starts end with; NaN without a second", "1"),
    "zero_one": ("0-1 test: median correlation, near 1 for chaos, near 0 for regular motion", "1"),
    "zero_one_spread": ("half of the interquartile range of the same over the test's frequencies", "1"),
    "lyapunov": ("leading Lyapunov exponents of the relaxation map", "1/step"),
    "lyapunov_error": ("standard errors of the exponents, by batch means", "1/step"),
    "of_the_flow": ("1 where the flow cycles too, 0 where it comes to rest, NaN where not shown", ""),
    "orbit_period": ("period of the orbit that shooting found: time of the flow, steps of a map", "time or step"),
    "orbit_period_error": ("estimated error of that period by step doubling", "time or step"),
    "orbit_closure": ("distance of the orbit's end from its start, relative to its amplitude", "1"),
    "orbit_amplitude": ("amplitude of the orbit relative to that of the relaxation's own cycle", "1"),
    "multiplier": ("Floquet multipliers of the orbit", "1"),
    "log_multiplier": ("logarithm of the modulus of the multipliers, where they are too small for numbers too", "1"),
    "log_multiplier_error": ("estimated error of the logarithm", "1"),
    "multiplier_token": ("token each multiplier belongs to; -1 without tokens", ""),
    "trivial_error": ("abs(mu - 1) of the multiplier nearest to 1, which a flow must have; NaN for maps", "1"),
    "flow_error": ("norm(M F - F)/norm(F) around the orbit, 0 for the exact flow; NaN for maps", "1"),
    "evidence": ("what supports the verdict", ""),
    "against": ("what speaks against it or is missing", ""),
    "evaluations": ("forces of the sample evaluated, a product with its Jacobian counted as one", "1"),
    "seconds": ("time it took", "s"),
    "history_step": ("last step of each block of the history", "step"),
    "history_high": ("largest force residual in the block; NaN beyond history_rows", "1/time"),
    "history_low": ("least force residual in the block; NaN beyond history_rows", "1/time"),
    "history_rows": ("blocks recorded of the sample: later ones only of samples that move", ""),
    "branch_norm": ("mean norm of each branch of the force, and of the state, over blocks of the transient", "1"),
    "branch_step": ("first step of each block of the branch norms", "step"),
    "orbit_projection": ("last stretch of the state on its two leading principal components", "1"),
    "orbit_step": ("step of each instant of that stretch, from the end of the first look", "step"),
}
_BARS = {
    "decay_rate": "decay_rate_error",
    "decay_exponent": "decay_exponent_error",
    "period_steps": "period_steps_error",
    "period_time": "period_time_error",
    "amplitude_trend": "amplitude_trend_error",
    "zero_one": "zero_one_spread",
    "lyapunov": "lyapunov_error",
    "orbit_period": "orbit_period_error",
    "log_multiplier": "log_multiplier_error",
}
_CERTIFICATES = (
    "force_residual",
    "amplitude_spread",
    "misfit",
    "recurrence",
    "second_gap",
    "orbit_closure",
    "trivial_error",
    "flow_error",
)
_EXACT = ("token", "stationary", "of_the_flow", "multiplier_token", "history_rows")
_ROLES = {
    **dict.fromkeys(_CERTIFICATES, CERTIFICATE),
    **dict.fromkeys(_EXACT, EXACT),
    **dict.fromkeys(("evaluations", "seconds"), COST),
}


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Return a cycle result with names, units, error bars and roles."""
    for name, (long_name, units) in _ATTRIBUTES.items():
        if name in ds:
            ds[name].attrs.update(long_name=long_name, units=units)
    return annotate(ds, bars=_BARS, roles=_ROLES)


def attractor_variables(
    system: System, followed: Followed, found: dict[int, Multipliers], evaluations: int
) -> dict[str, Any]:
    """Return what every sample ends on as variables over samples, exponents and modes.

    Args:
        system: The system.
        followed: Its samples.
        found: Floquet multipliers, by sample.
        evaluations: Forces of each sample in the transient.
    """
    attractors = followed.attractors
    step = system.eps if system.time is Time.FLOW else 1.0
    columns = [_row(a, step) for a in attractors]
    variables: dict[str, Any] = {
        name: ("sample", np.array([c[name] for c in columns], dtype=object if name in _WORDS else np.float64))
        for name in columns[0]
    }
    if not system.structure.causal:
        del variables["token"]
    extra = followed.look.evaluations
    moved = set(followed.moving)
    variables["evaluations"] = (
        "sample",
        np.array([float(evaluations + a.evaluations + (extra if i in moved else 0)) for i, a in enumerate(attractors)]),
    )
    k = max((len(a.exponents) for a in attractors), default=0)
    for name, source in (("lyapunov", "exponents"), ("lyapunov_error", "exponent_errors")):
        filled = np.full((len(attractors), k), np.nan)
        for i, a in enumerate(attractors):
            filled[i, : len(getattr(a, source))] = getattr(a, source)
        variables[name] = (("sample", "exponent"), filled)
    return {**variables, **_modes(found, len(attractors))}


_WORDS = ("kind", "decay_kind", "evidence", "against")


def _row(a: Attractor, step: float) -> dict[str, Any]:
    """Return one sample's numbers and words."""
    o, orbit, nan = a.first, a.orbit, math.nan
    moves = a.kind not in (AttractorKind.FIXED_POINT, AttractorKind.DIVERGED)
    gap = nan
    if o is not None and a.second is not None:
        gap = abs(o.amplitude - a.second.amplitude) / max(o.amplitude, a.second.amplitude)
    flow = nan if a.of_the_flow is None else float(a.of_the_flow)
    return {
        "kind": a.kind.value,
        "token": float(a.token),
        "force_residual": a.residual,
        "decay_kind": "" if a.decay is None else a.decay.kind.value,
        "decay_rate": nan if a.decay is None else a.decay.rate,
        "decay_rate_error": nan if a.decay is None else a.decay.rate_error,
        "decay_exponent": nan if a.decay is None else a.decay.exponent,
        "decay_exponent_error": nan if a.decay is None else a.decay.exponent_error,
        "predicted_steps": a.predicted_steps,
        "period_steps": a.period_steps,
        "period_steps_error": a.period_error,
        "period_time": a.period_steps * step,
        "period_time_error": a.period_error * step,
        "amplitude": a.amplitude,
        "amplitude_spread": o.spread if o is not None and moves else nan,
        "amplitude_trend": o.trend if o is not None and moves else nan,
        "amplitude_trend_error": o.trend_error if o is not None and moves else nan,
        "periods": o.periods if o is not None and moves else nan,
        "stationary": float(o.stationary) if o is not None and moves else nan,
        "misfit": o.misfit if o is not None and moves else nan,
        "recurrence": o.recurrence if o is not None and moves else nan,
        "second_gap": gap,
        "zero_one": a.zero_one,
        "zero_one_spread": a.zero_one_spread,
        "of_the_flow": flow,
        "orbit_period": nan if orbit is None else orbit.period,
        "orbit_period_error": nan if orbit is None else orbit.period_error,
        "orbit_closure": nan if orbit is None else orbit.closure,
        "orbit_amplitude": nan if orbit is None else orbit.amplitude / a.cycle_size,
        "evidence": "; ".join(a.evidence),
        "against": "; ".join(a.against),
    }


def _modes(found: dict[int, Multipliers], samples: int) -> dict[str, Any]:
    """Return the Floquet multipliers, NaN where a sample has none."""
    k = max((len(m.token) for m in found.values()), default=0)
    multiplier = np.full((samples, k), complex(np.nan, np.nan))
    log, error, token = (np.full((samples, k), np.nan) for _ in range(3))
    trivial, flow = np.full(samples, np.nan), np.full(samples, np.nan)
    for i, m in found.items():
        if m.found is None:
            continue
        n = len(m.token)
        multiplier[i, :n], log[i, :n] = m.found.multipliers, m.found.log_modulus
        error[i, :n], token[i, :n] = m.found.log_error, m.token
        trivial[i], flow[i] = m.found.trivial_error, m.found.flow_error
    dims = ("sample", "mode")
    return {
        "multiplier": (dims, multiplier),
        "log_multiplier": (dims, log),
        "log_multiplier_error": (dims, error),
        "multiplier_token": (dims, token),
        "trivial_error": ("sample", trivial),
        "flow_error": ("sample", flow),
    }


def history_variables(followed: Followed, transient: Record) -> dict[str, Any]:
    """Return the residual of every sample over the blocks of transient, first look and record."""
    samples = transient.z.shape[0]
    parts: list[tuple[Record, list[int]]] = [(transient, list(range(samples)))]
    if followed.moving:
        parts.append((followed.look, list(range(samples))))
    if followed.record is not None:
        parts.append((followed.record, followed.moving))
    rows = [len(r.history.start) for r, _ in parts]
    high, low = np.full((sum(rows), samples), np.nan), np.full((sum(rows), samples), np.nan)
    step, at, done = np.zeros(sum(rows)), 0, 0
    count = np.zeros(samples)
    for (record, members), n in zip(parts, rows, strict=True):
        past = record.history
        high[at : at + n, members] = _numbers(past.residual_max)
        low[at : at + n, members] = _numbers(past.residual_min)
        step[at : at + n] = done + (past.start + past.count).numpy()
        at, done = at + n, done + record.steps
        count[members] = at
    variables: dict[str, Any] = {
        "history_step": ("row", step),
        "history_high": (("row", "sample"), high),
        "history_low": (("row", "sample"), low),
        "history_rows": ("sample", count),
    }
    if transient.branches:
        names = list(transient.branches)
        values = np.stack([_numbers(v) for v in transient.branches.values()])
        variables |= {
            "branch_norm": (("branch", "block", "sample"), values),
            "branch_step": ("block", transient.branch_start.numpy()),
            "branch": ("branch", np.array(names, dtype=object)),
        }
    return variables


def window_variables(followed: Followed) -> dict[str, Any]:
    """Return the last stretch of every moving sample on its two leading principal components."""
    samples = len(followed.attractors)
    record = followed.record
    if record is None:
        empty = np.zeros((samples, 0, 2))
        return {"orbit_projection": (("sample", "instant", "axis"), empty), "orbit_step": ("instant", np.zeros(0))}
    steps = record.window_steps[-INSTANTS:].numpy()
    values = np.full((samples, len(steps), 2), np.nan)
    for row, i in enumerate(followed.moving):
        x = _numbers(record.projections[-INSTANTS:, row])
        if not np.isfinite(x).all():
            continue
        x = x - x.mean(0)
        values[i] = x @ np.linalg.svd(x, full_matrices=False)[2][:2].T
    return {
        "orbit_projection": (("sample", "instant", "axis"), values),
        "orbit_step": ("instant", steps.astype(np.float64)),
    }


def _numbers(values: torch.Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
