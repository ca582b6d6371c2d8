"""A drift as text and as plain values: one row a snapshot, and one a cumulative learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dyneq.catalog.drift_follow import SERIES, Series
from dyneq.catalog.drift_moved import with_ends
from dyneq.catalog.drift_turns import Turn
from dyneq.probes.aligned import aligned

#: Dimensions whose entries have names.
ENTRIES = ("estimator", "navg_estimator", "penalty", "gradient")
#: Shown for what was not measured, or does not exist.
NONE = "-"


def table(ds: xr.Dataset) -> str:
    """Return the series of one run, one row a snapshot, with the columns it has; the gradient's in tables of their own.

    Args:
        ds: The series of one run.
    """
    steps = ("step", [str(int(s)) for s in ds["step"].values])
    followed = [_of_followed(ds, dim) for dim in ("navg_estimator", "penalty", "gradient")]
    tables = [columns for columns in (_of_state(ds), _of_gradient(ds), *followed) if columns]
    lines: list[str] = []
    for columns in tables or [[]]:
        heads, cells = zip(steps, *columns, strict=True)
        lines += [*aligned(heads, list(zip(*cells, strict=True))), ""]
    return "\n".join([*lines, *_legend(ds)])


def _of_state(ds: xr.Dataset) -> list[tuple[str, list[str]]]:
    """Return heading and cells of the columns on learning rate, loss, residual and spectrum."""
    columns: list[tuple[str, list[str]]] = []

    def add(head: str, name: str, form: Callable[[float], str]) -> None:
        if name in ds and np.isfinite(ds[name].values).any():
            columns.append((head, [_cell(v, form) for v in ds[name].values]))

    def add_with_bar(head: str, name: str, digits: int) -> None:
        if name in ds and np.isfinite(ds[name].values).any():
            columns.append((head, _with_bars(ds, name, digits)))

    add("sum of lr", "cumulative_lr", lambda v: f"{v:.4g}")
    add_with_bar("val. loss", "validation_loss", 4)
    add("recorded", "recorded_loss", lambda v: f"{v:.4f}")
    add("residual", "force_residual", lambda v: f"{v:.1e}")
    add("worst", "force_residual_max", lambda v: f"{v:.1e}")
    add("unsettled", "unsettled", lambda v: f"{v:.0f}")
    add_with_bar("abscissa", "abscissa", 4)
    add_with_bar("radius", "spectral_radius", 5)
    if "unstable" in ds:
        names = ("unstable", "step_unstable", "undecided", "no_fixed_point")
        counts = zip(*(ds[n].values for n in names), strict=True)
        cells = [NONE if np.isnan(row[0]) else "/".join(f"{n:.0f}" for n in row) for row in counts]
        columns.append(("flow/step/open/none", cells))
    if "leading_mu" in ds:
        columns.append(("leading mu (sample, token)", [_pair(ds.isel(step=i)) for i in range(ds.sizes["step"])]))
    return columns


def _of_gradient(ds: xr.Dataset) -> list[tuple[str, list[str]]]:
    """Return heading and cells of the columns on each estimator."""
    columns: list[tuple[str, list[str]]] = []
    for i, estimator in enumerate(ds["estimator"].values if "estimator" in ds.dims else ()):
        one = ds.isel(estimator=i)
        marks = [f" !{n:.0f}" if n > 0 else "" for n in one["marked_samples"].values]
        cosines = [cell + mark for cell, mark in zip(_with_bars(one, "cosine", 4), marks, strict=True)]
        ends = one["norm_ratio_interval"].transpose("step", "bound").values
        ratios = [_within(v, *pair) for v, pair in zip(one["norm_ratio"].values, ends, strict=True)]
        columns += [(f"cos {estimator}", cosines), ("k", ratios), ("self-cos", _with_bars(one, "self_cosine", 3))]
    return columns


def _of_followed(ds: xr.Dataset, dim: str) -> list[tuple[str, list[str]]]:
    """Return heading and cells of the columns of navg, decompose or lrsweep."""
    columns: list[tuple[str, list[str]]] = []
    marked = f"{dim.removesuffix('_estimator')}_marked_samples"

    def add(one: xr.Dataset, series: Series, head: str) -> None:
        ends = one[f"{series.name}_interval"].transpose("step", "bound").values
        if np.isfinite(one[series.name].values).any():
            columns.append((head, [with_ends(v, *pair) for v, pair in zip(one[series.name].values, ends, strict=True)]))

    own = [series for series in SERIES if series.along == dim and series.name in ds and dim != "estimator"]
    for i, entry in enumerate(ds[dim].values if own else ()):
        one = ds.isel({dim: i})
        begin = len(columns)
        for series in own:
            add(one, series, f"{entry} {series.head}" if len(columns) == begin else series.head)
        if marked in one and len(columns) > begin:
            head, cells = columns[begin]
            marks = [f" !{n:.0f}" if n > 0 else "" for n in one[marked].values]
            columns[begin] = (head, [cell + mark for cell, mark in zip(cells, marks, strict=True)])
        if "step_best_lr" in one and dim == "gradient":
            pairs = zip(one["step_best_lr"].values, one["step_inside"].values, strict=True)
            cells = [_cell(v, lambda x: f"{x:g}") + ("*" if inside == 0 else "") for v, inside in pairs]
            columns.append(("at lr", cells))
    if dim == "penalty" and "task_cosine" in ds:
        add(ds, next(s for s in SERIES if s.name == "task_cosine"), "cos task, update")
        head, cells = columns[-1]
        marks = [f" !{n:.0f}" if n > 0 else "" for n in ds["task_marked_samples"].values]
        columns[-1] = (head, [cell + mark for cell, mark in zip(cells, marks, strict=True)])
    return columns


def _with_bars(ds: xr.Dataset, name: str, digits: int) -> list[str]:
    pairs = zip(ds[name].values, ds[f"{name}_error"].values, strict=True)
    return [with_bar(value, error, digits) for value, error in pairs]


def _legend(ds: xr.Dataset) -> list[str]:
    said = []
    depth = ds["force_residual"].attrs.get("depth") if "force_residual" in ds else None
    if depth is not None:
        said.append(
            f"val. loss and residual (median, worst sample) at depth {depth}, {ds.sizes['sample']} samples, +- 95 % "
            "over them; unsettled: force residual above 1e-3"
        )
    if "recorded_loss" in ds and np.isfinite(ds["recorded_loss"].values).any():
        said.append("recorded: the trainer's own, after T1 steps on the whole pinned batch")
    if "unstable" in ds:
        state = ds["abscissa"].attrs.get("state", "") if "abscissa" in ds else ""
        said.append(
            f"spectrum at {state or 'its state'}; samples: flow unstable / only the step too large / undecided / no "
            "fixed point"
        )
    marks = ("marked_samples", "navg_marked_samples", "task_marked_samples", "gradient_marked_samples")
    probes = ("triangulate", "navg", "decompose", "lrsweep")
    told = [p for p, name in zip(probes, marks, strict=True) if name in ds and np.nansum(ds[name].values)]
    if told:
        commands = ", ".join(f"`dyneq {probe} RUN@STEP`" for probe in told)
        said.append(f"!n: n samples with a reservation, which {commands} names")
    if "cosine" in ds:
        said.append(
            f"cos, k: direction and norm against {ds['cosine'].attrs.get('reference', 'the reference')}, all parameters"
        )
    return [f"  {line}" for line in [*said, *_legend_followed(ds)]]


def _legend_followed(ds: xr.Dataset) -> list[str]:
    said = []
    if "navg_bias" in ds:
        reference, count = ds["navg_bias"].attrs.get("reference", "the reference"), ds["navg_batches"].values
        said.append(
            f"navg against {reference}, {_count(count)} batches: squared bias relative to the gradient's mean square, "
            "its share of one batch's squared error, and the cosine averaging tends to [95 %]"
        )
    if "penalty_ratio" in ds:
        task = ds["penalty_ratio"].attrs.get("reference", "its gradient")
        said.append(
            f"decompose with the task's gradient by {task}, {_count(ds['decompose_batches'].values)} batches: share of "
            "the update's squared norm, k = norm(penalty)/norm(task), cosines [95 %]"
        )
    if "step_change" in ds:
        first = ds["step_lag"].attrs.get("reference", "the first")
        star = "; *: at an end of the rates tried" if (ds["step_inside"].values == 0).any() else ""
        said.append(
            f"lrsweep, {_count(ds['lrsweep_samples'].values)} samples: change of the loss by one step at the best rate "
            f"tried, and what it lacks against {first} at its own (deficit, above 0: less descent) [95 %]{star}"
        )
    return said


def _count(values: np.ndarray) -> str:
    known = np.unique(values[np.isfinite(values)])
    return " to ".join(f"{n:.0f}" for n in (known[:1].tolist() + known[1:][-1:].tolist()))


def _cell(value: float, form: Callable[[float], str]) -> str:
    return form(value) if np.isfinite(value) else NONE


def with_bar(value: float, error: float, digits: int) -> str:
    """Return ``2.0912 +- 0.0310``; the bar with two digits, ``?`` where it is not known."""
    if not np.isfinite(value):
        return NONE
    return f"{value:.{digits}f} +- {error:.1e}" if np.isfinite(error) else f"{value:.{digits}f} +- ?"


def _within(value: float, low: float, high: float) -> str:
    """Return ``0.98 [0.91, 1.05]``; a ratio's interval may reach over orders of magnitude."""
    if not np.isfinite(value):
        return NONE
    return f"{value:.3g} [{low:.2g}, {high:.2g}]" if np.isfinite(low + high) else f"{value:.3g} [?]"


def _pair(row: xr.Dataset) -> str:
    mu = complex(row["leading_mu"].item())
    if not np.isfinite(mu):
        return NONE
    imag = f" +- {abs(mu.imag):.3f}i" if mu.imag else ""
    token = int(row["leading_token"].item())
    return f"{mu.real:+.4f}{imag} ({int(row['leading_sample'].item())}, {'all' if token < 0 else token})"


def comparison_table(ds: xr.Dataset, most: int = 16) -> str:
    """Return the losses of several runs at equal cumulative learning rate; of many points an even choice and the last.

    Args:
        ds: Several runs along ``run``.
        most: Rows at most.
    """
    if "at_loss" not in ds:
        return ""
    names = [str(n) for n in ds["run"].values]
    known = [i for i in range(len(names)) if np.isfinite(ds["at_loss"].values[i]).any()]
    count = ds.sizes["at_cumulative_lr"]
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    head = [
        "sum of lr",
        *(f"{names[i]} (step)" for i in known),
        *(f"{names[i]} minus {names[known[0]]}" for i in known[1:]),
    ]
    rows = []
    for j in chosen:
        at = ds.isel(at_cumulative_lr=int(j))
        row = [f"{at['at_cumulative_lr'].item():.4g}"]
        row += [
            f"{with_bar(at['at_loss'].values[i], at['at_loss_error'].values[i], 4)} ({at['at_step'].values[i]:.0f})"
            for i in known
        ]
        row += [with_bar(at["difference"].values[i], at["difference_error"].values[i], 4) for i in known[1:]]
        rows.append(row)
    said = (
        "validation loss at equal cumulative learning rate, linear between snapshots; differences are paired by sample"
    )
    return "\n".join([*aligned(head, rows), "", f"  {said}"])


def rows_of(ds: xr.Dataset) -> list[dict[str, Any]]:
    """Return one plain dictionary a snapshot; complex numbers and intervals as pairs, estimators as dictionaries.

    Args:
        ds: The series of one run.
    """
    rows = []
    for i in range(ds.sizes["step"]):
        at = ds.isel(step=i)
        row: dict[str, Any] = {"step": int(at["step"].item())}
        for name, values in at.data_vars.items():
            if values.dims == ():
                value = values.item()
                row[str(name)] = [value.real, value.imag] if isinstance(value, complex) else value
            elif values.dims in (("sample",), ("bound",)):
                row[str(name)] = values.values.tolist()
            elif values.dims[0] in ENTRIES:
                by = values.transpose(values.dims[0], ...)
                row[str(name)] = dict(zip(map(str, ds[values.dims[0]].values), by.values.tolist(), strict=True))
        rows.append(row)
    return rows


def comparison_rows(ds: xr.Dataset) -> list[dict[str, Any]]:
    """Return one plain dictionary a cumulative learning rate, empty if the runs could not be compared.

    Args:
        ds: Several runs along ``run``.
    """
    if "at_loss" not in ds:
        return []
    names = [str(n) for n in ds["run"].values]
    fields = ("at_loss", "at_loss_error", "at_step", "difference", "difference_error")
    return [
        {
            "cumulative_lr": float(rate),
            **{f.removeprefix("at_"): dict(zip(names, ds[f].values[:, j].tolist(), strict=True)) for f in fields},
        }
        for j, rate in enumerate(ds["at_cumulative_lr"].values)
    ]


def turn_rows(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return turns as plain dictionaries."""
    return [
        {
            **{"condition": t.text, "after": t.after, "by": t.by, "last": t.last, "until": t.until, "sure": t.sure},
            "earlier": turn_rows(t.earlier),
        }
        for t in turns
    ]
