"""The figures of a drift: panels over one axis of steps, and losses against cumulative learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.catalog.drift_turns import FAITHFUL, Turn
from dyneq.errors import UsageError

_RUNS = ("#2166ac", "#d95f02", "#1b9e77", "#7570b3", "#b2182b", "#666666", "#e6ab02", "#a6761d")
_MAIN, _WORST, _FAINT = "#08306b", "#b2182b", "0.6"


def plot_drift(ds: xr.Dataset, turns: Sequence[Turn] = (), ax: Any = None) -> Figure:
    """Draw loss, residual, abscissa and cosines of one run over one axis of steps; bands mark where it turned.

    Args:
        ds: The series of one run.
        turns: Where it turned; each is a band between the two snapshots that enclose it, in its own panel.
        ax: As many axes as there are panels; a new figure if None.

    Raises:
        UsageError: If nothing can be drawn, or another number of axes is given.
    """
    panels = [(draw, words) for needed, draw, words in _PANELS if needed in ds and np.isfinite(ds[needed].values).any()]
    if not panels:
        raise UsageError("this drift has no series to draw; measure residual or spectrum")
    if ax is None:
        figure = Figure(figsize=(9, 0.9 + 2.3 * len(panels)), layout="constrained")
        axes: Sequence[Axes] = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)).tolist()
    else:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != len(panels):
            raise UsageError(f"this drift is drawn on {len(panels)} axes, but {len(axes)} were given")
        figure = axes[0].figure  # type: ignore[assignment]
    for (draw, words), one in zip(panels, axes, strict=True):
        draw(ds, one)
        steps = ds["step"].values
        for turned in turns:
            if any(word in turned.text for word in words):
                begin = steps[0] if turned.after is None else turned.after
                one.axvspan(begin, turned.by, color="#fdd0a2", alpha=0.6, lw=0, zorder=0)
        one.grid(axis="x", color="0.92", lw=0.6)
    axes[0].set_title(_title(ds), fontsize=10)
    axes[-1].set_xlabel(
        "step (updates)" + ("; shaded: the snapshots between which the quantity turned" if turns else "")
    )
    return figure


def _title(ds: xr.Dataset) -> str:
    samples = f", {ds.sizes['sample']} samples" if "sample" in ds.dims else ""
    return f"{ds.attrs['run']}: {ds.sizes['step']} snapshots{samples}"


def _loss(ds: xr.Dataset, ax: Axes) -> None:
    _recorded(ds, ax, "update", "log_loss", _FAINT)
    bars = ds["validation_loss_error"].values
    depth = ds["validation_loss"].attrs.get("depth", "?")
    label = f"measured at depth {depth}, +- 95 % over samples"
    ax.errorbar(
        ds["step"], ds["validation_loss"], yerr=_drawn(bars), color=_MAIN, marker="o", ms=4, capsize=2, label=label
    )
    ax.set_ylabel("validation loss,\nnats per token")
    ax.legend(fontsize=8)


def _recorded(ds: xr.Dataset, ax: Axes, along: str, name: str, colour: str) -> None:
    if name in ds:
        ax.plot(ds[along], ds[name], color=colour, lw=1.2, label="recorded in training, after T1 steps")
    elif "recorded_loss" in ds and np.isfinite(ds["recorded_loss"].values).any():
        ax.plot(ds["step"], ds["recorded_loss"], color=colour, lw=1.2, label="recorded in training, after T1 steps")


def _residual(ds: xr.Dataset, ax: Axes) -> None:
    steps = ds["step"].values
    for one in ds["sample_force_residual"].transpose("sample", "step").values:
        ax.plot(steps, _positive(one), color=_FAINT, lw=0.4, alpha=0.5, zorder=1)
    ax.plot(steps, _positive(ds["force_residual"].values), color=_MAIN, marker="o", ms=4, label="median")
    ax.plot(steps, _positive(ds["force_residual_max"].values), color=_WORST, marker="o", ms=4, label="worst sample")
    ax.axhline(1e-3, color="black", ls=":", lw=1, label="settled below 1e-3")
    ax.set_yscale("log")
    ax.set_ylabel(f"force residual at\ndepth {ds['force_residual'].attrs.get('depth', '?')}, 1/time")
    ax.legend(fontsize=8)


def _abscissa(ds: xr.Dataset, ax: Axes) -> None:
    _with_bars(ds, ax, "abscissa", _MAIN, "largest over the samples")
    ax.axhline(0, color="black", lw=1)
    state = ds["abscissa"].attrs.get("state", "")
    ax.set_ylabel(f"abscissa {f'at {state},' if state else ''}\n1/time (above 0: unstable)")
    if "unstable" in ds:
        _counted(ds, ax)


def _radius(ds: xr.Dataset, ax: Axes) -> None:
    _with_bars(ds, ax, "spectral_radius", _MAIN, "largest over the samples")
    ax.axhline(1, color="black", lw=1)
    ax.set_ylabel("spectral radius\n(above 1: unstable)")


def _counted(ds: xr.Dataset, ax: Axes) -> None:
    """Write beside each point how many samples are unstable, flow and step alone, where any are."""
    for step, value, flow, by_step in zip(
        ds["step"].values, ds["abscissa"].values, ds["unstable"].values, ds["step_unstable"].values, strict=True
    ):
        if np.isfinite(value) and (flow > 0 or by_step > 0):
            ax.annotate(
                f"{flow:.0f} + {by_step:.0f}",
                (step, value),
                xytext=(0, 6),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
    if np.nansum(ds["unstable"].values) + np.nansum(ds["step_unstable"].values):
        ax.plot([], [], " ", label="n + m: samples unstable by the flow + by the step alone")
        ax.margins(y=0.25)
    ax.legend(fontsize=8)


def _with_bars(ds: xr.Dataset, ax: Axes, name: str, colour: str, label: str) -> None:
    bars = ds[f"{name}_error"].values
    ax.errorbar(ds["step"], ds[name], yerr=_drawn(bars), color=colour, marker="o", ms=4, capsize=2, label=label)
    unknown = ~np.isfinite(bars) & np.isfinite(ds[name].values)
    if unknown.any():
        ax.plot(
            ds["step"].values[unknown],
            ds[name].values[unknown],
            "o",
            mfc="white",
            color=colour,
            ms=7,
            label="error bar unknown",
            zorder=3,
        )


def _cosine(ds: xr.Dataset, ax: Axes) -> None:
    for i, estimator in enumerate(ds["estimator"].values):
        one = ds.isel(estimator=i)
        value, ends = one["cosine"].values, one["cosine_interval"].transpose("bound", "step").values
        bars = _drawn(np.abs(ends - value))
        colour = _RUNS[i % len(_RUNS)]
        ax.errorbar(ds["step"], value, yerr=bars, color=colour, marker="o", ms=4, capsize=2, label=str(estimator))
    ax.axhline(FAITHFUL, color="black", ls=":", lw=1)
    ax.axhline(0, color="black", lw=0.6)
    ax.set_ylim(min(-0.05, float(np.nanmin(ds["cosine"].values)) - 0.05), 1.05)
    ax.set_ylabel(f"cosine to\n{ds['cosine'].attrs.get('reference', 'reference')}")
    ax.legend(fontsize=8)


def _drawn(bars: np.ndarray) -> np.ndarray:
    """Return bars for drawing alone: an unknown one has no length, and its point is marked."""
    return np.where(np.isfinite(bars), bars, 0.0)


def _positive(values: np.ndarray) -> np.ndarray:
    """Return values for a logarithmic axis: exact zeros at its floor."""
    return np.where(values == 0, 1e-17, values)


#: What has to be there, what draws it, and words of the turns it shows.
_PANELS: tuple[tuple[str, Callable[[xr.Dataset, Axes], None], tuple[str, ...]], ...] = (
    ("validation_loss", _loss, ("validation loss",)),
    ("force_residual", _residual, ("force residual",)),
    ("abscissa", _abscissa, ("abscissa",)),
    ("spectral_radius", _radius, ("spectral radius",)),
    ("cosine", _cosine, ("cosine",)),
)


def plot_runs(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the validation loss of several runs against their cumulative learning rate, and against the step.

    Args:
        ds: Several runs along ``run``.
        ax: A pair of axes; a new figure if None.

    Raises:
        UsageError: If no loss was measured, or another number of axes is given.
    """
    if "validation_loss" not in ds:
        raise UsageError("these runs have no measured loss to draw; leave --probe out, or add --probe residual")
    if ax is None:
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2)).tolist()
    else:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != 2:
            raise UsageError(f"several runs are drawn on two axes, but {len(axes)} were given; pass a pair")
        figure = axes[0].figure  # type: ignore[assignment]
    for i, name in enumerate(ds["run"].values):
        one, colour = ds.isel(run=i), _RUNS[i % len(_RUNS)]
        for at, along, between in ((axes[0], "cumulative_lr", "log_cumulative_lr"), (axes[1], "step", "update")):
            x = one[along].values.astype(float)
            known = np.isfinite(x) & np.isfinite(one["validation_loss"].values)
            if "log_loss" in one:
                at.plot(one[between].values, one["log_loss"].values, color=colour, lw=1, alpha=0.35)
            if known.any():
                bars = _drawn(one["validation_loss_error"].values)[known]
                at.errorbar(
                    x[known],
                    one["validation_loss"].values[known],
                    yerr=bars,
                    color=colour,
                    marker="o",
                    ms=4,
                    capsize=2,
                    label=str(name),
                )
            else:
                at.plot([], [], color=colour, marker="o", ms=4, label=f"{name}: learning rates not known")
    if "at_cumulative_lr" in ds.dims:
        end = float(ds["at_cumulative_lr"].values[-1])
        axes[0].axvline(end, color="black", ls=":", lw=1, label="end of the common range")
    depth = ds["validation_loss"].attrs.get("depth", "?")
    axes[0].set_title("at equal learning rate spent", fontsize=10)
    axes[1].set_title("at equal number of updates", fontsize=10)
    axes[0].set_xlabel("cumulative learning rate (sum of lr over the updates)")
    axes[1].set_xlabel("step (updates)")
    axes[0].set_ylabel(
        f"validation loss at depth {depth}, nats per token\n(faint: recorded in training, after T1 steps)"
    )
    axes[0].legend(fontsize=8)
    return figure
