"""The figure of a spectrum result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dyneq.errors import DyneqError
from dyneq.probes.axes import figure_of, panels
from dyneq.probes.spectrum_summary import show, state_label, worst_pair


def plot_spectrum(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw the leading multipliers of every block against the unit circle, and the map of the leading eigenvalue.

    Args:
        ds: A spectrum result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
        DyneqError: If the result holds no eigenvalues.
    """
    if "largest_mu" not in ds:
        raise DyneqError(
            "this spectrum holds no eigenvalues (no sample had a usable state), so there is nothing to draw"
        )
    axes = panels(ax, 2, (11, 4.8), "a spectrum is")
    ds = ds.isel(depth=np.nonzero(np.isfinite(ds["spectral_radius"].values).any(1))[0])
    _multipliers(ds, axes[0])
    _map(ds.isel(depth=-1), axes[1])
    return figure_of(axes)


def _multipliers(ds: xr.Dataset, ax: Axes) -> None:
    eps = float(ds.attrs["eps"])
    names = [name for name in ("largest_mu", "rightmost_mu", "critical_mu") if name in ds]
    everything = []
    palette = ["#9ecae1", "#4292c6", "#08306b", "#d94801"]
    states = ds.sizes["depth"]
    for i in range(states):
        state = ds.isel(depth=i)
        mu = np.concatenate([np.ravel(state[name].values) for name in names])
        mu = mu[np.isfinite(mu)]
        multiplier = 1 + eps * np.concatenate([mu, mu.conj()])
        everything.append(multiplier)
        color = palette[-2] if states == 1 else palette[min(i + max(0, 3 - states), 3)]
        ax.plot(
            multiplier.real, multiplier.imag, ".", ms=4, color=color, alpha=0.6, label=state_label(state), zorder=2 + i
        )
    points = np.concatenate(everything)
    angle = np.linspace(0, 2 * np.pi, 2000)
    ax.plot(np.cos(angle), np.sin(angle), color="black", lw=1, zorder=1)
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    _limits(ax, points)
    modulus = np.abs(1 + eps * np.ravel(ds["largest_mu"].isel(depth=-1).values))
    modulus = modulus[np.isfinite(modulus)]
    outside, what = int((modulus > 1).sum()), "tokens" if "token" in ds.dims else "samples"
    ax.set_title(f"leading multipliers; {outside} of {len(modulus)} {what} leave the unit circle", fontsize=10)
    ax.set_xlabel("Re (1 + eps mu)")
    ax.set_ylabel("Im (1 + eps mu)")
    ax.legend(loc="best", fontsize=8)


def _limits(ax: Axes, points: NDArray[Any]) -> None:
    """Show all points with equal scales and the part of the circle they are near to."""
    left, right = min(points.real.min(), 0.97), max(points.real.max(), 1.0)
    half = 1.08 * max(0.5 * (right - left), float(np.abs(points.imag).max()), 0.05)
    middle = 0.5 * (left + right)
    ax.set_xlim(middle - half, middle + half)
    ax.set_ylim(-half, half)
    ax.set_aspect("equal", adjustable="box")


def _map(state: xr.Dataset, ax: Axes) -> None:
    flow = "rightmost_mu" in state
    values = state["rightmost_mu"].real if flow else xr.ufuncs.abs(1 + state["largest_mu"]) - 1
    name = "max Re mu" if flow else "max |multiplier| - 1"
    grid = np.atleast_2d(values.values if values.ndim == 2 else values.values[:, None])
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    norm = TwoSlopeNorm(0.0, vmin=min(low, -1e-3), vmax=max(high, 1e-3))
    if values.ndim == 2:
        image = ax.imshow(grid, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label=f"{name} (red: unstable)")
        ax.set_xlabel("token")
        ax.set_ylabel("sample")
        row, column = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
        ax.plot(column, row, "o", mfc="none", mec="black", ms=10)
    else:
        ax.bar(np.arange(grid.shape[0]), grid[:, 0], color=["#b2182b" if v > 0 else "#2166ac" for v in grid[:, 0]])
        ax.axhline(0, color="black", lw=1)
        ax.set_xlabel("sample")
        ax.set_ylabel(name)
    title = f"{state_label(state)}: {name} = {high:+.4f}"
    if flow:
        mu, where = worst_pair(state, "rightmost")
        title = f"{state_label(state)}: rightmost {show(mu)} at {where}"
    moving = int((state["status"] != "converged").sum())
    if moving:
        title += f"\n{moving} of {state.sizes['sample']} samples not at a fixed point"
    ax.set_title(title, fontsize=10)
