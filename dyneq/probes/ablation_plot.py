"""The figure of an ablation."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.triangulate_rules import SCALE

_BEST, _TIED, _OTHER = "#1b7837", "#7fbf7b", "#762a83"


def plot_ablation(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw cosine and norm ratio of every point of the grid, each with its interval.

    Args:
        ds: A result of the ablation probe.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    rows = [e for e in range(1, ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    axes = panels(ax, 2, (12, 1.8 + 0.26 * max(len(rows), 6)), "an ablation is")
    place = np.arange(len(rows))
    best, tied = int(ds.attrs["best"]), ds["tied"].values
    kinds = ((_BEST, "best"), (_TIED, "not to be told from it"), (_OTHER, "worse"))
    colour = [_BEST if e == best else _TIED if tied[e] else _OTHER for e in rows]
    for panel, name in zip(axes, ("cosine", "norm_ratio"), strict=True):
        value, ends = ds[name].values[0, rows, 0], ds[f"{name}_interval"].values[0, rows, 0]
        for kind, label in kinds:
            at = np.array([c == kind for c in colour], dtype=bool) & np.isfinite(value)
            if not at.any():
                continue
            low, high = (np.where(np.isfinite(x), x, value)[at] for x in (ends[:, 0], ends[:, 1]))
            bars = np.clip(np.stack([value[at] - low, high - value[at]]), 0, None)
            panel.errorbar(value[at], place[at], xerr=bars, fmt="o", color=kind, ms=5, lw=1.2, capsize=2, label=label)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(axis="y", color="0.93", lw=0.8)
        panel.set_axisbelow(True)
    cosine, ratio = axes
    cosine.set_yticks(place, [str(ds["point"].values[e]) for e in rows], fontsize=8)
    ratio.set_yticks(place, [""] * len(rows))
    faithful = float(ds.attrs["faithful"])
    cosine.axvspan(faithful, 1.0, color="#1b7837", alpha=0.12, lw=0, zorder=0)
    cosine.set_xlabel(f"cosine with {ds['reference'].values[0]}, all parameters")
    cosine.set_title(f"{ds.attrs['base']}: direction (shaded: faithful)", fontsize=10)
    ratio.axvspan(1 / SCALE, SCALE, color="#1b7837", alpha=0.12, lw=0, zorder=0)
    ratio.set_xscale("log")
    left, right = ratio.get_xlim()
    if right < 30 * left:
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
        ratio.set_xticks([t for t in ticks if left <= t <= right])
        ratio.xaxis.set_major_formatter("{x:g}")
        ratio.minorticks_off()
    ratio.set_xlabel("k = norm(g)/norm(g_ref)")
    ratio.set_title("scale (shaded: right)", fontsize=10)
    if rows:
        cosine.legend(fontsize=8, loc="best")
    return figure_of(axes)
