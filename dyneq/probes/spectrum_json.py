"""A spectrum result as the plain values ``--json`` prints; whatever is undefined is None."""

import math
from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.spectrum_verdict import Verdict, verdicts

_OVERALL = ("abscissa", "spectral_radius", "critical_eps", "numerical_abscissa")


def json_entry(state: xr.Dataset) -> dict[str, Any]:
    """Return one state of a result.

    ``abscissa``, ``spectral_radius``, ``critical_eps`` and ``numerical_abscissa`` are the extremes over samples at a
    fixed point, None if there is none; ``passing`` has those of the other samples that were linearised, for which no
    critical step is given. ``force_residual`` is the worst of the samples that were linearised.
    """
    judged = verdicts(state)
    lost = [v is Verdict.LOST for v in judged]
    passing = [i for i, v in enumerate(judged) if v is Verdict.PASSING]
    fixed = [i for i, v in enumerate(judged) if v not in (Verdict.LOST, Verdict.PASSING)]
    root = str(state["state"].item()) == "root"
    used = state["force_residual"].values[[i for i, gone in enumerate(lost) if not gone]]
    residual = number(used.max()) if len(used) else None
    entry: dict[str, Any] = {
        "depth": None if root else int(state["depth"].item()),
        "state": str(state["state"].item()),
        "force_residual": residual,
        "step_residual": None if residual is None else float(state.attrs["eps"]) * residual,
        **_extremes(state.isel(sample=fixed)),
        "fixed_points": len(fixed),
        "passing": None,
        "method": str(state["method"].item()),
        "leading": _leading(state),
        "matvecs": int(state["matvecs"].item()),
        "seconds": number(state["seconds"]),
        "samples": {
            "status": [str(s) for s in state["status"].values],
            "start": [str(s) for s in state["start"].values],
            "verdict": [str(v) for v in judged],
        },
    }
    if passing:
        entry["passing"] = {"samples": len(passing), **_extremes(state.isel(sample=passing)), "critical_eps": None}
    for name in ("force_residual", "step_residual", *_OVERALL, "pairs_converged"):
        if name in state:
            entry["samples"][name] = [number(v) for v in state[name].values]
    return entry


def _extremes(state: xr.Dataset) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(_OVERALL)
    if not state.sizes["sample"]:
        return found
    for name in ("abscissa", "spectral_radius", "numerical_abscissa"):
        if name in state:
            found[name] = number(state[name].max())
    if "critical_eps" in state and not state["critical_eps"].isnull().any():
        found["critical_eps"] = number(state["critical_eps"].min())  # undefined once one sample's flow is unstable
    return found


def _leading(state: xr.Dataset) -> list[dict[str, Any]]:
    if "modulus" not in state:
        return []
    rows = []
    for mode in range(state.sizes["mode"]):
        row = state.isel(mode=mode)
        if np.isnan(row["modulus"].item()):
            continue
        mu, multiplier = complex(row["mu"].item()), complex(row["multiplier"].item())
        token = int(row["mode_token"].item())
        rows.append(
            {
                "mu": [mu.real, mu.imag],
                "multiplier": [multiplier.real, multiplier.imag],
                "modulus": float(row["modulus"].item()),
                "sample": int(row["mode_sample"].item()),
                "token": None if token < 0 else token,
                "residual": number(row["residual"]),
                "condition": number(row["condition"]),
                "error": number(row["error"]),
                "converged": bool(row["converged"].item()),
            }
        )
    return rows


def number(value: Any) -> float | None:
    """Return a value as a float, None if it is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None
