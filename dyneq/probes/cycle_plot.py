"""The figure of a cycle result: residual histories, the orbit of one sample, Floquet multipliers."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels

#: One colour a kind, distinguishable without colour vision by their order of lightness.
COLORS = {
    "fixed-point": "#b0b0b0",
    "slow": "#e6a817",
    "cycle": "#b2182b",
    "torus": "#762a83",
    "chaos": "#111111",
    "diverged": "#1b7837",
    "undetermined": "#2166ac",
}


def plot_cycle(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the force residual over steps, the orbit of the sample that moves most, and the multipliers.

    Args:
        ds: A cycle result.
        ax: Three axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 3, (14, 4.4), "a cycle result is", (1.5, 1, 1))
    _histories(ds, axes[0])
    _orbit(ds, axes[1])
    _multipliers(ds, axes[2])
    return figure_of(axes)


def _histories(ds: xr.Dataset, ax: Axes) -> None:
    step, high, low = ds["history_step"].values, ds["history_high"].values, ds["history_low"].values
    kinds, seen = [str(k) for k in ds["kind"].values], set()
    floor = 1e-17
    for i in sorted(range(len(kinds)), key=lambda i: kinds[i] != "fixed-point"):
        n = int(ds["history_rows"].values[i])
        label = None if kinds[i] in seen else f"{kinds[i]} ({kinds.count(kinds[i])})"
        seen.add(kinds[i])
        color = COLORS[kinds[i]]
        ax.plot(step[:n], np.maximum(high[:n, i], floor), color=color, lw=1, label=label)
        if kinds[i] != "fixed-point":
            ax.fill_between(
                step[:n], np.maximum(low[:n, i], floor), np.maximum(high[:n, i], floor), color=color, alpha=0.15
            )
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("force residual norm(F)/norm(z), 1/time")
    ax.set_title("largest (line) and least residual of each block of steps", fontsize=10)
    ax.legend(fontsize=8, loc="best")


def _orbit(ds: xr.Dataset, ax: Axes) -> None:
    kinds = np.array([str(k) for k in ds["kind"].values])
    values = ds["orbit_projection"].values
    size = np.array([np.nanmax(np.abs(v)) if np.isfinite(v).any() else -1.0 for v in values])
    for preferred in ("cycle", "torus", "chaos", "undetermined", "slow"):
        which = np.nonzero((kinds == preferred) & (size > 0))[0]
        if len(which):
            break
    else:
        ax.text(0.5, 0.5, "no sample moves", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    i = int(which[size[which].argmax()])
    x = values[i][np.isfinite(values[i]).all(1)]
    flat = np.ptp(x[:, 1]) < 1e-6 * np.ptp(x[:, 0])
    if flat:  # a state of one component is drawn against its own next row
        x = np.stack([x[:-1, 0], x[1:, 0]], 1)
    ax.plot(x[:, 0], x[:, 1], ".", ms=3, color=COLORS[str(kinds[i])], alpha=0.6, label="the relaxation, step by step")
    ax.plot(*x[-1], "o", color="black", ms=5, label="its last step")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("leading principal component of the projections")
    ax.set_ylabel("the same, one row later" if flat else "second principal component")
    period = float(ds["period_steps"].values[i])
    what = f", period {period:.5g} steps" if np.isfinite(period) else ""
    ax.set_title(f"sample {i}: {kinds[i]}{what}", fontsize=10)
    ax.legend(fontsize=8, loc="upper right")


def _multipliers(ds: xr.Dataset, ax: Axes) -> None:
    multiplier = ds["multiplier"].values
    angle = np.linspace(0, 2 * np.pi, 720)
    ax.plot(np.cos(angle), np.sin(angle), color="black", lw=1, label="unit circle")
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    good = np.isfinite(multiplier)
    if not good.any():
        ax.text(0, 0, "no orbit was found,\nso there are no multipliers", ha="center", va="center")
    else:
        for n, i in enumerate(np.nonzero(good.any(1))[0]):
            mu = multiplier[i][good[i]]
            label = f"sample {i}" if n < 6 else None
            ax.plot(mu.real, mu.imag, "o", ms=6, alpha=0.7, color=f"C{n % 10}", label=label)
    reach = 1.15 * max(1.0, float(np.abs(multiplier[good]).max(initial=0.0)))
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xlabel("Re multiplier")
    ax.set_ylabel("Im multiplier")
    ax.set_title("Floquet multipliers of the orbits found", fontsize=10)
    ax.legend(fontsize=8, loc="upper left")
