"""The figure of a triangulation."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.triangulate_rules import SCALE

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def plot_triangulation(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the cosine with the first reference and the norm ratio by group, each with its interval.

    Args:
        ds: A result of the triangulate probe.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (13, 5.2), "a triangulation is")
    reference = str(ds["reference"].values[0])
    rows = [e for e in range(1, ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    cosine, ratio = axes
    for panel, name in ((cosine, "cosine"), (ratio, "norm_ratio")):
        _points(ds, panel, name, rows)
        groups = ds["group"].values
        panel.set_xticks(range(len(groups)), [f"{g}" for g in groups])
        for edge in np.arange(len(groups) - 1) + 0.5:
            panel.axvline(edge, color="0.9", lw=0.8, zorder=0)
        panel.set_xlim(-0.5, len(groups) - 0.5)
        panel.set_xlabel("parameter group")
    faithful = float(ds.attrs["faithful"])
    cosine.axhspan(faithful, 1.0, color="#1b7837", alpha=0.12, lw=0, zorder=0)
    cosine.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    cosine.set_ylim(_lowest(ds, rows), 1.03)
    cosine.set_ylabel(f"cosine with {reference}, mean over batches")
    level = f"{100 * float(ds.attrs['level']):g} %"
    cosine.set_title(f"direction (shaded: faithful, from {faithful:g}); bars are {level} intervals", fontsize=10)
    ratio.axhspan(1 / SCALE, SCALE, color="#1b7837", alpha=0.12, lw=0, zorder=0)
    ratio.set_yscale("log")
    bottom, top = ratio.get_ylim()
    if top < 30 * bottom:  # within a decade or two, powers of ten are no ticks to read by
        ratio.set_yticks([t for t in _TICKS if bottom <= t <= top])
        ratio.yaxis.set_major_formatter("{x:g}")
        ratio.minorticks_off()
    ratio.set_ylabel("k = norm(g)/norm(g_ref), geometric mean over batches")
    ratio.set_title(f"scale (shaded: right within a factor {SCALE:g})", fontsize=10)
    handles, labels = cosine.get_legend_handles_labels()
    if handles:
        cosine.legend(
            handles, labels, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=5, frameon=False
        )
    return figure_of(axes)


def _points(ds: xr.Dataset, ax: Axes, name: str, rows: list[int]) -> None:
    """Draw one statistic of all estimators, side by side within each group."""
    colours = colormaps["tab10" if len(rows) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    offsets = np.linspace(-0.36, 0.36, len(rows)) if len(rows) > 1 else np.zeros(1)
    for i, e in enumerate(rows):
        value = ds[name].values[0, e]
        ends = ds[f"{name}_interval"].values[0, e]
        known = np.isfinite(value)
        if not known.any():
            continue
        place = np.arange(len(value)) + offsets[i]
        role = str(ds["role"].values[e])
        colour = "0.35" if role != "estimator" else colours[i % len(colours)]
        low, high = (np.where(np.isfinite(x), x, value) for x in (ends[:, 0], ends[:, 1]))
        bars = np.clip(np.stack([value - low, high - value]), 0, None)[:, known]
        ax.errorbar(
            place[known],
            value[known],
            yerr=bars,
            fmt="D" if role != "estimator" else "o",
            ms=4.5,
            lw=1.2,
            capsize=2,
            color=colour,
            label=str(ds["estimator"].values[e]),
        )


def _lowest(ds: xr.Dataset, rows: list[int]) -> float:
    ends = ds["cosine_interval"].values[0, rows][..., 0]
    values = ds["cosine"].values[0, rows]
    found = np.concatenate([ends.ravel(), values.ravel()])
    found = found[np.isfinite(found)]
    return float(max(-1.03, min(found.min(), 0.8) - 0.05)) if len(found) else -1.03
