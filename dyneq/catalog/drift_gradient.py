"""The alignment numbers of ``triangulate`` that go into a series: the first reference, all parameters together."""

import json
from typing import Any

import numpy as np
import xarray as xr

from dyneq.probes.gradient_dataset import ALL


def of_triangulate(ds: xr.Dataset) -> xr.Dataset:
    """Return cosine, norm ratio and self-cosine of every estimator, and of the reference at its other depth.

    The attribute ``reference`` names what they are held against, ``horizon`` the reference at its other depth (empty if
    there is none), and ``refusals`` (JSON) the estimators that gave no gradient.

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
    for name in ("cosine_interval", "norm_ratio_interval"):
        found[name] = (("estimator", "bound"), held[name].transpose("estimator", "bound").values)
    found["triangulate_batches"] = float(ds.sizes["batch"])
    found["marked_samples"] = ("estimator", own["marked"].any("mark").sum("sample").values.astype(np.float64))
    refusals = {str(n): str(r) for n, r in zip(own["estimator"].values, own["refusal"].values, strict=True) if r}
    coords = {"estimator": own["estimator"].values, "bound": ds["bound"].values}
    horizon = [str(n) for n, role in zip(own["estimator"].values, own["role"].values, strict=True) if role == "horizon"]
    attributes = {
        "reference": str(ds["reference"].values[0]),
        "against": str(ds["reference"].values[0]),
        "horizon": "".join(horizon[:1]),
        "refusals": json.dumps(refusals),
    }
    return xr.Dataset(found, coords, attributes)
