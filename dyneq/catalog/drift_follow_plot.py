"""The panels of a drift on what ``navg``, ``decompose`` and ``lrsweep`` found at every snapshot."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from dyneq.catalog.drift_follow import SERIES
from dyneq.catalog.drift_moved import SLIGHT
from dyneq.catalog.drift_turns import FAITHFUL

_COLOURS = ("#2166ac", "#d95f02", "#1b9e77", "#7570b3", "#b2182b", "#666666")
_BY_NAME = {series.name: series for series in SERIES}


def _lines(
    ds: xr.Dataset,
    ax: Axes,
    name: str,
    *,
    skip: Sequence[str] = (),
    style: str = "-",
    label: str = "{}",
    colours: Sequence[str] = _COLOURS,
) -> None:
    """Draw one quantity of every entry with its intervals; hollow where there is none."""
    dim = _BY_NAME[name].along
    names = [str(n) for n in ds[dim].values] if dim else ["task"]
    spread = np.diff(ds["step"].values).min() if ds.sizes["step"] > 1 else 1.0
    for i, entry in enumerate(names):
        if entry in skip:
            continue
        one = ds.isel({dim: i}) if dim else ds
        value, ends = one[name].values, one[f"{name}_interval"].transpose("bound", "step").values
        known, colour = np.isfinite(ends).all(0) & np.isfinite(value), colours[i % len(colours)]
        # intervals at one step stand side by side
        at = ds["step"].values + 0.04 * spread * (i - (len(names) - 1) / 2)
        bars = np.where(known, np.abs(ends - value), 0.0)
        ax.errorbar(
            at, value, yerr=bars, color=colour, ls=style, marker="o", ms=4, capsize=2, label=label.format(entry)
        )
        if (unknown := ~known & np.isfinite(value)).any():
            ax.plot(at[unknown], value[unknown], "o", mfc="white", color=colour, ms=7, zorder=3)


def _reference(ds: xr.Dataset, name: str) -> str:
    return str(ds[name].attrs.get("reference", "the reference"))


def _not_below(ax: Axes, size: float) -> None:
    """Widen an axis about 0 to a size below which nothing matters, so that rounding makes no scale of its own."""
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.5 * size), max(high, size))


def _limit(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "navg_limit_cosine")
    ax.axhline(FAITHFUL, color="black", ls=":", lw=1)
    ax.set_ylabel(f"cosine to {_reference(ds, 'navg_limit_cosine')}\naveraging tends to")
    ax.legend(fontsize=8)


def _bias(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "navg_bias")
    _not_below(ax, SLIGHT)
    ax.axhline(0, color="black", lw=0.6)
    ax.set_ylabel("squared bias, relative\nto the mean square")
    ax.legend(fontsize=8)


def _share(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "penalty_share")
    ax.axhline(0, color="black", lw=0.6)
    ax.axhline(0.5, color="black", ls=":", lw=1, label="half of the update")
    ax.set_ylabel("penalty's share\nof the update")
    ax.legend(fontsize=8)


def _ratio(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "penalty_ratio")
    drawn = np.concatenate([np.ravel(ds[name].values) for name in ("penalty_ratio", "penalty_ratio_interval")])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        ax.set_yscale("log")
    ax.axhline(1, color="black", ls=":", lw=1, label="as large as the task's")
    if ax.get_yscale() == "linear":
        ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))
    ax.set_ylabel("k = norm(penalty)\n/ norm(task)")
    ax.legend(fontsize=8)


def _task(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "penalty_cosine", style="--", label="task and {}")
    _lines(ds, ax, "task_cosine", label="task and whole update", colours=("black",))
    ax.axhline(0, color="black", lw=0.6)
    ax.set_ylim(min(-0.05, ax.get_ylim()[0]), 1.05)
    ax.set_ylabel("cosine")
    ax.legend(fontsize=8)


def _change(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "step_change")
    inside, change = (ds[name].transpose("gradient", "step").values for name in ("step_inside", "step_change"))
    if (at_end := np.where(inside == 0, change, np.nan)[np.isfinite(change).any(1)]).size and np.isfinite(at_end).any():
        steps = np.broadcast_to(ds["step"].values, at_end.shape)
        ax.plot(steps.ravel(), at_end.ravel(), "kx", ms=8, label="best rate at an end of those tried")
    ax.axhline(0, color="black", lw=0.6)
    ax.set_ylabel("best change of the loss\nby one step, nats per token")
    ax.legend(fontsize=8)


def _lag(ds: xr.Dataset, ax: Axes) -> None:
    _lines(ds, ax, "step_lag", skip=[_reference(ds, "step_lag")])
    _not_below(ax, SLIGHT * float(np.nanmax(np.abs(ds["step_change"].values))))
    ax.axhline(0, color="black", lw=0.6)
    ax.set_ylabel(f"deficit of one step against\n{_reference(ds, 'step_lag')}, nats per token")
    ax.legend(fontsize=8)


#: What has to be there, and what draws it.
FOLLOWED: tuple[tuple[str, Callable[[xr.Dataset, Axes], None]], ...] = (
    ("navg_limit_cosine", _limit),
    ("navg_bias", _bias),
    ("penalty_share", _share),
    ("penalty_ratio", _ratio),
    ("task_cosine", _task),
    ("step_change", _change),
    ("step_lag", _lag),
)
