"""What a spectrum says of each sample: stable, unstable, unstable by the step alone, or nothing."""

import enum

import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: Eigenvalues closer to the stability boundary than this share of the spectrum's scale decide nothing: at a fold or a
#: double root the root itself is only known to the square root of the rounding.
MARGIN = {"float64": 1e-6, "float32": 1e-3}
#: The scale is at least that of a multiplier this far from 1.
SLOW = 0.1


class Verdict(enum.StrEnum):
    """The reading of one sample at one state."""

    LOST = "lost"
    """No usable state: diverged, absorbed, or no root."""
    PASSING = "passing"
    """Not at a fixed point: its eigenvalues decide nothing."""
    UNSURE = "unsure"
    """A pair that could decide did not converge."""
    MARGINAL = "marginal"
    """At the boundary within what the errors of the eigenvalues allow to resolve."""
    UNSTABLE = "unstable"
    """The flow (or the map) leaves the fixed point."""
    STEP = "step"
    """The flow is stable, the step is too large for it."""
    STABLE = "stable"
    """Flow and step (or the map) return to the fixed point."""


def verdicts(state: xr.Dataset) -> list[Verdict]:
    """Return the verdict on every sample of a spectrum at one state."""
    status = [str(s) for s in state["status"].values]
    if "largest_mu" not in state:
        return [Verdict.LOST] * len(status)
    eps = float(state.attrs["eps"])
    radius = xr.ufuncs.abs(1 + eps * state["largest_mu"]) - 1
    map_side = _sides(state, radius, "largest", eps)
    flow_side = _sides(state, state["rightmost_mu"].real, "rightmost", 1.0) if "rightmost_mu" in state else None
    usable = np.isfinite(state["spectral_radius"].values)
    sure = state["pairs_converged"].values
    found = []
    for i, s in enumerate(status):
        if not usable[i]:
            found.append(Verdict.LOST)
        elif s != "converged":
            found.append(Verdict.PASSING)
        elif sure[i] != 1:
            found.append(Verdict.UNSURE)
        elif flow_side is None or flow_side[i] is not Verdict.STABLE:
            found.append((map_side if flow_side is None else flow_side)[i])
        else:
            found.append(Verdict.STEP if map_side[i] is Verdict.UNSTABLE else map_side[i])
    return found


def _sides(state: xr.Dataset, distance: xr.DataArray, target: str, rate: float) -> list[Verdict]:
    """Return on which side of the stability boundary each sample lies.

    Args:
        state: A spectrum at one state.
        distance: Signed distance of each block's pair from the boundary, positive outside.
        target: The pair's target, for its error estimate.
        rate: How far the distance moves when mu moves by one.
    """
    over = [d for d in ("token",) if d in distance.dims]
    # an unknown error bounds nothing; at a root it has the root's own share in it
    error = rate * state[f"{target}_error"].fillna(np.inf).where(distance.notnull())
    low = np.asarray((distance - error).max(over), dtype=np.float64)
    high = np.asarray((distance + error).max(over), dtype=np.float64)
    margin = rate * _resolution(state, over)
    return [
        Verdict.UNSTABLE if below > m else Verdict.STABLE if above < -m else Verdict.MARGINAL
        for below, above, m in zip(low, high, margin, strict=True)
    ]


def _resolution(state: xr.Dataset, over: list[str]) -> NDArray[np.float64]:
    share = MARGIN.get(str(state.attrs.get("dtype", "float64")), MARGIN["float64"])
    scale = [
        np.asarray(xr.ufuncs.abs(state[f"{target}_mu"]).max(over), dtype=np.float64)
        for target in ("largest", "rightmost", "critical")
        if f"{target}_mu" in state
    ]
    least = SLOW / float(state.attrs["eps"])
    return share * np.maximum(np.nan_to_num(np.max(scale, axis=0), nan=0.0), least)
