"""The figure of a branches result."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.errors import DyneqError
from dyneq.probes.axes import figure_of, panels
from dyneq.probes.branches_summary import state_label

#: Ratio of the largest to the smallest value from which the axis is logarithmic.
WIDE = 100
_COLOURS = ("#2166ac", "#d95f02", "#1b9e77", "#7570b3")


def plot_branches(ds: xr.Dataset, ax: Sequence[Axes] | None = None) -> Figure:
    """Draw the branches against the tokens and the relative entropy of every head, at the last state.

    Args:
        ds: A branches result.
        ax: Two axes to draw on; a new figure if None.

    Raises:
        UsageError: If another number of axes is given.
        DyneqError: If no sample was measured.
    """
    if "state_norm" not in ds or not np.isfinite(ds["state_norm"].values).any():
        raise DyneqError("no sample of this result had a state to measure branches at, so there is nothing to draw")
    axes = panels(ax, 2, (11, 4.4), "a branches result is")
    measured = np.flatnonzero(np.isfinite(ds["state_norm"].values).any(1))
    state = ds.isel(depth=int(measured[-1]))
    state = state.isel(sample=np.flatnonzero(np.isfinite(state["state_norm"].values)))
    _branches(state, axes[0])
    _attention(state, axes[1])
    return figure_of(axes)


def _branches(state: xr.Dataset, ax: Axes) -> None:
    if "branch" not in state.dims:
        _words(ax, "this system declares no branches")
        return
    per_token = "token_branch_to_state" in state
    name = "token_branch_to_state" if per_token else "branch_to_state"
    positions = state["token"].values if per_token else state["sample"].values
    for i, branch in enumerate(state["branch"].values):
        values = state[name].sel(branch=branch).values
        colour = _COLOURS[i % len(_COLOURS)]
        if not per_token:
            ax.plot(positions, values, "o", color=colour, label=str(branch))
            continue
        low, middle, high = np.nanquantile(values, (0.1, 0.5, 0.9), axis=0)
        ax.plot(positions, middle, color=colour, lw=1.5, label=f"{branch} (median; 10 to 90 %)")
        ax.fill_between(positions, low, high, color=colour, alpha=0.2, lw=0)
    positive = state[name].values[state[name].values > 0]
    if len(positive) and positive.max() > WIDE * positive.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set_xlabel("token" if per_token else "sample")
    ax.set_ylabel("norm(branch)/norm(z)")
    ax.set_title(f"{state_label(state)}: branches against the state, {state.sizes['sample']} samples", fontsize=10)
    ax.legend(fontsize=8)


def _attention(state: xr.Dataset, ax: Axes) -> None:
    if "relative_entropy" not in state:
        _words(ax, "this system has no attention that is known here")
        return
    values = state["relative_entropy"].transpose("sample", "head", "token").values
    grid = np.nansum(values, 0) / np.maximum(np.isfinite(values).sum(0), 1)
    grid = np.where(np.isfinite(values).any(0), grid, np.nan)
    image = ax.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="entropy / log(t + 1), mean over samples")
    ax.set_yticks(np.arange(state.sizes["head"]))
    ax.set_xlabel("token")
    ax.set_ylabel("head")
    ax.set_title("spread of the attention (1: uniform, 0: one token)", fontsize=10)


def _words(ax: Axes, text: str) -> None:
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
