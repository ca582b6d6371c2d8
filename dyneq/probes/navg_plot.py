"""The figure of a navg result."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels


def plot_navg(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw cosines against the number of batches with their limits, and bias and variance by group.

    Args:
        ds: A result of the navg probe.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (13, 5.0), "a navg result is")
    rows = [e for e in range(1, ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    colours = {e: palette[i % len(palette)] for i, e in enumerate(rows)}
    _curves(ds, axes[0], colours)
    _parts(ds, axes[1], colours)
    return figure_of(axes)


def _curves(ds: xr.Dataset, ax: Axes, colours: dict[int, Any]) -> None:
    n = ds["count"].values.astype(float)
    beyond = n[-1] * 2.2
    for i, (e, colour) in enumerate(colours.items()):
        label = str(ds["estimator"].values[e])
        for name, style in (("same_cosine", "-"), ("mean_cosine", "--")):
            value, ends = ds[name].values[0, e, :, 0], ds[f"{name}_interval"].values[0, e, :, 0]
            ax.plot(n, value, style, marker="o", ms=4, color=colour, label=label if style == "-" else None)
            if style == "-":
                ax.fill_between(n, ends[:, 0], ends[:, 1], color=colour, alpha=0.15, lw=0)
        limit, (low, high) = float(ds["limit_cosine"][0, e, 0]), ds["limit_cosine_interval"].values[0, e, 0]
        if np.isfinite(low):
            at = beyond * 1.12**i
            ax.errorbar([at], [limit], yerr=[[limit - low], [high - limit]], fmt="s", ms=5, capsize=3, color=colour)
    own = ds["mean_cosine"].values[0, 0, :, 0]
    ax.plot(n, own, ":", color="0.35", lw=1.5, label=f"{ds['reference'].values[0]} itself, with its mean of all")
    ax.plot([], [], "-", color="0.5", label="with the reference on the same batches (95 % band)")
    ax.plot([], [], "--", color="0.5", label="with the reference's mean over all batches")
    ax.plot([], [], "s", color="0.5", ms=5, label="limit of n -> infinity, with its interval")
    ax.set_xscale("log", base=2)
    ax.set_xticks([*n, beyond], [*(f"{x:g}" for x in n), "infinity"])
    ax.minorticks_off()
    faithful = float(ds.attrs["faithful"])
    ax.axhspan(faithful, 1.0, color="#1b7837", alpha=0.12, lw=0, zorder=0)
    ax.set_xlabel("batches averaged over, n")
    ax.set_ylabel("cosine, all parameters")
    ax.set_title(f"what averaging brings (shaded: faithful, from {faithful:g})", fontsize=10)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _parts(ds: xr.Dataset, ax: Axes, colours: dict[int, Any]) -> None:
    groups = [str(g) for g in ds["group"].values]
    width = 0.8 / max(len(colours), 1)
    for i, (e, colour) in enumerate(colours.items()):
        place = np.arange(len(groups)) - 0.4 + (i + 0.5) * width
        bias, variance = ds["bias"].values[0, e], ds["variance"].values[0, e]
        ends = ds["bias_interval"].values[0, e]
        label = str(ds["estimator"].values[e])
        ax.bar(place, np.clip(bias, 0, None) + variance, width * 0.9, color=colour, alpha=0.3, label=f"{label}: all")
        ax.bar(place, np.clip(bias, 0, None), width * 0.9, color=colour, label=f"{label}: bias")
        known = np.isfinite(ends).all(-1)
        bars = np.clip(np.stack([bias - ends[:, 0], ends[:, 1] - bias]), 0, None)
        ax.errorbar(place[known], bias[known], yerr=bars[:, known], fmt="none", ecolor="black", lw=1, capsize=2)
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("parameter group")
    ax.set_ylabel("squared error of one batch, relative to norm(g)^2")
    ax.set_title("direction's error: bias (full, with interval) stays, the rest falls as 1/n", fontsize=10)
    if colours:
        ax.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=max(len(colours), 1), frameon=False
        )
