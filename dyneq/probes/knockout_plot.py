"""The figure of a knockout result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels
from dyneq.probes.knockout_summary import part_label

#: Below the axes: crossings and folds may lie anywhere inside.
_LEGEND: dict[str, Any] = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncol": 2}
_STABLE, _UNSTABLE, _WORST = "#9ecae1", "#f4a582", "#1a1a1a"


def plot_knockout(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw the margin at the followed root, with crossings and folds, and the residuals of the relaxation.

    Args:
        ds: A knockout result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 2, (11, 5.0), "a knockout is")
    _margins(ds, axes[0])
    _residuals(ds, axes[1])
    return figure_of(axes)


def _margins(ds: xr.Dataset, ax: Axes) -> None:
    alpha, margin = ds["alpha"].values, ds["margin"].values
    mark = "o" if len(alpha) == 1 else None
    top = int(np.abs(alpha - 1).argmin())
    for s in range(ds.sizes["sample"]):
        unstable = margin[top, s] > 0
        ax.plot(alpha, margin[:, s], color=_UNSTABLE if unstable else _STABLE, lw=0.8, marker=mark, zorder=2 + unstable)
    for color, label in ((_UNSTABLE, "unstable"), (_STABLE, "stable")):
        count = int((margin[top] > 0).sum() if color == _UNSTABLE else (margin[top] <= 0).sum())
        if count:
            ax.plot([], [], color=color, lw=2, label=f"{count} samples {label} at alpha = {alpha[top]:g}")
    known = np.isfinite(margin).any(1)
    worst = np.where(np.isfinite(margin), margin, -np.inf).max(1)
    ax.plot(alpha[known], worst[known], color=_WORST, lw=2.2, marker=mark, label="worst of all samples", zorder=5)
    ax.axhline(0, color="0.4", lw=1, ls="--", zorder=1)
    critical = ds["critical_alpha"].values
    for name, color in (
        ("supercritical", "#1b7837"),
        ("subcritical", "#b2182b"),
        ("", "#762a83"),
        ("undetermined", "0.5"),
    ):
        at = critical[np.isfinite(critical) & (ds["criticality"].values == name)]
        if len(at):
            label = f"crossing: {name} Hopf" if name else "crossing: no Hopf pair of a flow"
            ax.plot(at, np.zeros(len(at)), "o", color=color, ms=7, mec="white", zorder=7, label=label)
    folds = ds["branch_end"].values[ds["branch_end_kind"].values == "fold"]
    if len(folds):
        ax.plot(folds, np.zeros(len(folds)), "x", color="black", ms=7, mew=1.6, zorder=6, label="root ends in a fold")
    ax.set_xlabel(f"alpha, factor of {part_label(ds)}")
    ax.set_ylabel(
        "Re mu of the leading pair" if ds.attrs["time"] == "flow" else "abs(multiplier) - 1 of the leading pair"
    )
    ax.set_title("stability at the followed root (above 0: unstable)", fontsize=10)
    ax.legend(**_LEGEND)


def _residuals(ds: xr.Dataset, ax: Axes) -> None:
    alpha = ds["alpha"].values
    for name, color, label in (("floor", "#2166ac", "floor"), ("oscillation", "#d6604d", "oscillation")):
        values = np.where(ds[name].values > 0, ds[name].values, np.nan)
        known = np.isfinite(values).any(1)
        if not known.any():
            continue
        ax.plot(alpha[known], np.nanmax(values[known], 1), "o-", color=color, lw=2, label=f"{label}, worst sample")
        ax.plot(alpha[known], np.nanmedian(values[known], 1), "o--", color=color, lw=1, ms=3, label=f"{label}, median")
    ax.set_yscale("log")
    ax.set_xlabel(f"alpha, factor of {part_label(ds)}")
    ax.set_ylabel("force residual norm(F)/norm(z)")
    settled = (ds["status"].values == "converged").sum(1)
    top = int(np.abs(alpha - 1).argmin())
    share = f"{settled[top]} of {ds.sizes['sample']} settle at alpha = {alpha[top]:g}"
    ax.set_title(f"relaxation of {ds.attrs['depth']} steps: {share}", fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(**_LEGEND)
