"""The figure of a residual result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels

_COLOURS = {
    "converged": "#2166ac",
    "falling": "#1b9e77",
    "level": "#b2182b",
    "rising": "#d95f02",
    "undetermined": "#7f7f7f",
    "diverged": "black",
    "absorbed": "#7570b3",
}


def plot_residual(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw the force residual of every sample against depth, and the loss with its other read-outs.

    Args:
        ds: A residual result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (11, 4.4), "a residual result is")
    _residuals(ds, axes[0])
    _losses(ds, axes[1])
    return figure_of(axes)


def _depth_axis(ds: xr.Dataset, ax: Axes) -> Any:
    depths = ds["depth"].values
    positive = depths[depths > 0]
    if len(positive):
        # linear up to the first depth, so that depth 0 has a place
        ax.set_xscale("symlog", linthresh=max(float(positive[0]), 1.0), linscale=0.5)
        ax.set_xlim(depths[0] - (0.02 * positive[0] if depths[0] == 0 else 0.0), depths[-1] * 1.1)
    ticks = depths if len(depths) <= 10 else depths[:: len(depths) // 8 + 1]
    ax.set_xticks(ticks, [str(int(d)) for d in ticks])
    ax.minorticks_off()
    ax.set_xlabel("relaxation depth, steps")
    return depths


def _residuals(ds: xr.Dataset, ax: Axes) -> None:
    depths, residual, trend = _depth_axis(ds, ax), ds["force_residual"].values, ds["trend"].values
    floor = 1e-17
    for kind, colour in _COLOURS.items():
        which = np.flatnonzero(trend == kind)
        if len(which):
            lines = ax.plot(depths, np.maximum(residual[:, which], floor), color=colour, lw=0.8, alpha=0.6, marker=".")
            lines[0].set_label(f"{kind}: {len(which)}")
    ax.set_yscale("log")
    ax.axhline(ds.attrs["tol"], color="black", ls=":", lw=1, label=f"tolerance {ds.attrs['tol']:g}")
    ax.set_ylabel("force residual norm(F)/norm(z), 1/time")
    done = int((trend == "converged").sum())
    ax.set_title(f"{done} of {len(trend)} samples converge", fontsize=10)
    ax.legend(fontsize=8, loc="lower left")


def _losses(ds: xr.Dataset, ax: Axes) -> None:
    if "loss" not in ds:
        ax.axis("off")
        ax.text(0.5, 0.5, "this system has no loss", ha="center", va="center", transform=ax.transAxes)
        return
    depths = _depth_axis(ds, ax)
    loss, trend = ds["loss"].values, ds["trend"].values
    reference = ds["root_loss"].values if "root_loss" in ds else np.full(loss.shape[1], np.nan)
    away = np.maximum(np.abs(loss - reference), 1e-17)
    for kind, colour in _COLOURS.items():
        which = np.flatnonzero((trend == kind) & np.isfinite(reference))
        if not len(which):
            continue
        lines = ax.plot(depths, away[:, which], color=colour, lw=0.8, alpha=0.6, marker=".")
        lines[0].set_label(f"{kind}: {len(which)}")
        if "mean_loss" in ds and kind != "converged":
            gap = np.maximum(np.abs(ds["mean_loss"].values - reference)[which], 1e-17)
            label = f"{kind}, read out from the time mean"
            ax.plot(np.full(len(which), depths[-1]), gap, "D", mfc="none", color=colour, ms=6, label=label)
    if not np.isfinite(reference).any():
        for kind, colour in _COLOURS.items():
            which = np.flatnonzero(trend == kind)
            if len(which) and np.isfinite(loss[:, which]).any():
                lines = ax.plot(depths, loss[:, which], color=colour, lw=0.8, alpha=0.6, marker=".")
                lines[0].set_label(f"{kind}: {len(which)}")
        ax.set_ylabel("loss, nats")
    else:
        ax.set_yscale("log")
        ax.set_ylabel("abs(loss - loss at the root), nats")
    finite = loss[-1][np.isfinite(loss[-1])]
    deepest = f" (mean {finite.mean():.4f} at depth {int(depths[-1])})" if len(finite) else ""
    ax.set_title(f"loss read out at each depth{deepest}", fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, loc="lower left")
