"""The figure of a decomposition."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.decompose_rules import SMALL


def plot_decomposition(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw norm ratio and cosine of every penalty to the task by group, each with its interval.

    Args:
        ds: A result of the decompose probe.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (12, 4.8), "a decomposition is")
    ratio, cosine = axes
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    names = [f"{n}:{w:g}" for n, w in zip(ds["penalty"].values, ds["weight"].values, strict=True)]
    offsets = np.linspace(-0.25, 0.25, len(names) + 1)
    for p, label in enumerate(names):
        for panel, name in ((ratio, "ratio"), (cosine, "cosine")):
            value, ends = ds[name].values[p], ds[f"{name}_interval"].values[p]
            _points(panel, value, ends, offsets[p], colours[p % 10], label, "o")
    update = ds["task_cosine"].values, ds["task_cosine_interval"].values
    _points(cosine, *update, offsets[-1], "black", "task and whole update", "D")
    for panel in axes:
        panel.set_xticks(range(ds.sizes["group"]), [str(g) for g in ds["group"].values])
        panel.set_xlim(-0.5, ds.sizes["group"] - 0.5)
        for edge in np.arange(ds.sizes["group"] - 1) + 0.5:
            panel.axvline(edge, color="0.9", lw=0.8, zorder=0)
        panel.set_xlabel("parameter group")
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, frameon=False)
    if (ds["ratio"].values > 0).any():
        ratio.set_yscale("log")
    bottom, top = ratio.get_ylim()
    ratio.set_ylim(bottom, max(top, 1.5))
    ratio.axhline(1, color="#b2182b", lw=1.0, ls="--", zorder=0)
    ratio.axhspan(ratio.get_ylim()[0], SMALL, color="#1b7837", alpha=0.10, lw=0, zorder=0)
    task = str(ds["estimator"].values[0])
    ratio.set_ylabel(f"k = norm(w g_penalty)/norm(g_task), task {task}")
    ratio.set_title(f"size (dashed: as large as the task; shaded: harmless, below {SMALL:g})", fontsize=10)
    cosine.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    cosine.set_ylim(-1.05, 1.05)
    cosine.set_ylabel("cosine with the task's gradient")
    level = f"{100 * float(ds.attrs['level']):g} %"
    cosine.set_title(f"direction (below 0: against the task); bars are {level} intervals", fontsize=10)
    return figure_of(axes)


def _points(ax: Axes, value: Any, ends: Any, offset: float, colour: Any, label: str, marker: str) -> None:
    """Draw one value a group, beside those of the others."""
    known = np.isfinite(value) & (value != 0)
    low, high = (np.where(np.isfinite(x), x, value) for x in (ends[:, 0], ends[:, 1]))
    bars = np.clip(np.stack([value - low, high - value]), 0, None)[:, known]
    place = (np.arange(len(value)) + offset)[known]
    ax.errorbar(place, value[known], yerr=bars, fmt=marker, ms=4.5, lw=1.2, capsize=2, color=colour, label=label)
