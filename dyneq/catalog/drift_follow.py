"""The numbers of ``navg``, ``decompose`` and ``lrsweep`` that go into a series, and what every followed series is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from dyneq.probes.gradient_dataset import ALL
from dyneq.probes.lrsweep_measure import BATCH
from dyneq.probes.lrsweep_rules import Place, Verdict

#: Verdicts of a sweep by which a gradient falls short for its direction, and by which it does not.
_SHORT, _ENOUGH = (Verdict.DIRECTION, Verdict.UPHILL), (Verdict.AS_FAR, Verdict.LEARNING_RATE, Verdict.FARTHER)


@dataclass(frozen=True)
class Series:
    """A quantity with an interval at every snapshot.

    Attributes:
        name: The variable; its interval is ``NAME_interval``.
        along: The dimension whose entries it is followed for; empty if there is one number a snapshot.
        count: The variable with the number of batches or samples its intervals are over.
        words: What it is in a sentence; ``{}`` stands for what it is held against.
        scale: ``share`` for numbers of order one, ``log`` for ratios, ``plain`` for others.
        head: What it is called in tables, after the name of the entry.
        source: Name of the variable in the probe's result.
        yardstick: The variable by whose size it is judged whether a change matters; its own if empty.
    """

    name: str
    along: str
    count: str
    words: str
    scale: Literal["share", "log", "plain"]
    head: str
    source: str = ""
    yardstick: str = ""


#: Every followed series in the order it is told in.
SERIES = (
    Series("cosine", "estimator", "triangulate_batches", "the cosine to {}", "share", "cos"),
    Series("norm_ratio", "estimator", "triangulate_batches", "the norm ratio k to {}", "log", "k"),
    Series(
        "navg_bias",
        "navg_estimator",
        "navg_batches",
        "the squared bias against {}, relative to the gradient's mean square,",
        "share",
        "bias^2",
        "bias",
    ),
    Series(
        "navg_bias_share",
        "navg_estimator",
        "navg_batches",
        "the share of one batch's squared error against {} that is bias",
        "share",
        "share of bias",
        "bias_share",
    ),
    Series(
        "navg_limit_cosine",
        "navg_estimator",
        "navg_batches",
        "the cosine to {} that averaging over batches tends to",
        "share",
        "cos tends to",
        "limit_cosine",
    ),
    Series(
        "penalty_share", "penalty", "decompose_batches", "the penalty's share of the update", "share", "share", "share"
    ),
    Series(
        "penalty_ratio",
        "penalty",
        "decompose_batches",
        "the penalty's norm over that of the task's gradient, k,",
        "log",
        "k",
        "ratio",
    ),
    Series(
        "penalty_cosine",
        "penalty",
        "decompose_batches",
        "the cosine of the penalty's gradient with the task's",
        "share",
        "cos with task",
        "cosine",
    ),
    Series(
        "task_cosine",
        "",
        "decompose_batches",
        "the cosine of the task's gradient with the whole update",
        "share",
        "cos task, update",
        "task_cosine",
    ),
    Series(
        "step_change",
        "gradient",
        "lrsweep_samples",
        "the change of the loss by one step at the best rate tried",
        "plain",
        "best change",
        "best_change",
    ),
    Series(
        "step_lag",
        "gradient",
        "lrsweep_samples",
        "the loss one step leaves above that of one along {}, each at its best rate tried,",
        "plain",
        "deficit",
        "lag",
        "step_change",
    ),
)


def _own(probe: str) -> list[Series]:
    return [s for s in SERIES if s.count.startswith(probe)]


def of_navg(ds: xr.Dataset) -> xr.Dataset:
    """Return bias, its share and the limit cosine of every estimator against the first reference, all parameters.

    The attribute ``against`` names the reference, ``refusals`` (JSON) the estimators that gave no gradient.

    Args:
        ds: A result of the probe.
    """
    own = ds.isel(estimator=np.flatnonzero(ds["role"].values == "estimator"))
    held = own.isel(reference=0).sel(group=ALL)
    found: dict[str, Any] = {"navg_batches": float(ds.sizes["batch"]), "navg_marked_samples": _marked(own, "navg_")}
    for series in _own("navg"):
        found |= _with_interval(held, series, ("estimator",))
    attributes = {"against": str(ds["reference"].values[0]), "refusals": _refusals(own, "navg")}
    return _dataset(found, ds, "navg_estimator", own["estimator"].values, attributes)


def of_decompose(ds: xr.Dataset) -> xr.Dataset:
    """Return share, norm ratio and cosine of every penalty, and the cosine of task and update, all parameters.

    The attribute ``against`` names the estimator of the task's gradient.

    Args:
        ds: A result of the probe.
    """
    held = ds.sel(group=ALL)
    counts = ds["marked"].any("mark").sum("sample")
    found: dict[str, Any] = {
        "decompose_batches": float(ds.sizes["batch"]),
        "task_marked_samples": float(counts.values.sum()),
        "penalty_noise": ("penalty", held["draw_noise"].values.astype(np.float64)),
    }
    for series in _own("decompose"):
        found |= _with_interval(held, series, ("penalty",) if series.along else ())
    return _dataset(found, ds, "penalty", ds["penalty"].values, {"against": str(ds["estimator"].values[0])})


def of_lrsweep(ds: xr.Dataset) -> xr.Dataset:
    """Return the best one-step change on the batch of every gradient, and how far it lags behind the first.

    The attribute ``against`` names the first gradient, ``refusals`` (JSON) the gradients that could not be had.

    Args:
        ds: A result of the probe.
    """
    held = ds.isel(part=ds["part"].values.tolist().index(BATCH))
    verdicts = [Verdict(str(v)) for v in ds["verdict"].values]
    inside = ds["best_place"].values == Place.INSIDE.value
    found: dict[str, Any] = {
        "lrsweep_samples": float((ds["sample_role"].values == BATCH).sum()),
        "gradient_marked_samples": _marked(ds, "gradient_"),
        "step_best_lr": ("gradient", ds["best_lr"].values.astype(np.float64)),
        "step_inside": ("gradient", np.where(np.isfinite(ds["best_lr"].values), inside, np.nan)),
        "step_short": (
            "gradient",
            np.array([1.0 if v in _SHORT else 0.0 if v in _ENOUGH else np.nan for v in verdicts]),
        ),
    }
    for series in _own("lrsweep"):
        found |= _with_interval(held, series, ("estimator",))
    # behind itself the first gradient is by nothing: no measurement
    for name in ("step_lag", "step_lag_error", "step_lag_interval"):
        found[name][1][0] = np.nan
    attributes = {"against": str(ds["estimator"].values[0]), "refusals": _refusals(ds, "lrsweep")}
    return _dataset(found, ds, "gradient", ds["estimator"].values, attributes)


def _with_interval(held: xr.Dataset, series: Series, dims: Sequence[str]) -> dict[str, Any]:
    to = (series.along,) if series.along else ()
    ends = held[f"{series.source}_interval"].transpose(*dims, "bound").values.astype(np.float64)
    return {
        series.name: (to, held[series.source].transpose(*dims).values.astype(np.float64).copy()),
        f"{series.name}_error": (to, held[f"{series.source}_error"].transpose(*dims).values.astype(np.float64).copy()),
        f"{series.name}_interval": ((*to, "bound"), ends.copy()),
    }


def _marked(ds: xr.Dataset, prefix: str) -> tuple[str, Any]:
    dim = "navg_estimator" if prefix == "navg_" else "gradient"
    counts = ds["marked"].any("mark").transpose("estimator", "sample").sum("sample")
    return dim, counts.values.astype(np.float64)


def _refusals(ds: xr.Dataset, probe: str) -> str:
    pairs = zip(ds["estimator"].values, ds["refusal"].values, strict=True)
    return json.dumps({f"{name} of {probe}": str(reason) for name, reason in pairs if reason})


def _dataset(found: dict[str, Any], ds: xr.Dataset, dim: str, names: Any, attributes: dict[str, str]) -> xr.Dataset:
    return xr.Dataset(found, {dim: np.asarray(names, dtype=object), "bound": ds["bound"].values}, attributes)
