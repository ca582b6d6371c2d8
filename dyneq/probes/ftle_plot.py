"""The figure of an ftle result."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from dyneq.errors import DyneqError
from dyneq.probes.axes import figure_of, panels
from dyneq.probes.ftle_summary import unit

_COLOURS = {"expanding": "#b2182b", "neutral": "#e08214", "contracting": "#2166ac"}


def plot_ftle(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw how the leading exponents converge, and beside it those of all tokens, or all exponents with error bars.

    Args:
        ds: An ftle result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
        DyneqError: If the result holds no exponents.
    """
    if "history" not in ds or not np.isfinite(ds["exponent"].values).any():
        raise DyneqError("this result holds no finite exponents, so there is nothing to draw")
    axes = panels(ax, 2, (11, 4.4), "exponents are")
    _history(ds, axes[0])
    if "token_exponent" in ds and ds.sizes["token"] > 1:
        _tokens(ds, axes[1])
    else:
        _exponents(ds, axes[1])
    return figure_of(axes)


def _history(ds: xr.Dataset, ax: Axes) -> None:
    _, per, length = unit(ds)
    time = ds["step"].values * length
    values = ds["history"].values[:, :, 0] / length
    reading = ds["reading"].values
    for word, colour in _COLOURS.items():
        which = np.flatnonzero(reading == word)
        for n, i in enumerate(which):
            label = f"{word}: {len(which)} of {len(reading)}" if n == 0 else None
            ax.plot(
                time, values[:, i], lw=1, alpha=0.8, color=colour, label=label, zorder=2 if word == "contracting" else 3
            )
    ax.axhline(0, color="black", lw=0.8)
    finite = values[len(values) // 8 :]
    finite = finite[np.isfinite(finite)]
    if finite.size:  # the first rows average over a few steps only and would set the scale
        low, high = min(float(finite.min()), 0.0), max(float(finite.max()), 0.0)
        pad = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - pad, high + pad)
    ax.set_xlabel("length of the horizon, steps" if per == "step" else "length of the horizon, time units")
    ax.set_ylabel(f"leading exponent, nats per {per}")
    ax.set_title("convergence, one line a sample", fontsize=10)
    ax.legend(fontsize=8, loc="best")


def _tokens(ds: xr.Dataset, ax: Axes) -> None:
    _, per, length = unit(ds)
    grid = ds["token_exponent"].values[:, :, 0] / length
    usable = np.where(np.isfinite(grid), grid, np.nan)
    low, high = float(np.nanmin(usable)), float(np.nanmax(usable))
    norm = TwoSlopeNorm(0.0, vmin=min(low, -1e-3), vmax=max(high, abs(low) / 4, 1e-3))
    image = ax.imshow(usable, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=f"leading exponent, nats per {per}")
    alive = ds["reading"].isin(["expanding", "neutral"]).values
    rows, tokens = np.flatnonzero(alive), ds["exponent_token"].values[alive, 0]
    if len(rows):
        ax.plot(tokens, rows, "o", mfc="none", mec="black", ms=6, ls="none")
    ax.set_xlabel("token")
    ax.set_ylabel("sample")
    circles = "; circles: expanding or neutral" if len(rows) else ""
    ax.set_title(f"leading exponent of every token{circles}", fontsize=10)


def _exponents(ds: xr.Dataset, ax: Axes) -> None:
    name, per, length = unit(ds)
    values, errors = ds[name].values, ds[f"{name}_error"].values
    modes, samples = np.arange(values.shape[1]) + 1, len(values)
    for i in range(samples):
        known = np.isfinite(values[i])
        if known.any():
            shift = 0.4 * (i / max(samples - 1, 1) - 0.5)
            colour = _COLOURS[str(ds["reading"].values[i])]
            bars = 3 * np.nan_to_num(errors[i, known])
            ax.errorbar(modes[known] + shift, values[i, known], bars, fmt=".", ms=6, color=colour, capsize=2, lw=1)
    if "finite_time" in ds:
        top = np.nanmax(np.where(np.isfinite(ds["finite_time"].values), ds["finite_time"].values, np.nan), axis=0)
        ax.plot(modes, top / length, "_", color="black", ms=18, label="finite-time, largest of the samples")
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(modes)
    ax.set_xlabel("rank of the exponent")
    ax.set_ylabel(f"exponent, nats per {per}")
    ax.set_title("exponents with 3 standard errors", fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)
