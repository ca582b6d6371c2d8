"""The tables and the plain values of a decomposition."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients.base import Mark
from dyneq.probes.decompose_summary import percent
from dyneq.probes.gradient_text import between, legend, marks_text, median_text, plus_minus, table
from dyneq.probes.triangulate_rules import Ends

#: Parameters listed for each penalty.
LISTED = 5


def tables(ds: xr.Dataset) -> str:
    """Return penalties over all parameters, ratios and cosines by group, and the parameters that are driven most."""
    count, groups = ds.sizes["penalty"], range(ds.sizes["group"])
    task = str(ds["estimator"].values[0])
    lines = [
        f"  task {task}, penalties at the state after {ds.attrs['t1']} steps; +- and [] are "
        f"{100 * ds.attrs['level']:g} % intervals over {ds.sizes['batch']} batches of {ds.attrs['batch_size']}"
    ]
    head = (
        "all parameters",
        "weight",
        "value",
        "cosine",
        "k",
        "share of update",
        "with it alone",
        "weight at k = 1",
        "reading",
    )
    lines += table([head, *(_row(ds, p) for p in range(count))])
    used = ds["batch_of_sample"].values >= 0
    update = Ends.of(ds, "task_cosine", group=0)
    lines += [
        "  k: norm(weight g_penalty)/norm(g_task); share: <weight g_penalty, update>/norm(update)^2; with it alone: "
        "cosine of task and task + penalty",
        f"  task's share {percent(Ends.of(ds, 'task_share', group=0))}, cosine of task and whole update "
        f"{plus_minus(update)}, norm of its gradient {between(Ends.of(ds, 'task_norm', group=0))}, force residual "
        f"{median_text(ds['free_residual'].values[used])}",
    ]
    marks = marks_text(ds, 0)
    if marks:
        lines += [f"  marks of the task's gradient, with the number of samples: {marks}", *legend(ds, [0])]
    names = [str(g) for g in ds["group"].values]
    for title, name in (("k by group", "ratio"), ("cosine with the task by group", "cosine")):
        write = between if name == "ratio" else plus_minus
        rows = [
            (str(ds["penalty"].values[p]), *(write(Ends.of(ds, name, penalty=p, group=g)) for g in groups))
            for p in range(count)
        ]
        if name == "cosine":
            rows.append(("task and update", *(plus_minus(Ends.of(ds, "task_cosine", group=g)) for g in groups)))
        lines += ["", f"  {title}", *table([("", *names), *rows])]
    for p in range(count):
        lines += _most_driven(ds, p)
    return "\n".join(lines)


def _row(ds: xr.Dataset, p: int) -> tuple[str, ...]:
    at = {"penalty": p, "group": 0}
    return (
        str(ds["penalty"].values[p]),
        f"{float(ds['weight'].values[p]):g}",
        between(Ends.of(ds, "value", penalty=p)),
        plus_minus(Ends.of(ds, "cosine", **at)),
        between(Ends.of(ds, "ratio", **at)),
        percent(Ends.of(ds, "share", **at)),
        plus_minus(Ends.of(ds, "cosine_alone", **at)),
        between(Ends.of(ds, "equal_weight", **at)),
        str(ds["reading"].values[p]),
    )


def _most_driven(ds: xr.Dataset, p: int) -> list[str]:
    ratio = ds["parameter_ratio"].values[p]
    order = [i for i in np.argsort(-np.where(np.isfinite(ratio), ratio, -1)) if np.isfinite(ratio[i]) and ratio[i] > 0]
    if not order:
        return []
    rows = [
        (
            str(ds["parameter"].values[i]),
            between(Ends.of(ds, "parameter_ratio", penalty=p, parameter=i)),
            plus_minus(Ends.of(ds, "parameter_cosine", penalty=p, parameter=i)),
        )
        for i in order[:LISTED]
    ]
    return ["", f"  driven most by {ds['penalty'].values[p]}", *table([("", "k", "cosine"), *rows])]


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return task, penalties and samples as the plain values that --json prints."""
    counts = ds["marked"].values[:, 0].sum(1)
    groups = [str(g) for g in ds["group"].values]
    return {
        "t1": int(ds.attrs["t1"]),
        "batches": ds.sizes["batch"],
        "batch_size": int(ds.attrs["batch_size"]),
        "level": float(ds.attrs["level"]),
        "task": {
            "gradient": str(ds["estimator"].values[0]),
            "marks": {m.name.lower(): int(n) for m, n in zip(Mark, counts, strict=True) if n},
            "groups": {
                name: {
                    "norm": _ends(ds, "task_norm", group=g),
                    "share": _ends(ds, "task_share", group=g),
                    "cosine_with_update": _ends(ds, "task_cosine", group=g),
                }
                for g, name in enumerate(groups)
            },
        },
        "penalties": [_penalty(ds, p, groups) for p in range(ds.sizes["penalty"])],
        "samples": {
            "batch": ds["batch_of_sample"].values.tolist(),
            "free_status": ds["free_status"].values.tolist(),
            "free_residual": ds["free_residual"].values.tolist(),
            "loss": ds["loss"].values.tolist(),
        },
    }


def _penalty(ds: xr.Dataset, p: int, groups: list[str]) -> dict[str, Any]:
    by_group = {
        name: {
            **{
                n: _ends(ds, n, penalty=p, group=g)
                for n in ("cosine", "ratio", "share", "cosine_alone", "equal_weight")
            },
            "draw_noise": float(ds["draw_noise"].values[p, g]),
        }
        for g, name in enumerate(groups)
    }
    by_parameter = {
        str(name): {
            "cosine": _ends(ds, "parameter_cosine", penalty=p, parameter=i),
            "ratio": _ends(ds, "parameter_ratio", penalty=p, parameter=i),
        }
        for i, name in enumerate(ds["parameter"].values)
    }
    return {
        "penalty": str(ds["penalty"].values[p]),
        "measure": str(ds["measure"].values[p]),
        "weight": float(ds["weight"].values[p]),
        "value": _ends(ds, "value", penalty=p),
        "draws": int(ds["draws"].values[p]),
        "reading": str(ds["reading"].values[p]),
        "groups": by_group,
        "parameters": by_parameter,
    }


def _ends(ds: xr.Dataset, name: str, **at: int) -> dict[str, float]:
    end = Ends.of(ds, name, **at)
    return {"value": end.value, "low": end.low, "high": end.high}
