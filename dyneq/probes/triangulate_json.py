"""A triangulation as the plain values that --json prints."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients.base import Mark
from dyneq.probes.gradient_dataset import PAIRED
from dyneq.probes.triangulate_rules import Ends
from dyneq.probes.triangulate_without import arms_document


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return references, and for each estimator its agreement by group, diagnostics, marks, cost and reading."""
    return {
        "t1": int(ds.attrs["t1"]),
        "batches": ds.sizes["batch"],
        "batch_size": int(ds.attrs["batch_size"]),
        "level": float(ds.attrs["level"]),
        "faithful": float(ds.attrs["faithful"]),
        "references": [_reference(ds, r) for r in range(ds.sizes["reference"])],
        "estimators": [estimator_entry(ds, e) for e in range(ds.sizes["estimator"])],
        "samples": {
            "batch": ds["batch_of_sample"].values.tolist(),
            "free_status": ds["free_status"].values.tolist(),
            "free_residual": ds["free_residual"].values.tolist(),
            "asymmetry": ds["asymmetry"].values.tolist(),
        },
    }


def estimator_entry(ds: xr.Dataset, e: int) -> dict[str, Any]:
    """Return one estimator of a comparison as plain values."""
    one = ds.isel(estimator=e)
    groups = [str(g) for g in ds["group"].values]
    counts = one["marked"].values.sum(1)
    against = {}
    for r, label in enumerate(ds["reference"].values):
        against[str(label)] = {
            group: {
                **{name: interval(ds, name, reference=r, estimator=e, group=g) for name in PAIRED},
                **({"reading": str(one["reading"].values[r, g])} if "reading" in ds else {}),
            }
            for g, group in enumerate(groups)
        }
    arms = {
        str(label): arms_document(ds, e, r)
        for r, label in enumerate(ds["reference"].values)
        if "without_cosine" in ds  # of grids, and where there is one group only, there are none
    }
    medians = {
        name: _median(one[name].values)
        for name in ("force_residual", "adjoint_residual", "adjoint_norm", "displacement", "t2")
    }
    return {
        "estimator": str(ds["estimator"].values[e]),
        "role": str(one["role"].item()),
        "refusal": str(one["refusal"].item()) or None,
        "depth": int(one["depth"]),
        "cost": float(one["cost"]),
        "self_cosine": {g: interval(ds, "self_cosine", estimator=e, group=i) for i, g in enumerate(groups)},
        "against": against,
        **({"without": arms} if arms else {}),
        "median": medians,
        "marks": {m.name.lower(): int(n) for m, n in zip(Mark, counts, strict=True) if n},
    }


def interval(ds: xr.Dataset, name: str, **at: int) -> dict[str, float]:
    """Return a statistic with the ends of its interval."""
    end = Ends.of(ds, name, **at)
    return {"value": end.value, "low": end.low, "high": end.high}


def _reference(ds: xr.Dataset, r: int) -> dict[str, Any]:
    settled = zip(ds["group"].values, ds["settled"].values[r], strict=True)
    return {"reference": str(ds["reference"].values[r]), "settled": {str(g): str(s) for g, s in settled}}


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
