"""Reading a spectrum result: sentences for people, entries for ``--json``."""

import math
from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding


def state_label(ds: xr.Dataset) -> str:
    """Return ``depth 800`` or ``root`` for a result at one state."""
    return "root" if str(ds["state"].item()) == "root" else f"depth {int(ds['depth'].item())}"


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of every state of a spectrum result."""
    findings = []
    for i in range(ds.sizes["depth"]):
        findings += _summarize_state(ds.isel(depth=i))
    return findings


def _summarize_state(state: xr.Dataset) -> list[Finding]:
    label, samples = state_label(state), state.sizes["sample"]
    status = [str(s) for s in state["status"].values]
    away = [i for i, s in enumerate(status) if s != "converged"]
    worst = float(state["force_residual"].max()) if state["force_residual"].notnull().any() else math.nan
    found = []
    if away and label == "root":
        found.append(Finding("undetermined", f"{label}: no root found for {_some(away, samples)}; they are left out"))
    elif away:
        found.append(
            Finding(
                "warning",
                f"{label}: {_some(away, samples)} not at a fixed point (worst force residual {worst:.1e}): eigenvalues "
                "there belong to a passing state; see --at root",
            )
        )
    else:
        found.append(Finding("fact", f"{label}: every sample at a fixed point (worst force residual {worst:.1e})"))
    if "modulus" not in state:
        return found
    unsure = int((state["converged"] == 0).sum())
    if unsure:
        found.append(Finding("warning", f"{label}: {unsure} of the leading pairs did not converge; they are marked"))
    # nothing is said of the stability of a passing state
    settled = state.isel(sample=[i for i, s in enumerate(status) if s == "converged"])
    if not settled.sizes["sample"]:
        found.append(Finding("undetermined", f"{label}: without a fixed point nothing is called stable or unstable"))
    elif "abscissa" in state:
        found += _flow_findings(settled, label)
    else:
        radius = float(settled["spectral_radius"].max())
        unstable = int((settled["spectral_radius"] > 1).sum())
        word = f"unstable in {unstable} samples" if unstable else "stable at every fixed point reached"
        found.append(Finding("fact", f"{label}: spectral radius {radius:.6f}: the map is {word}"))
    return found


def _flow_findings(state: xr.Dataset, label: str) -> list[Finding]:
    """Return what the rightmost pair and the critical step say about a flow, for samples at a fixed point."""
    eps = float(state.attrs.get("eps", math.nan))
    samples = state.sizes["sample"]
    unstable, beyond = int((state["abscissa"] > 0).sum()), int((state["critical_eps"] < eps).sum())
    found = []
    if unstable:
        mu, where = worst_pair(state, "rightmost")
        kind = "a complex pair (oscillation)" if abs(mu.imag) > 1e-8 else "a real eigenvalue (no oscillation)"
        text = f"flow unstable at {unstable} of {samples} fixed points; rightmost {show_mu(mu)} at {where}, {kind}"
        found.append(Finding("fact", f"{label}: {text}"))
    if beyond:
        mode, where = worst_pair(state.isel(sample=(state["abscissa"] < 0).values), "critical")
        smallest = f"smallest {float(state['critical_eps'].min()):.4f}, set by {show_mu(mode)} at {where}"
        text = (
            f"flow stable at {beyond} of {samples} fixed points, but eps={eps:g} exceeds their critical step "
            f"({smallest}): Euler makes that oscillation"
        )
        found.append(Finding("fact", f"{label}: {text}"))
    if not found:
        mu, where = worst_pair(state, "rightmost")
        text = f"flow and step stable at {samples} of {samples} fixed points; rightmost {show_mu(mu)} at {where}, "
        found.append(Finding("fact", f"{label}: {text}smallest critical step {float(state['critical_eps'].min()):.4f}"))
    return found


def worst_pair(state: xr.Dataset, target: str) -> tuple[complex, str]:
    """Return the most extreme eigenvalue of a target over all blocks of one state, and its address in words."""
    mu = state[f"{target}_mu"]
    key = mu.real if target == "rightmost" else 2 * mu.real / np.abs(mu) ** 2
    values = np.where(np.isnan(key.values), -np.inf, key.values)
    at = np.unravel_index(int(values.argmax()), values.shape)
    place = f"sample {int(mu['sample'].values[at[0]])}" + (f", token {int(at[1])}" if len(at) > 1 else "")
    return complex(mu.values[at]), place


def show_mu(mu: complex) -> str:
    """Return an eigenvalue as ``+0.4400 +- 0.2430i``."""
    return f"{mu.real:+.4f}" + (f" +- {abs(mu.imag):.4f}i" if abs(mu.imag) > 1e-12 else "")


def _some(which: list[int], samples: int) -> str:
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"


def json_entry(state: xr.Dataset) -> dict[str, Any]:
    """Return one state of a result as the plain values ``--json`` prints; whatever is undefined is None."""
    root = str(state["state"].item()) == "root"
    entry: dict[str, Any] = {
        "depth": None if root else int(state["depth"].item()),
        "state": str(state["state"].item()),
        "force_residual": _number(state["force_residual"].max()),
        "step_residual": _number(state["step_residual"].max()),
        "abscissa": _number(state["abscissa"].max()) if "abscissa" in state else None,
        "spectral_radius": _number(state["spectral_radius"].max()) if "spectral_radius" in state else None,
        "critical_eps": None,
        "numerical_abscissa": _number(state["numerical_abscissa"].max()) if "numerical_abscissa" in state else None,
        "method": str(state["method"].item()),
        "leading": _leading(state),
        "matvecs": int(state["matvecs"].item()),
        "seconds": _number(state["seconds"]),
        "samples": {"status": [str(s) for s in state["status"].values]},
    }
    if "critical_eps" in state and bool((state["abscissa"].dropna("sample") < 0).all()):
        entry["critical_eps"] = _number(
            state["critical_eps"].min()
        )  # undefined as soon as one sample's flow is unstable
    for name in (
        "force_residual",
        "step_residual",
        "abscissa",
        "spectral_radius",
        "critical_eps",
        "numerical_abscissa",
    ):
        if name in state:
            entry["samples"][name] = [_number(v) for v in state[name].values]
    return entry


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
                "residual": _number(row["residual"]),
                "condition": _number(row["condition"]),
                "error": _number(row["error"]),
                "converged": bool(row["converged"].item()),
            }
        )
    return rows


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
