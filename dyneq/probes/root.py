"""The root probe: a fixed point of every sample, also where the relaxation cycles."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.roots import STARTS, STEEP, Roots, Start, find_root
from dyneq.dynamics.substitution import GUESSES
from dyneq.dynamics.trajectory import Recorder
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.systems.protocol import System


class RootParams(Params):
    """Parameters of the root probe."""

    depth: int = Field(800, ge=1, description="depth of the relaxation the starts come from, steps")
    starts: tuple[Start, ...] = Field(STARTS, min_length=1, description="starts tried, in this order")
    explore: bool = Field(False, description="try every start for every sample and report the roots that differ")
    seed: int = Field(0, description="seed of the random start")


class RootProbe(Probe):
    """Roots F(z) = 0 by Newton's method, with the start each came from and the distance to the relaxed state."""

    name = "root"
    version = 1
    Params: ClassVar[type[Params]] = RootParams

    def run(self, system: System, params: RootParams, progress: Progress = silent) -> xr.Dataset:
        """Find the roots; dimensions ``sample``, ``other`` (further roots) and, for causal systems, ``token``."""
        progress(f"relaxing to depth {params.depth}", 0.0)
        relaxation = relax(system, params.depth, recorder=Recorder(system.eps, params.depth))
        progress("Newton's method", 0.5)
        generator = torch.Generator().manual_seed(params.seed)
        roots = find_root(
            system, relaxation=relaxation, starts=params.starts, explore=params.explore, generator=generator
        )
        ds = _dataset(system, roots)
        progress("done", 1.0)
        return ds

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how many roots were found, which relaxations miss theirs, and what to beware of."""
        samples = ds.sizes["sample"]
        status = ds["status"].values
        good = int((status == "converged").sum())
        worst = float(ds["force_residual"].where(ds["status"] == "converged").max()) if good else float("nan")
        findings = [Finding("fact", f"roots of {good} of {samples} samples (worst force residual {worst:.1e})")]
        lost = [int(i) for i in np.nonzero(status != "converged")[0]]
        if lost:
            tokens = f", first at tokens {ds['failed_token'].values[lost].tolist()}" if "token" in ds.dims else ""
            findings.append(Finding("undetermined", f"no root found for samples {lost}{tokens}: try more starts"))
        moving = [int(i) for i in np.nonzero((status == "converged") & (ds["relaxed_status"].values != "converged"))[0]]
        if moving:
            findings.append(
                Finding("fact", f"samples {moving} have a root but their relaxation had not settled on it by the depth")
            )
        if bool(ds["degenerate"].any()):
            which = np.nonzero(ds["degenerate"].values)[0].tolist()
            findings.append(
                Finding("warning", f"the roots of samples {which} are nearly singular for a normalisation: beware")
            )
        if ds.sizes["other"]:
            which = sorted({int(s) for s in ds["other_sample"].values})
            findings.append(Finding("warning", f"samples {which} have several roots; the first start's is reported"))
        return findings

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw each sample's distance between relaxed state and root."""
        from matplotlib.figure import Figure

        if ax is None:
            ax = Figure(figsize=(7, 4), layout="constrained").subplots()
        settled = ds["relaxed_status"].values == "converged"
        distance = np.maximum(ds["distance"].values, 1e-17)
        sample = ds["sample"].values
        ax.semilogy(sample[settled], distance[settled], "o", color="#2166ac", label="relaxation settled")
        ax.semilogy(sample[~settled], distance[~settled], "s", color="#b2182b", label="relaxation still moving")
        ax.set_xlabel("sample")
        ax.set_ylabel("norm(z relaxed - z root) / norm(z root)")
        ax.set_title("distance of the relaxed state from the root", fontsize=10)
        ax.legend(fontsize=8)
        return ax.figure


def _dataset(system: System, roots: Roots) -> xr.Dataset:
    relaxation = roots.relaxation
    assert relaxation is not None
    distance = sample_norm(relaxation.z - roots.z) / sample_norm(roots.z)
    found = roots.found.numpy()

    def per_sample(values: Any, long_name: str, units: str = "") -> tuple[str, Any, dict[str, str]]:
        return ("sample", values, {"long_name": long_name, "units": units})

    variables: dict[str, Any] = {
        "status": per_sample([s.value for s in roots.status], "whether a root was found"),
        "force_residual": per_sample(roots.residual.cpu().double().numpy(), "norm(F)/norm(z) at the root", "1/time"),
        "start": per_sample(roots.start, "start the root was found from"),
        "relaxed_status": per_sample([s.value for s in relaxation.status], "status of the relaxation"),
        "relaxed_force_residual": per_sample(
            relaxation.residuals.force.cpu().double().numpy(), "norm(F)/norm(z) of the relaxed state", "1/time"
        ),
        "distance": per_sample(
            np.where(found, distance.cpu().double().numpy(), np.nan), "distance of the relaxed state from the root", "1"
        ),
        "failed_token": per_sample(roots.failed_token.numpy(), "first token without a root, -1 if none"),
        "degenerate": per_sample(roots.degenerate.cpu().numpy(), f"whether a Jacobian norm exceeds {STEEP:g}"),
        "other_sample": ("other", [o.sample for o in roots.others], {"long_name": "sample of a further root"}),
        "other_start": ("other", [o.start for o in roots.others], {"long_name": "start it was found from"}),
        "other_distance": (
            "other",
            np.array([o.distance for o in roots.others], dtype=np.float64),
            {"long_name": "relative distance to the reported root", "units": "1"},
        ),
        "other_force_residual": (
            "other",
            np.array([o.residual for o in roots.others], dtype=np.float64),
            {"long_name": "norm(F)/norm(z) at the further root", "units": "1/time"},
        ),
    }
    if roots.token_start is not None:
        meaning = "; ".join(f"{i}: {name}" for i, name in enumerate(GUESSES))
        variables["token_start"] = (
            ("sample", "token"),
            roots.token_start.numpy(),
            {"long_name": f"guess the token's root came from ({meaning}; -1: no root)", "units": ""},
        )
    ds = xr.Dataset(variables, {"sample": np.arange(len(roots.status))})
    return ds.assign_attrs(root_tol=roots.tol)


def json_entry(ds: xr.Dataset) -> dict[str, Any]:
    """Return a root result as the plain values ``--json`` prints."""
    samples = []
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        distance = float(row["distance"])
        samples.append(
            {
                "status": str(row["status"].item()),
                "force_residual": float(row["force_residual"]),
                "start": str(row["start"].item()),
                "relaxed_status": str(row["relaxed_status"].item()),
                "relaxed_force_residual": float(row["relaxed_force_residual"]),
                "distance": distance if np.isfinite(distance) else None,
                "failed_token": int(row["failed_token"]),
                "degenerate": bool(row["degenerate"]),
            }
        )
    others = [
        {
            "sample": int(ds["other_sample"][i]),
            "start": str(ds["other_start"][i].item()),
            "distance": float(ds["other_distance"][i]),
            "force_residual": float(ds["other_force_residual"][i]),
        }
        for i in range(ds.sizes["other"])
    ]
    return {"found": int((ds["status"] == "converged").sum()), "samples": samples, "others": others}
