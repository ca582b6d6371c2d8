"""A drift as text and as plain values: one row a snapshot, and one a cumulative learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dyneq.catalog.drift_turns import Turn
from dyneq.probes.aligned import aligned

#: Shown for what was not measured, or does not exist.
NONE = "-"


def table(ds: xr.Dataset) -> str:
    """Return the series of one run, one row a snapshot, with the columns it has; the gradient's in a second table.

    Args:
        ds: The series of one run.
    """
    steps = ("step", [str(int(s)) for s in ds["step"].values])
    tables = [columns for columns in (_of_state(ds), _of_gradient(ds)) if columns]
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
    if "cosine" in ds:
        if np.nansum(ds["marked_samples"].values):
            said.append("!n: n samples with a reservation, which `dyneq triangulate RUN@STEP` names")
        said.append(
            f"cos, k: direction and norm against {ds['cosine'].attrs.get('reference', 'the reference')}, all parameters"
        )
    return [f"  {line}" for line in said]


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
    """Return one plain dictionary a snapshot; complex numbers as pairs, estimators as dictionaries.

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
            elif values.dims == ("sample",):
                row[str(name)] = values.values.tolist()
            elif values.dims == ("estimator",):
                row[str(name)] = dict(zip(map(str, ds["estimator"].values), values.values.tolist(), strict=True))
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
