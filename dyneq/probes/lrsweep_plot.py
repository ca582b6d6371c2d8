"""The figure of a sweep over learning rates."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.lrsweep_measure import BATCH, HELDOUT


def plot_lrsweep(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the change of the loss over learning rates, and the force residual after the step.

    Args:
        ds: A result of the lrsweep probe.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (12, 5.0), "a sweep over learning rates is", (3, 2))
    rows = [e for e in range(ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    palette = colormaps["tab10" if len(rows) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for k, e in enumerate(rows):
        colour = palette[k % len(palette)]
        wider = 1.6 * (len(rows) - 1 - k)  # gradients that agree would hide each other
        _changes(ds, axes[0], e, colour, wider)
        _residuals(ds, axes[1], e, colour, wider)
    _frame(ds, axes[0], rows)
    tol, base = float(ds.attrs["tol"]), ds["base_residual"].values
    axes[1].axhline(tol, color="0.5", lw=0.8, ls="--", zorder=0, label=f"settled, below {tol:g}")
    if (ds["unsettled"].values > 0).any():
        axes[1].plot([], [], "x", color="black", ms=6, label="samples no longer settle")
    worst = float(np.nanmax(base))
    axes[1].axhline(worst, color="0.5", lw=0.8, ls=":", zorder=0, label="worst sample before the step")
    axes[1].set_ylabel("force residual after the step")
    axes[1].set_title("median (thin) and worst (thick) sample, relaxed again", fontsize=10)
    axes[1].set_yscale("log")
    for panel in axes:
        panel.set_xscale("log")
        panel.set_xlabel("learning rate" + (", steps scaled to one norm" if ds.attrs["direction"] != "raw" else ""))
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    return figure_of(axes)


def _changes(ds: xr.Dataset, ax: Axes, e: int, colour: Any, wider: float) -> None:
    """Draw the change on the batch with intervals, on held-out samples, and to first order."""
    lr, parts = ds["lr"].values, ds["part"].values.tolist()
    value = ds["change"].values[parts.index(BATCH), e]
    ends = ds["change_interval"].values[parts.index(BATCH), e]
    low, high = (np.where(np.isfinite(x), x, value) for x in ends.T)
    bars = np.clip(np.stack([value - low, high - value]), 0, None)
    label = str(ds["estimator"].values[e])
    ax.errorbar(
        lr,
        value,
        yerr=bars,
        fmt="o-",
        ms=4 + wider,
        lw=1.5 + wider,
        elinewidth=0.9,
        capsize=2,
        color=colour,
        label=label,
    )
    if HELDOUT in parts:
        ax.plot(lr, ds["change"].values[parts.index(HELDOUT), e], ls="--", lw=1.1, color=colour)
    ax.plot(lr, ds["foretold"].values[e], ls=":", lw=1.0, color=colour, alpha=0.8)
    best = lr == ds["best_lr"].values[e]
    ax.plot(lr[best], value[best], "*", ms=13, color=colour, mec="black", mew=0.6, zorder=5)


def _residuals(ds: xr.Dataset, ax: Axes, e: int, colour: Any, wider: float) -> None:
    used = np.isin(ds["sample_role"].values, [BATCH, HELDOUT])
    residual = ds["residual"].values[e][:, used]
    lr = ds["lr"].values
    ax.plot(lr, np.median(residual, axis=1), color=colour, lw=1.0)
    ax.plot(lr, residual.max(axis=1), color=colour, lw=2.2 + wider, label=str(ds["estimator"].values[e]))
    lost = (ds["unsettled"].values[e] > 0) & np.isfinite(residual.max(axis=1))
    ax.plot(lr[lost], residual.max(axis=1)[lost], "x", color="black", ms=6, zorder=5)


def _frame(ds: xr.Dataset, ax: Axes, rows: list[int]) -> None:
    """Show the descents; a step that raises the loss leaves the panel instead of flattening what is below."""
    change = ds["change"].values[:, rows]
    finite = change[np.isfinite(change)]
    depth = max(-float(finite.min()), 0.0) if len(finite) else 0.0
    if depth > 0:
        ax.set_ylim(-1.25 * depth, 0.8 * depth)
    ax.axhline(0, color="0.5", lw=0.8, zorder=0)
    held = ", dashed: held-out samples" if HELDOUT in ds["part"].values else ""
    ax.plot([], [], "k:", lw=1.0, label="first order")
    ax.set_ylabel("change of the mean loss, nats per token")
    ax.set_title(f"one step on the batch (star: best{held})", fontsize=10)
