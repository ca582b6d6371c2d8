"""The figure of an epsilon result."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.epsilon_judge import Blame, Outcome

_COLOURS = {
    Outcome.SETTLED: "#2166ac",
    Outcome.FALLING: "#92c5de",
    Outcome.MOVING: "#f4a582",
    Outcome.DIVERGED: "#b2182b",
    Outcome.ABSORBED: "#777777",
}


def plot_epsilon(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw how each sample ended at each step with the critical steps, and the residual against time.

    Args:
        ds: An epsilon result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (12, 4.8), "an epsilon result is", (3, 2))
    _outcomes(ds, axes[0])
    _courses(ds, axes[1])
    return figure_of(axes)


def _outcomes(ds: xr.Dataset, ax: Axes) -> None:
    """Draw one column a sample, sorted by critical step; the flow-unstable ones, which have none, come first."""
    step = ds["critical_eps"].values
    flow = ds["verdict"].values == str(Blame.FLOW)
    order = np.argsort(np.where(flow, -1.0, np.where(np.isnan(step), np.inf, step)), kind="stable")
    eps, place = ds["eps"].values, np.arange(len(order))
    outcome = ds["outcome"].values[:, order]
    size = float(np.clip(2500 / max(len(order), 1), 18, 120))
    for kind, colour in _COLOURS.items():
        row, column = np.nonzero(outcome == str(kind))
        if len(row):
            ax.scatter(column, eps[row], s=size, marker="s", color=colour, label=str(kind), linewidths=0)
    ax.plot(place, step[order], "_", color="black", ms=9, mew=1.6, label="critical step foretold")
    seen, bar = ds["observed_critical_eps"].values[order], ds["observed_critical_eps_error"].values[order]
    known = np.isfinite(seen)
    if known.any():
        ax.errorbar(
            place[known], seen[known], yerr=bar[known], fmt="o", mfc="none", mec="black", ecolor="black", ms=5,
            mew=0.9, lw=0.9, label="as observed",
        )  # fmt: skip
    for i in np.flatnonzero(flow[order]):
        ax.axvspan(
            i - 0.5, i + 0.5, color="#b2182b", alpha=0.12, lw=0, zorder=0, label="flow unstable" if i == 0 else None
        )
    ax.axhline(float(ds.attrs["own_eps"]), color="0.5", lw=0.8, ls="--", zorder=0)
    ax.set_yscale("log")
    ax.set_yticks(eps, [f"{e:g}" + (" (own)" if e == ds.attrs["own_eps"] else "") for e in eps])
    ax.minorticks_off()
    ax.set_xlim(-0.7, len(order) - 0.3)
    if len(order) <= 40:
        ax.set_xticks(place, [str(int(s)) for s in ds["sample"].values[order]], fontsize=7 if len(order) > 16 else 9)
    ax.set_xlabel("sample, by critical step")
    ax.set_ylabel("step size eps")
    ax.set_title(f"end of the relaxation at time {float(ds['end_time'].median()):g}", fontsize=10)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, frameon=False, markerscale=0.6)


def _courses(ds: xr.Dataset, ax: Axes) -> None:
    """Draw the median and the worst force residual against time for every step."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0.0, 0.9, ds.sizes["eps"]))
    for i, colour in enumerate(colours):
        course = ds["history"].isel(eps=i).values
        ended = np.isnan(course).all(1)
        # a sample that overflowed is worse than any; an exact root has no place on a logarithmic axis
        course = np.where(ended[:, None], np.nan, np.where(np.isnan(course), np.inf, np.maximum(course, 1e-17)))
        own = " (own)" if float(ds["eps"][i]) == float(ds.attrs["own_eps"]) else ""
        ax.plot(ds["time"], np.median(course, axis=1), color=colour, lw=1.6, label=f"{float(ds['eps'][i]):g}{own}")
        ax.plot(ds["time"], course.max(axis=1), color=colour, lw=0.8, ls=":")
    ax.axhline(float(ds.attrs["tol"]), color="0.5", lw=0.8, ls="--")
    ax.set_yscale("log")
    ax.set_xlabel("time n eps")
    ax.set_ylabel("force residual")
    ax.set_title("median (solid) and worst (dotted) sample", fontsize=10)
    ax.legend(title="eps", fontsize=8, title_fontsize=8)
