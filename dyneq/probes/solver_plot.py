"""The figure of a solver result."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels

_TARGETS = ("#9ecae1", "#4292c6", "#08306b")


def plot_solver(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the evaluations each solver needs to each target, and the worst residual against evaluations.

    Args:
        ds: A solver result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (12, 1.8 + 0.3 * max(ds.sizes["solver"], 8)), "a solver result is", (3, 2))
    _needed(ds, axes[0])
    _courses(ds, axes[1])
    return figure_of(axes)


def _colours(count: int) -> list[str]:
    return [_TARGETS[min(i + max(0, 3 - count), 2)] for i in range(count)]


def _needed(ds: xr.Dataset, ax: Axes) -> None:
    """Draw median and range of the samples that get there; those that never do are counted on the right."""
    solvers, targets = ds.sizes["solver"], ds.sizes["target"]
    samples = ds.sizes["sample"]
    shift = 0.22
    for j, colour in enumerate(_colours(targets)):
        first = True
        for i in range(solvers):
            at = ds["evaluations"].isel(solver=i, target=j).values
            there = at[np.isfinite(at)]
            y = i + shift * (j - (targets - 1) / 2)
            if len(there):
                label = f"to {float(ds['target'][j]):g}" if first else None
                ax.plot([there.min(), there.max()], [y, y], color=colour, lw=1.8)
                ax.plot(np.median(there), y, "o", color=colour, ms=5, label=label)
                first = False
            never = samples - len(there)
            if never and j == targets - 1:
                ax.annotate(
                    f"{never} never", (1.01, i), xycoords=("axes fraction", "data"), fontsize=8, va="center",
                    color="#b2182b",
                )  # fmt: skip
    ax.set_yticks(range(solvers), [str(m) for m in ds["solver"].values])
    ax.set_ylim(solvers - 0.5, -0.5)
    ax.set_xscale("log")
    ax.axvline(float(ds.attrs["budget"]), color="0.5", lw=0.8, ls="--")
    ax.set_xlabel("force evaluations (dashed: budget)")
    title = f"median and range of the samples that arrive; at the right, of {samples}, those that never\nreach "
    ax.set_title(f"{title}{float(ds['target'].min()):g}", fontsize=9)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, title="force residual", title_fontsize=8)


def _courses(ds: xr.Dataset, ax: Axes) -> None:
    """Draw the median over samples of the best residual so far; a sample that is done keeps its last one."""
    from matplotlib import colormaps

    styles = {"euler": ("-", "viridis"), "anderson": ("--", "autumn")}
    for kind, (style, palette) in styles.items():
        which = np.flatnonzero(ds["kind"].values == kind)
        colours = colormaps[palette](np.linspace(0.0, 0.85, max(len(which), 1)))
        for i, colour in zip(which, colours, strict=False):
            course = ds["history"].isel(solver=int(i)).values
            kept = np.fmin.accumulate(np.where(np.isnan(course), np.inf, course), axis=0)
            median = np.median(kept, axis=1)
            median[np.isnan(course).all(1)] = np.nan
            median = np.where(median > 0, median, np.where(np.isnan(median), np.nan, 1e-17))
            ax.plot(ds["evaluation"], median, style, color=colour, lw=1.4, label=str(ds["solver"].values[i]))
    for target in ds["target"].values:
        ax.axhline(float(target), color="0.8", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("force evaluations")
    ax.set_ylabel("best force residual so far, median sample")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="lower left")
