"""Reading a nonnormality result: sentences for people."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.probes.base import Finding

_UNSTABLE = "unstable"
_STEP = "a stable flow that Euler's step makes unstable"
#: Growth below this is called none.
GROWS = 1.1


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of a nonnormality result, the one-line summary first."""
    if "growth" not in ds:
        text = "no sample has a usable state, so there is no Jacobian to look at: try more starts, or a smaller eps"
        return [Finding("undetermined", text)]
    found = [_headline(ds)]
    found += _states(ds) + _instant(ds) + _growth(ds) + _asymmetry(ds) + _blocks(ds)
    return found


def _place(ds: xr.Dataset) -> str:
    return "at the root" if ds.attrs.get("at") == "root" else "at the relaxed state"


def _some(ds: xr.Dataset, mask: NDArray[np.bool_]) -> str:
    which = ds["sample"].values[np.flatnonzero(mask)].tolist()
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {ds.sizes['sample']} samples ({listed})"


def _median(values: NDArray[np.float64]) -> float:
    """Return the median of the values that are numbers, NaN without any."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def _headline(ds: xr.Dataset) -> Finding:
    growth, departs = ds["growth"].values, ""
    if "relative_departure" in ds:
        middle = _median(ds["relative_departure"].values)
        departs = f"; Henrici's departure is {middle:.2f} of norm(J) in the median sample (0: normal)"
    if np.isnan(growth).all():
        text = "no sample has a stable relaxation map, so none has a largest transient growth"
        return Finding("fact", f"{_place(ds)} {text}{departs}")
    worst = int(np.nanargmax(growth))
    largest, steps = float(growth[worst]), int(ds["growth_step"].values[worst])
    if steps == 0:
        text = "no perturbation found ever grows: the relaxation contracts from the first step on"
    elif largest < GROWS:
        text = f"no perturbation found grows by more than {100 * (largest - 1):.2g}% before it decays"
    else:
        text = (
            f"perturbations grow up to {largest:.3g}-fold, over {steps} steps, before the relaxation contracts them "
            f"(sample {int(ds['sample'][worst])}, whole sample)"
        )
    return Finding("fact", f"{_place(ds)} {text}{departs}")


def _states(ds: xr.Dataset) -> list[Finding]:
    found = []
    status = ds["growth_status"].values
    left_out = status == "left out"
    if left_out.any():
        found.append(Finding("warning", f"{_some(ds, left_out)} have no usable state and are left out"))
    away = (ds["status"].values != "converged") & ~left_out
    if away.any():
        text = "not at a fixed point: their numbers belong to a passing state; see --at root"
        found.append(Finding("warning", f"{_some(ds, away)} {text}"))
    unbounded = status == "unbounded"
    step = np.zeros_like(unbounded)
    if "abscissa" in ds:
        with np.errstate(invalid="ignore"):
            step = unbounded & (ds["abscissa"].values + ds["abscissa_error"].values < 0)
    for which, what in ((step, _STEP), (unbounded & ~step, _UNSTABLE)):
        if which.any():
            text = "growth there is unbounded because of an eigenvalue, not of non-normality; see dyneq spectrum"
            found.append(Finding("fact", f"{_some(ds, which)}: {what}; {text}"))
    unsure = status == "stability undetermined"
    if unsure.any():
        text = "are too near the stability boundary, or too ill-conditioned, to say whether growth is bounded"
        found.append(Finding("undetermined", f"{_some(ds, unsure)} {text}"))
    horizon = status == "at horizon"
    if horizon.any():
        text = "still grow at the last step looked at: ask for more --growth-steps"
        found.append(Finding("warning", f"{_some(ds, horizon)} {text}"))
    return found


def _instant(ds: xr.Dataset) -> list[Finding]:
    omega = ds["numerical_abscissa"].values
    worst = int(np.nanargmax(omega))
    sample = int(ds["sample"][worst])
    if "abscissa" not in ds:
        text = f"omega of J = M - 1 is {omega[worst]:+.3g} (sample {sample}); for a map it decides nothing"
        return [Finding("fact", text)]
    alpha, error = float(ds["abscissa"].values[worst]), float(ds["abscissa_error"].values[worst])
    if omega[worst] <= 0:
        text = f"omega is {omega[worst]:+.3g} at most: every perturbation shrinks from the first instant on"
        return [Finding("fact", text)]
    if alpha + error < 0:
        text = (
            f"omega = {omega[worst]:+.3g} (sample {sample}) is no sign of instability: it is the growth rate in the "
            f"first instant, while the abscissa, which decides, is alpha = {alpha:+.3g} there"
        )
    else:
        text = (
            f"omega = {omega[worst]:+.3g} (sample {sample}) is the growth rate in the first instant; stability is "
            f"decided by the abscissa, alpha = {alpha:+.3g} there"
        )
    return [Finding("fact", text)]


def _growth(ds: xr.Dataset) -> list[Finding]:
    growth = ds["growth"].values
    if "token_growth" not in ds or np.isnan(growth).all() or np.nanmax(growth) < GROWS:
        return []
    worst = int(np.nanargmax(growth))
    tokens = ds["token_growth"].values[worst]
    if np.isnan(tokens).any() or not (ds["token_growth_complete"].values[worst] == 1).all():
        return []  # another token, or a later step, could have more
    largest, token = float(tokens.max()), int(tokens.argmax())
    passed = ": the rest is passed on from token to token" if growth[worst] > 1.5 * largest else ""
    text = (
        f"in sample {int(ds['sample'][worst])} no token block by itself grows more than {largest:.3g}-fold (token "
        f"{token}); the whole sample grows {growth[worst]:.3g}-fold{passed}"
    )
    return [Finding("fact", text)]


def _asymmetry(ds: xr.Dataset) -> list[Finding]:
    value, share = _median(ds["asymmetry"].values), _median(ds["antisymmetric_share"].values)
    if np.isnan(value):
        return []
    text = (
        f"asymmetry norm(Jv - J^T v)/norm(Jv) = {value:.2f} and antisymmetric share {share:.2f} (medians) say how far "
        "J is from that of a gradient flow, which matters for equilibrium propagation; they do not measure "
        "non-normality: a skew J has 2 and 1, and is normal"
    )
    return [Finding("fact", text)]


def _blocks(ds: xr.Dataset) -> list[Finding]:
    if "kreiss" not in ds:
        text = (
            "token blocks are too large to be formed, so there are no pseudospectra; raise --largest-block to have them"
        )
        return [Finding("warning", text if "token" in ds.dims else text.replace("token blocks", "samples"))]
    found = []
    stable = np.isfinite(ds["kreiss"].values) & (ds["kreiss"].values > GROWS)
    if stable.any():
        worst = int(np.where(stable, ds["kreiss"].values, -np.inf).argmax())
        row = ds.isel(block=worst)
        text = f"{block_name(row)}: Kreiss constant at least {float(row['kreiss']):.3g}"
        if "flow_growth" in row and np.isfinite(float(row["flow_growth"])):
            text += (
                f", so its flow must grow that much; it grows {float(row['flow_growth']):.3g}-fold by "
                f"t = {float(row['flow_growth_time']):.3g}"
            )
        found.append(Finding("fact", text))
    if "pseudospectral_abscissa" in ds:
        found += _sensitive(ds)
    return found


def _sensitive(ds: xr.Dataset) -> list[Finding]:
    """Return the smallest change of J that destabilises a stable block, of those tried."""
    stable = ds["block_abscissa"].values < 0
    alpha, margin = ds["pseudospectral_abscissa"].values, ds["pseudospectral_abscissa_error"].values
    crossed = (alpha - np.nan_to_num(margin) > 0) & stable[:, None]
    if not crossed.any():
        return []
    level = int(np.flatnonzero(crossed.any(axis=0))[0])
    block = int(np.where(crossed[:, level], alpha[:, level], -np.inf).argmax())
    row = ds.isel(block=block)
    size = float(ds["level"][level])
    text = (
        f"{block_name(row)}: a change of its J of norm {size:g} ({100 * size / float(row['block_norm']):.2g}% of its "
        f"norm) in the worst direction, complex ones allowed, moves its rightmost eigenvalue from "
        f"{float(row['block_abscissa']):+.3g} to {alpha[block, level]:+.3g}: so little can destabilise it"
    )
    return [Finding("fact", text)]


def block_name(row: xr.Dataset) -> str:
    """Return the address of a block in words."""
    token = int(row["block_token"])
    return f"sample {int(row['block_sample'])}" + (f", token {token}" if token >= 0 else "")
