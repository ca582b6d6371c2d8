"""The figure of a mixing result."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from dyneq.probes.axes import figure_of, panels

_BLUE, _RED = "#2166ac", "#b2182b"


def plot_mixing(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw influence against distance, the sizes of the token-to-token blocks, and the loss at every position.

    Args:
        ds: A mixing result.
        ax: Three axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    axes = panels(ax, 3, (14, 4.2), "a mixing result is")
    _profile(ds, axes[0])
    _coupling(ds, axes[1])
    _losses(ds, axes[2])
    return figure_of(axes)


def _profile(ds: xr.Dataset, ax: Axes) -> None:
    if "typical" not in ds or not (ds["typical"].values > 0).any():
        _words(ax, "no root with a regular Jacobian")
        return
    distance, typical, bar = ds["distance"].values, ds["typical"].values, ds["typical_error"].values
    marker = "." if len(distance) < 3 else ""
    lines = ax.plot(distance, ds["profile"].values.T, color="0.75", lw=0.6, zorder=1, marker=marker)
    lines[0].set_label(f"each of {int(np.isfinite(ds['profile'].values).any(1).sum())} samples")
    ax.errorbar(distance, typical, yerr=bar, color=_BLUE, lw=1.4, marker=".", label="median, 68 % interval", zorder=3)
    kind = str(ds["decay"].item())
    later = distance >= 1
    level = typical[later & np.isfinite(typical) & (typical > 0)]
    if kind in ("exponential", "either", "power") and len(level):
        x = distance[later].astype(float)
        if kind == "power":
            law = x ** -float(ds["decay_power"])
            label = f"distance^-{float(ds['decay_power']):.2f}"
        else:
            law = np.exp(-x / float(ds["decay_length"]))
            label = f"exp(-distance/{float(ds['decay_length']):.1f})"
        known = typical[later] > 0
        height = np.exp(np.mean(np.log(typical[later][known]) - np.log(law[known])))
        ax.plot(x, height * law, color=_RED, ls="--", lw=1.2, label=label, zorder=4)
    ax.set_yscale("log")
    ax.set_xlabel("distance t - s, tokens")
    ax.set_ylabel("norm(dz_t)/norm(delta_s)")
    ax.set_title("how far a force on one token moves the root", fontsize=10)
    ax.legend(fontsize=8)


def _coupling(ds: xr.Dataset, ax: Axes) -> None:
    if "coupling" not in ds or ds.sizes["token"] < 2:
        _words(ax, "no tokens that act on one another")
        return
    grid = ds["coupling"].values
    positive = grid[grid > 0]
    if not len(positive):
        _words(ax, "no token acts on another")
        return
    low = max(float(positive.min()), float(positive.max()) * 1e-6)
    ax.set_facecolor("0.9")
    shown = np.ma.masked_equal(grid, 0)
    image = ax.imshow(shown, norm=LogNorm(low, float(positive.max())), cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="size of dF_t/dz_s (grey: exactly 0)")
    leak = ds["leak"].values
    leak = leak[np.isfinite(leak)]
    ax.set_xlabel("from token s")
    ax.set_ylabel("to token t")
    ax.set_title(f"who acts on whom; leak {leak.max() if len(leak) else np.nan:.2g}", fontsize=10)


def _losses(ds: xr.Dataset, ax: Axes) -> None:
    if "token_loss" not in ds:
        _words(ax, "no loss by position")
        return
    for name, colour, label in (
        ("relaxed_token_loss", "0.6", "relaxed state"),
        ("token_loss", _BLUE, "root"),
    ):
        mean, bar = ds[f"{name}_mean"].values, ds[f"{name}_mean_error"].values
        if np.isfinite(mean).any():
            count = int(np.isfinite(ds[name].values).all(1).sum())
            bars = None if np.isnan(bar).all() else bar
            ax.errorbar(
                ds["token"].values, mean, yerr=bars, color=colour, marker=".", lw=1, label=f"{label}, {count} samples"
            )
    ax.set_xlabel("token")
    ax.set_ylabel("cross-entropy, nats")
    ax.set_title("loss by position, mean and standard error", fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)


def _words(ax: Axes, text: str) -> None:
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
