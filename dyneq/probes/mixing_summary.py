"""Reading a mixing result: sentences and a table for people."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.probes.base import Finding

#: Condition numbers above which a root is called nearly singular.
ILL = 1e6


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return how far influence reaches, whether the future leaks, and how the loss depends on the position."""
    return [*_of_influence(ds), *_of_roots(ds), *_of_causality(ds), *_of_losses(ds)]


def _of_influence(ds: xr.Dataset) -> list[Finding]:
    if "typical" not in ds or not np.isfinite(ds["typical"].values).any():
        text = "no sample has a root with a regular Jacobian, so no influence at equilibrium is given"
        return [Finding("undetermined", text)]
    own, own_bar = _at(ds, 0)
    found = int(np.isfinite(ds["profile"].sel(distance=0).values).sum())
    where = f"median of {found} of {ds.sizes['sample']} samples"
    if not int(ds.attrs["tokens"]):
        text = (
            f"{_system(ds)} has no tokens, so there is no distance: a constant force in a random direction moves its "
            f"root by {own:.3g} +- {own_bar:.1g} of the force ({where})"
        )
        return [Finding("fact", text)]
    first = [
        Finding("fact", f"{_reach(ds)} ({where}; a force on a token moves its own root by {own:.3g} of the force)")
    ]
    kind, samples = str(ds["decay"].item()), int(ds["decay_samples"])
    if kind in ("exponential", "either", "power"):
        length, bar = float(ds["decay_length"]), float(ds["decay_length_error"])
        power, power_bar = float(ds["decay_power"]), float(ds["decay_power_error"])
        laws = {
            "exponential": f"it falls by e every {length:.3g} +- {bar:.1g} tokens, better described so than by a power",
            "power": f"it falls as distance^-{power:.2f} +- {power_bar:.1g}, better described so than exponentially",
            "either": f"it falls by e every {length:.3g} +- {bar:.1g} tokens or as distance^-{power:.2f} +- "
            f"{power_bar:.1g}: over this context the two fit alike",
        }
        first.append(Finding("fact", f"{laws[kind]} ({samples} samples)"))
    elif kind == "none":
        first.append(Finding("fact", f"it does not fall with the distance from 1 token on ({samples} samples)"))
    elif kind == "undetermined":
        first.append(Finding("undetermined", "too few distances or samples, or too much scatter, for a law of decay"))
    return first


def _reach(ds: xr.Dataset) -> str:
    """Return in words what other tokens feel."""
    if str(ds["decay"].item()) == "isolated":
        return "tokens do not influence one another: only the perturbed token's own root moves"
    shares = []
    distance, own = ds["distance"].values, _at(ds, 0)[0]
    furthest = int(distance.max())
    for d in sorted({min(1, furthest), furthest // 2, furthest} - {0}):
        value, _ = _at(ds, d)
        if np.isfinite(value) and own > 0:
            shares.append(f"{100 * value / own:.2g} % {d} token{'s' if d > 1 else ''} on")
    if not shares:
        return "no token comes after the perturbed ones, so there is no distance"
    return f"a token's influence on the equilibrium of later ones is {', '.join(shares)} of that on its own"


def _at(ds: xr.Dataset, distance: int) -> tuple[float, float]:
    """Return the typical influence at a distance, and its error bar."""
    at = ds.sel(distance=distance)
    return float(at["typical"]), float(at["typical_error"])


def _of_roots(ds: xr.Dataset) -> list[Finding]:
    """Return which samples have no root or one that is singular."""
    found, samples = [], ds.sizes["sample"]
    lost = np.flatnonzero(ds["root_status"].values != "converged")
    if len(lost):
        text = f"{_some(lost, samples)} have no root that was found and are left out: try more starts (dyneq root)"
        found.append(Finding("warning", text))
    if "condition" not in ds:
        return found
    condition = ds["condition"].values
    cut = np.flatnonzero((ds["root_status"].values == "converged") & np.isnan(ds["influence"].values).any((1, 2)))
    if len(cut):
        text = (
            f"{_some(cut, samples)} have a singular Jacobian, or one whose system could not be solved: what depends on "
            "it is left out"
        )
        found.append(Finding("warning", text))
    with np.errstate(invalid="ignore"):
        ill = np.flatnonzero((condition > ILL).any(1))
    if len(ill):
        text = f"{_some(ill, samples)} have nearly singular roots (condition up to {np.nanmax(condition[ill]):.1e})"
        found.append(
            Finding("warning", f"{text}: small forces move them far, and the linear response holds only nearby")
        )
    return found


def _of_causality(ds: xr.Dataset) -> list[Finding]:
    if "leak" not in ds:
        return [Finding("undetermined", "every sample diverged, so causality could not be measured")]
    leak, declared = ds["leak"].values, bool(ds.attrs["declared_causal"])
    if ds.sizes.get("token", 1) < 2 or not int(ds.attrs["tokens"]):
        return []
    known = leak[np.isfinite(leak)]
    if not len(known):
        return [Finding("undetermined", "no token acts on itself, so a leak has nothing to be compared with")]
    worst = float(known.max())
    if worst == 0:
        claim = "as declared" if declared else "though the system does not declare itself causal"
        text = f"no later token acts on an earlier one: dF_t/dz_s is exactly 0 for s > t ({claim})"
        return [Finding("fact", text)]
    text = f"later tokens act on earlier ones, by up to {worst:.2g} of what a token does to itself"
    if declared:
        text += "; but the system declares itself causal: methods by token are wrong for it. Correct its force"
    return [Finding("warning" if declared else "fact", text)]


def _of_losses(ds: xr.Dataset) -> list[Finding]:
    if "token_loss" not in ds:
        what = "gives one for each sample only" if int(ds.attrs["has_loss"]) else "has none"
        text = f"no loss by position: {_system(ds)} {what}"
        return [Finding("fact", text)]
    name = "token_loss" if np.isfinite(ds["token_loss"].values).any() else "relaxed_token_loss"
    where = "at the root" if name == "token_loss" else "at the relaxed state"
    values = ds[name].values
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return [Finding("undetermined", "no sample has a loss at every position")]
    tokens = values.shape[1]
    if tokens < 4:
        return [Finding("fact", f"cross-entropy {where} {values.mean():.3f} nats on average")]
    quarter = tokens // 4
    gap = values[:, -quarter:].mean(1) - values[:, :quarter].mean(1)
    text = f"cross-entropy {where} {values[:, :quarter].mean():.3f} nats over the first {quarter} positions, "
    text += f"{values[:, -quarter:].mean():.3f} over the last {quarter}"
    if len(gap) < 2:
        return [Finding("fact", text)]
    bar = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    difference = float(gap.mean())
    reading = "more context helps" if difference < -2 * bar else "later positions are harder"
    if abs(difference) <= 2 * bar:
        reading = "no difference beyond twice its standard error"
    return [Finding("fact", f"{text} (difference {difference:+.3f} +- {bar:.3f}: {reading})")]


def table(ds: xr.Dataset) -> str:
    """Return influence against distance, and causality."""
    lines = []
    if "typical" in ds:
        rows: list[tuple[str, ...]] = [("distance", "influence", "+-", "samples 10 %", "90 %")]
        distance = ds["distance"].values
        shown = [
            int(d) for d in distance if d == 0 or d in (abs(distance).max(), -abs(distance).max()) or _power_of_2(d)
        ]
        for d in shown:
            values = ds["profile"].sel(distance=d).values
            values = values[np.isfinite(values)]
            if len(values):
                value, bar = _at(ds, d)
                low, high = np.quantile(values, (0.1, 0.9))
                rows.append((str(d), f"{value:.3g}", f"{bar:.1g}", f"{low:.2g}", f"{high:.2g}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
        sources = ", ".join(str(int(s)) for s in ds["source"].values)
        worst = float(np.nanmax(ds["residual"].values)) if np.isfinite(ds["residual"].values).any() else np.nan
        largest = ds["condition"].values
        finite = largest[np.isfinite(largest)]
        lines += [
            "",
            f"  forces on tokens {sources}; influence norm(dz_t)/norm(delta), median of samples; solved by "
            f"{ds.attrs['method']}, residual <= {worst:.1e}, condition "
            + (f"<= {finite.max():.1e}" if len(finite) else "unknown"),
        ]
    lines.append(
        f"  {int(ds['products'])} products with the Jacobian, {int(ds['forces'])} force evaluations and Newton's"
    )
    return "\n".join(lines)


def _power_of_2(d: int) -> bool:
    return d != 0 and (abs(int(d)) & (abs(int(d)) - 1)) == 0


def _system(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("system", "the system"))


def _some(which: NDArray[np.intp], samples: int) -> str:
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"
