"""The figure of a nonnormality result: a pseudospectrum beside the transient growth."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dyneq.errors import DyneqError
from dyneq.probes.axes import figure_of, panels
from dyneq.probes.nonnormality_summary import block_name


def plot_nonnormality(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw the pseudospectrum of the first block with its eigenvalues, and growth against the number of steps.

    Args:
        ds: A nonnormality result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
        DyneqError: If the result holds no Jacobian.
    """
    if "growth" not in ds:
        raise DyneqError("this result holds no Jacobian (no sample had a usable state), so there is nothing to draw")
    axes = panels(ax, 2, (11.5, 5.6), "non-normality is")
    if "sigma_min" in ds:
        _pseudospectrum(ds, axes[0])
    else:
        axes[0].text(0.5, 0.5, "blocks too large to be formed", ha="center", va="center")
        axes[0].set_axis_off()
    _growth(ds, axes[1])
    return figure_of(axes)


def _pseudospectrum(ds: xr.Dataset, ax: Axes) -> None:
    flow = "pseudospectral_abscissa" in ds
    row = ds.isel(block=0)
    levels = ds["level"].values
    sigma = np.maximum(ds["sigma_min"].values, np.finfo(float).tiny)
    real, imag = ds["real"].values, ds["imag"].values
    palette = ["#08306b", "#2171b5", "#6baed6", "#c6dbef"]
    colours = (
        [palette[int(i)] for i in np.linspace(0, len(palette) - 1, len(levels))] if len(levels) > 1 else palette[:1]
    )
    ax.contour(real, imag, np.log10(sigma), levels=np.log10(levels), colors=colours, linewidths=1.4, linestyles="solid")
    values = row["eigenvalue"].values
    ax.plot(values.real, values.imag, ".", color="black", ms=5)
    handles = [Line2D([], [], color="black", marker=".", ls="", label="eigenvalues")]
    angle = np.linspace(0, 2 * np.pi, 800)
    if flow:
        eps = float(ds.attrs["eps"])
        ax.axvline(0, color="#b2182b", lw=1.2)
        handles.append(Line2D([], [], color="#b2182b", label="flow unstable to the right"))
        ax.plot((np.cos(angle) - 1) / eps, np.sin(angle) / eps, color="#b2182b", lw=1, ls="--")
        handles.append(Line2D([], [], color="#b2182b", ls="--", label=f"Euler unstable outside, eps {eps:g}"))
    else:
        ax.plot(np.cos(angle), np.sin(angle), color="#b2182b", lw=1.2)
        handles.append(Line2D([], [], color="#b2182b", label="map unstable outside"))
    lines = zip(levels, colours, strict=True)
    handles += [Line2D([], [], color=c, label=f"within a change of J of {v:g}") for v, c in lines]
    half, middle = 0.5 * max(np.ptp(real), np.ptp(imag)), 0.5 * (real[0] + real[-1])
    ax.set_xlim(middle - half, middle + half)
    ax.set_ylim(-half, half)
    ax.set_aspect("equal", adjustable="box")
    ax.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    what = "mu" if flow else "multiplier"
    ax.set_xlabel(f"Re {what}")
    ax.set_ylabel(f"Im {what}")
    name = "J_tt" if int(row["block_token"]) >= 0 else "J"
    bound = float(row["kreiss"])
    kreiss = "unstable" if np.isinf(bound) else f"Kreiss constant at least {bound:.3g}"
    ax.set_title(f"pseudospectrum of {name}, {block_name(row)}: {kreiss}", fontsize=10)


def _growth(ds: xr.Dataset, ax: Axes) -> None:
    growth, step = ds["growth"].values, ds["step"].values
    curves = ds["growth_curve"].values
    bounded = np.flatnonzero(np.isfinite(growth))
    if not len(bounded):
        ax.text(0.5, 0.5, "every relaxation map is unstable:\ngrowth has no bound", ha="center", va="center")
        ax.set_axis_off()
        return
    for i in bounded:
        ax.plot(step, curves[i], color="0.8", lw=0.7, zorder=1)
    worst = int(np.nanargmax(growth))
    handles = [Line2D([], [], color="0.8", label=f"each of {len(bounded)} samples with bounded growth")]
    at, largest = int(ds["growth_step"].values[worst]), float(growth[worst])
    ax.plot(step, curves[worst], color="#d94801", lw=1.8, zorder=3)
    ax.plot(at, largest, "o", color="#d94801", ms=6, zorder=4)
    label = f"sample {int(ds['sample'][worst])}: {largest:.3g}-fold at n = {at}"
    handles.append(Line2D([], [], color="#d94801", marker="o", label=label))
    if "block_curve" in ds and int(ds["block_token"][0]) >= 0 and np.isfinite(float(ds["block_growth"][0])):
        row = ds.isel(block=0)
        ax.plot(step, row["block_curve"].values, color="#2171b5", lw=1.8, zorder=3)
        handles.append(Line2D([], [], color="#2171b5", label=f"token block on the left, {block_name(row)}"))
    ax.axhline(1, color="black", lw=0.8, ls=":")
    shown = np.flatnonzero(np.isfinite(curves[bounded]).any(axis=0)).max()
    ax.set_xlim(0, max(int(shown), 1))
    ax.set_xlabel("n, relaxation steps")
    ax.set_ylabel("growth norm(M^n v), norm(v) = 1")
    ax.set_title("transient growth of the vector that grows most, whole samples", fontsize=10)
    low, high = float(np.nanmin(curves[bounded])), float(np.nanmax(curves[bounded]))
    if high > 20 * max(low, 1e-3):
        ax.set_yscale("log")
        ax.set_ylim(max(low, 1e-2) * 0.8, high * 2.5)
    ax.legend(handles=handles, fontsize=8, loc="upper right")
