"""The figures of a drift: panels over one axis of steps, and losses against cumulative learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyneq.catalog.drift_follow_plot import FOLLOWED
from dyneq.catalog.drift_turns import FAITHFUL, Turn
from dyneq.errors import UsageError

_RUNS = ("#2166ac", "#d95f02", "#1b9e77", "#7570b3", "#b2182b", "#666666", "#e6ab02", "#a6761d")
_MAIN, _WORST, _FAINT = "#08306b", "#b2182b", "0.6"


def plot_drift(ds: xr.Dataset, turns: Sequence[Turn] = (), ax: Any = None) -> Figure:
    """Draw loss, residual, abscissa and gradient of one run over one axis of steps; bands mark where it turned.

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
        figure = Figure(figsize=(9, 0.9 + (2.3 if len(panels) < 8 else 1.9) * len(panels)), layout="constrained")
        axes: Sequence[Axes] = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)).tolist()
    else:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != len(panels):
            raise UsageError(f"this drift is drawn on {len(panels)} axes, but {len(axes)} were given")
        figure = axes[0].figure  # type: ignore[assignment]
    banded = False
    for (draw, words), one in zip(panels, axes, strict=True):
        draw(ds, one)
        steps = ds["step"].values
        for turned in turns:
            if any(word in turned.text for word in words):
                banded = True
                for stretch in (turned, *turned.earlier):
                    begin = steps[0] if stretch.after is None else stretch.after
                    one.axvspan(begin, stretch.by, color="#fdae6b", alpha=0.7, lw=0, zorder=0)
                    one.axvspan(stretch.by, stretch.last, color="#fee6ce", alpha=0.7, lw=0, zorder=0)
        one.grid(axis="x", color="0.92", lw=0.6)
    axes[0].set_title(_title(ds), fontsize=10)
    axes[-1].set_xlabel(
        "step (updates)"
        + ("; orange: the quantity turned between these snapshots; light: until here" if banded else "")
    )
    return figure


def _title(ds: xr.Dataset) -> str:
    samples = f", {ds.sizes['sample']} samples" if "sample" in ds.dims else ""
    return f"{ds.attrs['run']}: {ds.sizes['step']} snapshots{samples}"


def _loss(ds: xr.Dataset, ax: Axes) -> None:
    _recorded(ds, ax, "update", "log_loss", _FAINT)
    loss, bar = ds["validation_loss"].values, ds["validation_loss_error"].values
    depth = ds["validation_loss"].attrs.get("depth", "?")
    ax.plot(ds["step"], loss, color=_MAIN, marker="o", ms=4, label=f"measured at depth {depth}")
    band = "+- 95 % over samples; differences are paired and tighter"
    ax.fill_between(ds["step"], loss - bar, loss + bar, color=_MAIN, alpha=0.1, lw=0, label=band)
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
    ax.legend(fontsize=8)


def _radius(ds: xr.Dataset, ax: Axes) -> None:
    _with_bars(ds, ax, "spectral_radius", _MAIN, "largest over the samples")
    ax.axhline(1, color="black", lw=1)
    ax.set_ylabel("spectral radius\n(above 1: unstable)")


def _counts(ds: xr.Dataset, ax: Axes) -> None:
    kinds = (
        ("unsettled", "force residual above 1e-3", "black", "s"),
        ("unstable", "unstable by the flow (of a map: unstable)", _WORST, "o"),
        ("step_unstable", "unstable by the step alone", "#d95f02", "v"),
        ("undecided", "undecided", _FAINT, "x"),
        ("no_fixed_point", "without a fixed point", "#7570b3", "+"),
    )
    for name, label, colour, marker in kinds:
        values = ds[name].values if name in ds else np.zeros(0)
        if values.size and (name in ("unsettled", "unstable") or (values > 0).any()):
            ax.plot(ds["step"], values, color=colour, marker=marker, ms=5, lw=1, label=label)
    if "sample" in ds.dims:
        ax.set_ylabel(f"samples of {ds.sizes['sample']}")
    ax.set_ylim(-0.3, max(1.3, ax.get_ylim()[1]))  # counts are whole: none of them makes no scale of its own
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
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
    drawn = np.concatenate([np.ravel(ds[name].values) for name in ("cosine", "cosine_interval")])
    lowest = float(np.nanmin(drawn))
    ax.set_ylim(min(-0.05, lowest - 0.05), 1.05)
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
    ("unstable", _counts, ()),
    ("cosine", _cosine, ()),  # the stretches of several estimators would cover each other
    *((needed, draw, ()) for needed, draw in FOLLOWED),
)


def plot_runs(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw the loss of several runs against cumulative learning rate, and their differences to the first of them.

    Where they cannot be compared, the second panel has the loss against the step.

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
        axes: Sequence[Axes] = figure.subplots(1, 2, width_ratios=(3, 2)).tolist()
    else:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != 2:
            raise UsageError(f"several runs are drawn on two axes, but {len(axes)} were given; pass a pair")
        figure = axes[0].figure  # type: ignore[assignment]
    _against(ds, axes[0], "cumulative_lr", "log_cumulative_lr")
    axes[0].set_xlabel("cumulative learning rate (sum of lr over the updates)")
    if "difference" in ds:
        _differences(ds, axes[1])
        axes[1].set_xlabel("cumulative learning rate")
        axes[1].set_title("difference where it is equal", fontsize=10)
        end = float(ds["at_cumulative_lr"].values[-1])
        axes[0].axvline(end, color="black", ls=":", lw=1, label="end of the common range")
    else:
        _against(ds, axes[1], "step", "update")
        axes[1].set_xlabel("step (updates)")
    axes[0].set_title("loss against learning rate spent", fontsize=10)
    axes[0].legend(fontsize=8)
    return figure


def _against(ds: xr.Dataset, ax: Axes, along: str, recorded_along: str) -> None:
    for i, name in enumerate(ds["run"].values):
        one, colour = ds.isel(run=i), _RUNS[i % len(_RUNS)]
        x = one[along].values.astype(float)
        known = np.isfinite(x) & np.isfinite(one["validation_loss"].values)
        if "log_loss" in one:
            ax.plot(one[recorded_along].values, one["log_loss"].values, color=colour, lw=1, alpha=0.35)
        label = str(name) if known.any() else f"{name}: learning rates not known"
        ax.plot(x[known], one["validation_loss"].values[known], color=colour, marker="o", ms=4, label=label)
    depth = ds["validation_loss"].attrs.get("depth", "?")
    ax.set_ylabel(f"validation loss at depth {depth}, nats per token\n(faint: recorded in training, after T1 steps)")


def _differences(ds: xr.Dataset, ax: Axes) -> None:
    rate, compared = ds["at_cumulative_lr"].values, np.isfinite(ds["at_loss"].values).any(axis=1)
    first = str(ds["run"].values[int(np.argmax(compared))])
    for i, name in enumerate(ds["run"].values):
        apart, bar = ds["difference"].values[i], ds["difference_error"].values[i]
        if np.isfinite(apart).any():
            colour = _RUNS[i % len(_RUNS)]
            label = f"{name} minus {first}, 95 %"
            ax.errorbar(rate, apart, yerr=_drawn(bar), color=colour, marker="o", ms=4, capsize=2, label=label)
    ax.axhline(0, color="black", lw=1)
    ax.set_ylabel("difference of validation loss, nats per token\n(paired by sample; with interpolation error)")
    ax.legend(fontsize=8)
