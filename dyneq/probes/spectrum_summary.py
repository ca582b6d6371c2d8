"""Reading a spectrum result: sentences for people."""

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding
from dyneq.probes.spectrum_verdict import Verdict, verdicts

#: What a status that leaves no usable fixed point means for the eigenvalues.
_AWAY = {
    "max_steps": "not at a fixed point: eigenvalues there belong to a passing state; see --at root",
    "diverged": "diverged: left out; relax with a smaller eps, or take an earlier snapshot",
    "absorbed": "absorbed by rounding, no fixed point of the full block: left out; use float64, or an earlier snapshot",
    "stagnated": "without a root found: left out; try more starts (dyneq root)",
}


def state_label(ds: xr.Dataset) -> str:
    """Return ``depth 800`` or ``root`` for a result at one state."""
    return "root" if str(ds["state"].item()) == "root" else f"depth {int(ds['depth'].item())}"


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of every state of a spectrum result."""
    findings = []
    for i in range(ds.sizes["depth"]):
        state = ds.isel(depth=i)
        label = state_label(state)
        findings += [Finding(f.level, f"{label}: {f.text}") for f in _of_status(state) + _of_verdicts(state)]
    return findings


def _of_status(state: xr.Dataset) -> list[Finding]:
    """Return how far the samples are from a fixed point."""
    status, samples = [str(s) for s in state["status"].values], state.sizes["sample"]
    residual = state["force_residual"].values
    found = []
    for name, meaning in _AWAY.items():
        which = [i for i, s in enumerate(status) if s == name]
        if which:
            worst = f" (worst force residual {residual[which].max():.1e})" if name == "max_steps" else ""
            found.append(Finding("warning", f"{_some(which, samples)}{worst} {meaning}"))
    if not found:
        found.append(Finding("fact", f"every sample at a fixed point (worst force residual {residual.max():.1e})"))
    if "converged" in state and (unsure := int((state["converged"] == 0).sum())):
        found.append(Finding("warning", f"{unsure} of the leading pairs did not converge; they are marked"))
    return found


def _of_verdicts(state: xr.Dataset) -> list[Finding]:
    """Return what the pairs say of the samples that are at a fixed point."""
    judged = verdicts(state)
    at = {v: [i for i, w in enumerate(judged) if w is v] for v in Verdict}
    fixed = sum(len(at[v]) for v in (Verdict.STABLE, Verdict.STEP, Verdict.UNSTABLE, Verdict.MARGINAL, Verdict.UNSURE))
    if not fixed:
        return [Finding("undetermined", "without a fixed point nothing is called stable or unstable")]
    flow = "rightmost_mu" in state
    found = []
    if which := at[Verdict.UNSTABLE]:
        found.append(_unstable(state.isel(sample=which), f"{len(which)} of {fixed} fixed points", flow))
    if which := at[Verdict.STEP]:
        found.append(_step(state.isel(sample=which), f"{len(which)} of {fixed} fixed points"))
    if which := at[Verdict.STABLE]:
        found.append(_stable(state.isel(sample=which), f"{len(which)} of {fixed} fixed points", flow))
    if which := at[Verdict.MARGINAL]:
        text = f"{_some(which, state.sizes['sample'])} at the stability boundary, or too ill-conditioned to tell"
        found.append(Finding("undetermined", text))
    if which := at[Verdict.UNSURE]:
        found.append(
            Finding("undetermined", f"{_some(which, state.sizes['sample'])} have unconverged pairs: no verdict")
        )
    return found


def _unstable(state: xr.Dataset, share: str, flow: bool) -> Finding:
    if not flow:
        mu, where = worst_pair(state, "largest")
        return Finding("fact", f"the map is unstable at {share}; largest multiplier {show(1 + mu)} at {where}")
    mu, where = worst_pair(state, "rightmost")
    kind = "a complex pair (oscillation)" if mu.imag else "a real eigenvalue (no oscillation)"
    return Finding("fact", f"flow unstable at {share}; rightmost {show(mu)} at {where}, {kind}")


def _step(state: xr.Dataset, share: str) -> Finding:
    eps = float(state.attrs["eps"])
    mu, where = worst_pair(state, "critical")
    made = "that oscillation (Neimark-Sacker)" if mu.imag else "the state flip from side to side (period 2)"
    return Finding(
        "fact",
        f"flow stable at {share} where eps={eps:g} exceeds the critical step (smallest "
        f"{float(state['critical_eps'].min()):.4f}, set by {show(mu)} at {where}): Euler makes {made}",
    )


def _stable(state: xr.Dataset, share: str, flow: bool) -> Finding:
    if not flow:
        radius = float(state["spectral_radius"].max())
        return Finding("fact", f"the map is stable at {share} (largest spectral radius {radius:.6f})")
    mu, where = worst_pair(state, "rightmost")
    step = float(state["critical_eps"].min())
    return Finding(
        "fact", f"flow and step stable at {share}; rightmost {show(mu)} at {where}, smallest critical step {step:.4f}"
    )


def worst_pair(state: xr.Dataset, target: str) -> tuple[complex, str]:
    """Return the most extreme eigenvalue of a target over all blocks of one state, and its address in words."""
    mu = state[f"{target}_mu"]
    values = mu.values
    if target == "rightmost":
        key = values.real
    elif target == "largest":
        key = np.abs(1 + float(state.attrs["eps"]) * values)
    else:
        key = 2 * values.real / np.abs(values) ** 2
    at = np.unravel_index(int(np.where(np.isnan(key), -np.inf, key).argmax()), key.shape)
    place = f"sample {int(mu['sample'].values[at[0]])}" + (f", token {int(at[1])}" if len(at) > 1 else "")
    return complex(values[at]), place


def show(mu: complex) -> str:
    """Return an eigenvalue as ``+0.4400 +- 0.2430i``."""
    return f"{mu.real:+.4f}" + (f" +- {abs(mu.imag):.4f}i" if mu.imag else "")


def _some(which: list[int], samples: int) -> str:
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"
