"""The alignment numbers of ``triangulate`` that go into a series: the first reference, all parameters together."""

import json
from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.gradient_dataset import ALL


def of_triangulate(ds: xr.Dataset) -> xr.Dataset:
    """Return cosine, norm ratio and self-cosine of every estimator, and of the reference at its other depth.

    The attribute ``reference`` names what they are held against, ``refusals`` (JSON) the estimators that gave none.

    Args:
        ds: A result of the probe.
    """
    own = ds.isel(estimator=np.flatnonzero(ds["role"].values != "reference"))
    held = own.isel(reference=0).sel(group=ALL)
    found: dict[str, Any] = {
        name: ("estimator", held[name].values.astype(np.float64))
        for quantity in ("cosine", "norm_ratio", "self_cosine")
        for name in (quantity, f"{quantity}_error")
    }
    found["cosine_interval"] = (("estimator", "bound"), held["cosine_interval"].transpose("estimator", "bound").values)
    found["marked_samples"] = ("estimator", own["marked"].any("mark").sum("sample").values.astype(np.float64))
    refusals = {str(n): str(r) for n, r in zip(own["estimator"].values, own["refusal"].values, strict=True) if r}
    coords = {"estimator": own["estimator"].values, "bound": ds["bound"].values}
    attributes = {"reference": str(ds["reference"].values[0]), "refusals": json.dumps(refusals)}
    return xr.Dataset(found, coords, attributes)
