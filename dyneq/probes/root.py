"""The root probe: a fixed point of every sample, also where the relaxation cycles."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import least_size, relative_size
from dyneq.dynamics.roots import STARTS, STEEP, Roots, Start, find_root
from dyneq.dynamics.substitution import GUESSES
from dyneq.dynamics.trajectory import Recorder
from dyneq.probes.base import (
    CERTIFICATE,
    EXACT,
    Finding,
    Params,
    Probe,
    Progress,
    align,
    annotate,
    least_cost_pairs,
    require,
    silent,
)
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
    version = 2
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
        ds = _dataset(system, roots, generator)
        progress("done", 1.0)
        return ds

    def match(self, a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Return two results on the same samples, their further roots paired.

        Further roots of a sample are paired so that the sum of the squared differences of their distances is least.

        Args:
            a: A result of this probe.
            b: Another one.
        """
        for ds in (a, b):
            require(ds, ("other_sample", "other_distance"), "root probe")
        a, b = align(a, b, exclude=("other",))
        rows: list[int] = []
        columns: list[int] = []
        for sample in np.unique(a["other_sample"].values):
            first, second = (np.flatnonzero(ds["other_sample"].values == sample) for ds in (a, b))
            distances = (a["other_distance"].values[first, None], b["other_distance"].values[None, second])
            i, j = least_cost_pairs(np.abs(np.subtract(*distances)))
            rows += first[i].tolist()
            columns += second[j].tolist()
        return _further(a, rows), _further(b, columns)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how many roots were found, which relaxations miss theirs, and what to beware of."""
        samples = ds.sizes["sample"]
        status = ds["status"].values
        good = int((status == "converged").sum())
        worst = float(ds["force_residual"].where(ds["status"] == "converged").max())
        measured = f" (worst force residual {worst:.1e})" if good else ""
        findings = [Finding("fact", f"roots of {good} of {samples} samples{measured}")]
        lost = [int(i) for i in np.nonzero(status != "converged")[0]]
        if lost:
            tokens = f", first at tokens {ds['failed_token'].values[lost].tolist()}" if "token" in ds.dims else ""
            findings.append(Finding("undetermined", f"no root found for samples {lost}{tokens}: try more starts"))
        moving = [int(i) for i in np.nonzero((status == "converged") & (ds["relaxed_status"].values != "converged"))[0]]
        if moving:
            findings.append(
                Finding("fact", f"samples {moving} have a root but their relaxation had not settled on it by the depth")
            )
        steep = np.nonzero((ds["degenerate"].values == 1) & (status == "converged"))[0].tolist()
        if steep:
            text = f"the Jacobian norm at the roots of samples {steep} is above {STEEP:g}"
            findings.append(Finding("warning", f"{text}: beware of a nearly singular normalisation"))
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


def _further(ds: xr.Dataset, which: list[int]) -> xr.Dataset:
    left = {**ds.attrs["unmatched"], "other": ds.sizes["other"] - len(which)}
    return ds.isel(other=which).assign_attrs(unmatched=left)


def _dataset(system: System, roots: Roots, generator: torch.Generator) -> xr.Dataset:
    relaxation = roots.relaxation
    assert relaxation is not None
    # relative to a thousandth of norm(z_0) where the root is smaller than that, as the residuals are
    distance = relative_size(relaxation.z - roots.z, roots.z, least_size(system))
    found = roots.found.numpy()

    def per_sample(values: Any, long_name: str, units: str = "") -> tuple[str, Any, dict[str, str]]:
        return ("sample", values, {"long_name": long_name, "units": units})

    variables: dict[str, Any] = {
        "status": per_sample([s.value for s in roots.status], "whether a root was found"),
        "force_residual": per_sample(
            roots.residual.cpu().double().numpy(),
            "norm(F)/norm(z) at the root, norm(z) not below norm(z_0)/1000",
            "1/time",
        ),
        "correction": per_sample(
            roots.correction.cpu().double().numpy(),
            "norm(J^{-1} F)/norm(z) at the root, an estimate of the distance to it; by tokens the largest of theirs",
            "1",
        ),
        "start": per_sample(roots.start, "start the root was found from"),
        "relaxed_status": per_sample([s.value for s in relaxation.status], "status of the relaxation"),
        "relaxed_force_residual": per_sample(
            relaxation.residuals.force.cpu().double().numpy(), "norm(F)/norm(z) of the relaxed state", "1/time"
        ),
        "distance": per_sample(
            np.where(found, distance.cpu().double().numpy(), np.nan), "distance of the relaxed state from the root", "1"
        ),
        "distance_error": per_sample(
            _distance_error(system, distance, roots, generator).cpu().double().numpy(),
            "first-order estimate of the error of the distance: twice the Newton correction of the whole root, with "
            "what tokens pass on to later ones and the rounding of F; NaN without a root or where it is not known",
            "1",
        ),
        "failed_token": per_sample(roots.failed_token.numpy(), "first token without a root, -1 if none"),
        "degenerate": per_sample(
            roots.degenerate.cpu().double().numpy(),
            f"1 where a Jacobian norm exceeds {STEEP:g}: beware of a nearly singular normalisation; NaN: not evaluated",
        ),
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
    return annotate(ds, bars={"distance": "distance_error"}, roles=_ROLES).assign_attrs(root_tol=roots.tol)


def _distance_error(system: System, distance: torch.Tensor, roots: Roots, generator: torch.Generator) -> torch.Tensor:
    """Return how far the distance moves when the root moves by twice its correction, and by the rounding of both.

    The root is in the numerator and in the norm that divides it. At a double root the correction is half the distance
    to it. NaN for samples without a root.
    """
    error = torch.full_like(distance, torch.nan)
    index = roots.found.nonzero().flatten().to(roots.z.device)
    if not len(index):
        return error
    part, z = system.select(index), roots.z[index]
    displacement = root_displacement(part, z, generator=generator)
    moved = 2 * relative_size(displacement, z, least_size(part)) + torch.finfo(z.dtype).eps
    error[index] = torch.where(moved < 1, moved * (1 + distance[index]) / (1 - moved), torch.nan)
    return error


_ROLES = {
    **dict.fromkeys(("force_residual", "correction", "relaxed_force_residual", "other_force_residual"), CERTIFICATE),
    "degenerate": EXACT,
}


def _finite(value: Any) -> float | None:
    """Return a number, or None where JSON has no word for it."""
    return float(value) if np.isfinite(float(value)) else None


def json_entry(ds: xr.Dataset) -> dict[str, Any]:
    """Return a root result as the plain values ``--json`` prints; None where a number is not finite or not known."""
    samples = []
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        steep = _finite(row["degenerate"])
        samples.append(
            {
                "status": str(row["status"].item()),
                "force_residual": _finite(row["force_residual"]),
                "correction": _finite(row["correction"]),
                "start": str(row["start"].item()),
                "relaxed_status": str(row["relaxed_status"].item()),
                "relaxed_force_residual": _finite(row["relaxed_force_residual"]),
                "distance": _finite(row["distance"]),
                "failed_token": int(row["failed_token"]),
                "degenerate": None if steep is None else bool(steep),
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
