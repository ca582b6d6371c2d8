"""Arms with one group removed: agreement of the whole gradient without one parameter group.

What holds for all parameters together can be due to one group that dominates the norm. The inner products of the groups
add up, so that those of what is left are the sum over the other groups; they are summed anew and not subtracted from
the whole, where a dominant group would cancel all digits.
"""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients import agreement
from dyneq.probes.gradient_dataset import PAIRED, grouped, put
from dyneq.probes.gradient_sets import GradientSet
from dyneq.probes.gradient_text import cosine_text, names, number, plus_minus
from dyneq.probes.triangulate_rules import Ends, Reading, with_readings

#: What is said of an arm is read off these.
_STATISTICS = ("cosine", "norm_ratio", "limit_cosine")
#: Change of the cosine that is worth a sentence; its whole interval has to lie beyond.
NOTABLE = 0.05
#: Readings that leave it open what an estimator is.
_OPEN = {Reading.UNDETERMINED, Reading.AMBIGUOUS, Reading.SCALE_OPEN}


def with_arms(ds: xr.Dataset, found: GradientSet) -> xr.Dataset:
    """Return a triangulation with its arms, over the new dimension ``removed``, the group that is left out.

    ``without_cosine``, ``without_norm_ratio`` and ``without_limit_cosine`` ``[reference, estimator, removed]`` with
    intervals, ``without_cosine_change``, the cosine without the group less that of all parameters, paired by batch, and
    ``without_reading``. With a single group nothing would be left, and there are no arms.

    Args:
        ds: The dataset of ``found``, with readings.
        found: The gradients.
    """
    groups, gram = grouped(found)
    if len(groups) < 3:
        return ds
    rest = np.stack([np.delete(gram[1:], g, axis=0).sum(0) for g in range(len(groups) - 1)])
    over = ("reference", "estimator", "group")
    labels = ds["estimator"].values.tolist()
    references = [labels.index(r) for r in ds["reference"].values]
    pairs = [[agreement.pair(rest, e, r) for e in range(len(labels))] for r in references]
    variables: dict[str, Any] = {}
    for name in _STATISTICS:
        statistic, words, unit = PAIRED[name]
        put(variables, name, over, [[statistic(p) for p in row] for row in pairs], f"{words}, one group removed", unit)
    whole = ds["batch_cosine"].values[:, :, 0]
    changes = [
        [agreement.student_interval(agreement.cosines(p) - whole[r, e]) for e, p in enumerate(row)]
        for r, row in enumerate(pairs)
    ]
    put(variables, "cosine_change", over, changes, "cosine without the group less that of all parameters", "1")
    kept = {name: ds[name].variable for name in ("refusal", "role")}
    coords = {"estimator": ds["estimator"], "reference": ds["reference"], "bound": ds["bound"], "group": groups[1:]}
    arms = with_readings(xr.Dataset({**variables, **kept}, coords), float(ds.attrs["faithful"]))
    arms = arms.drop_vars([*kept, "settled", "group"]).rename(group="removed")
    arms = arms.rename({name: f"without_{name}" for name in arms.data_vars})
    for name in (*_STATISTICS, "cosine_change"):
        arms[f"without_{name}"].attrs["ancillary_variables"] = f"without_{name}_error"
    removed = ("removed", np.array(groups[1:], dtype=object), {"long_name": "parameter group left out", "units": ""})
    return ds.assign(arms.data_vars).assign_coords(removed=removed)


def arms_words(ds: xr.Dataset, e: int) -> str:
    """Return what removing one group does to an estimator, for the end of its reading; empty where that is nothing.

    Groups are named whose removal turns one clear reading into another, or changes the cosine by more than
    :data:`NOTABLE`, the whole interval of the paired difference taken.

    Args:
        ds: A result of the triangulate probe.
        e: The estimator.
    """
    if "without_cosine" not in ds:
        return ""
    own = Reading(ds["reading"].values[0, e, 0])
    parts = []
    for g, group in enumerate(ds["removed"].values):
        arm = Reading(ds["without_reading"].values[0, e, g])
        at = {"reference": 0, "estimator": e, "removed": g}
        change = Ends.of(ds, "without_cosine_change", **at)
        turned = arm is not own and not {arm, own} & _OPEN
        moved = change.low > NOTABLE or change.high < -NOTABLE
        if turned or moved:
            cosine = cosine_text(Ends.of(ds, "without_cosine", **at))
            parts.append(f"{cosine} without {group}{f' (then {arm.value})' if turned else ''}")
    return f"; its cosine is {names(parts)}" if parts else ""


def arms_table(ds: xr.Dataset, rows: list[int]) -> list[tuple[str, ...]]:
    """Return the cells of cosine and k by the group removed, headings first; none where there are no arms."""
    if "without_cosine" not in ds:
        return []
    lines = [("", *(f"without {g}" for g in ds["removed"].values))]
    for e in rows:
        cells = []
        for g in range(ds.sizes["removed"]):
            at = {"reference": 0, "estimator": e, "removed": g}
            cosine = Ends.of(ds, "without_cosine", **at)
            k = number(float(ds["without_norm_ratio"].isel(at)))
            cells.append(f"{plus_minus(cosine)}, k {k}" if np.isfinite(cosine.value) else "-")
        lines.append((str(ds["estimator"].values[e]), *cells))
    return lines


def arms_document(ds: xr.Dataset, e: int, r: int) -> dict[str, Any]:
    """Return the arms of an estimator against one reference as plain values, by the group removed."""
    found = {}
    for g, group in enumerate(ds["removed"].values):
        at = {"reference": r, "estimator": e, "removed": g}
        ends = {name: Ends.of(ds, f"without_{name}", **at) for name in (*_STATISTICS, "cosine_change")}
        found[str(group)] = {
            **{name: {"value": x.value, "low": x.low, "high": x.high} for name, x in ends.items()},
            "reading": str(ds["without_reading"].isel(at).item()),
        }
    return found
