"""What is measured of every snapshot of a run, and the few numbers of each result that make a series."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from dyneq.catalog.drift_gradient import of_triangulate
from dyneq.catalog.specs import parse_probe
from dyneq.errors import UsageError
from dyneq.probes.base import Params, Probe
from dyneq.probes.registry import make_params
from dyneq.probes.spectrum_verdict import Verdict, verdicts

#: Confidence of every interval over samples or batches.
LEVEL = 0.95
#: Force residual above which a sample counts as not settled.
SETTLED = 1e-3

#: Samples used unless another number is asked for, where more than loss and residual is measured.
FEW = 16
#: What is measured of one run unless something else is asked for.
GRADUAL = ("residual", "spectrum", "triangulate")

#: What is measured unless more is asked for: the least that makes a series. The depth is filled in.
SMALL: dict[str, dict[str, Any]] = {
    "residual": {"root": False},
    "spectrum": {"at": "root", "count": 4, "numerical_abscissa": False},
    "triangulate": {"estimator": ("aep", "track"), "batches": 4, "samples": 16},
}


@dataclass(frozen=True)
class Part:
    """One probe with its parameters.

    Attributes:
        probe: The probe.
        params: Its parameters.
        asked: Whether it was asked for by name, so that a system it does not fit is an error.
    """

    probe: Probe
    params: Params
    asked: bool = True

    def series(self, ds: xr.Dataset) -> xr.Dataset:
        """Return the numbers of one result that go into the series, with its own dimensions."""
        return _SERIES[self.probe.name](ds)


def choose_parts(specs: Sequence[str], depth: int, seed: int, default: Sequence[str]) -> list[Part]:
    """Return what is measured.

    Args:
        specs: Probes, with parameters that take the place of the small defaults: ``spectrum:at=relaxed``.
        depth: Relaxation steps at which the loss and the residual are read, from which the root is sought, and over
            which the reference gradient is unrolled.
        seed: Seed for probes that have one.
        default: Names of the probes if no spec is given.

    Raises:
        UsageError: If a probe is none of those that make a series, or a parameter is unknown.
    """
    parts: dict[str, Part] = {}
    for spec in specs or default:
        name = spec.partition(":")[0]
        if name not in SMALL:
            raise UsageError(
                f"a drift is made of {', '.join(SMALL)}, but {name!r} was asked for; for other probes use "
                "`dyneq run` and dyneq.open_results"
            )
        probe, params = parse_probe(spec, seed)
        if name in parts:
            raise UsageError(f"--probe {name} is given twice; put all its parameters into one")
        given = {key: getattr(params, key) for key in params.model_fields_set}
        deep: dict[str, Any] = {"ref": (f"bptt{depth}",)} if name == "triangulate" else {"depth": (depth,)}
        parts[name] = Part(probe, make_params(probe, {**SMALL[name], **deep, **given}), bool(specs))
    return list(parts.values())


def half_width(values: NDArray[np.float64], level: float = LEVEL) -> float:
    """Return the half-width of Student's interval of a mean; NaN for fewer than two values."""
    n = len(values)
    return float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def of_residual(ds: xr.Dataset) -> xr.Dataset:
    """Return loss and force residual at the deepest of the depths that were measured."""
    state = ds.isel(depth=-1)
    residual = state["force_residual"].values.astype(np.float64)
    finite = residual[np.isfinite(residual)]
    found: dict[str, Any] = {
        "force_residual": np.median(finite) if len(finite) else np.nan,
        "force_residual_max": finite.max() if len(finite) else np.nan,
        # a sample that diverged has not settled either
        "unsettled": float((~(residual <= SETTLED)).sum()),
        "sample_force_residual": ("sample", residual),
    }
    if "loss" in state:
        loss = state["loss"].values.astype(np.float64)
        usable = loss[np.isfinite(loss)]
        found |= {
            "validation_loss": usable.mean() if len(usable) else np.nan,
            "validation_loss_error": half_width(usable),
            "samples_without_loss": float(len(loss) - len(usable)),
            "sample_loss": ("sample", loss),
        }
    return xr.Dataset(found, {"sample": ds["sample"].values})


def of_spectrum(ds: xr.Dataset) -> xr.Dataset:
    """Return abscissa, spectral radius and leading pair over the samples at a fixed point, and their verdicts."""
    state = ds.isel(depth=-1)
    judged = verdicts(state)
    at = [i for i, v in enumerate(judged) if v not in (Verdict.LOST, Verdict.PASSING)]
    found: dict[str, Any] = {
        "unstable": float(judged.count(Verdict.UNSTABLE)),
        "step_unstable": float(judged.count(Verdict.STEP)),
        "stable": float(judged.count(Verdict.STABLE)),
        "undecided": float(judged.count(Verdict.MARGINAL) + judged.count(Verdict.UNSURE)),
        "no_fixed_point": float(len(judged) - len(at)),
    }
    flow = "abscissa" in state
    for name in ("abscissa", "spectral_radius"):
        if name in state:
            found |= _largest(state, name, at)
    if at and "largest_mu" in state:
        found |= _leading(state.isel(sample=at), at, "rightmost" if flow else "largest")
    return xr.Dataset(found)


def _largest(state: xr.Dataset, name: str, at: Sequence[int]) -> dict[str, float]:
    """Return the largest value over samples with a bar that covers the largest over all their intervals."""
    value, error = (state[n].values[list(at)].astype(np.float64) for n in (name, f"{name}_error"))
    if not len(value) or not np.isfinite(value).all():
        return {name: np.nan, f"{name}_error": np.nan}
    top, low, high = value.max(), (value - error).max(), (value + error).max()
    return {name: float(top), f"{name}_error": float(max(high - top, top - low))}


def _leading(state: xr.Dataset, at: Sequence[int], target: str) -> dict[str, Any]:
    mu = state[f"{target}_mu"].values
    size = mu.real if target == "rightmost" else np.abs(1 + float(state.attrs["eps"]) * mu)
    if not np.isfinite(size).any():
        return {}
    place = np.unravel_index(int(np.nanargmax(size)), size.shape)
    return {
        "leading_mu": complex(mu[place]),
        "leading_error": float(state[f"{target}_error"].values[place]),
        "leading_sample": float(at[int(place[0])]),
        "leading_token": float(place[1]) if len(place) > 1 else -1.0,
    }


_SERIES: Mapping[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "residual": of_residual,
    "spectrum": of_spectrum,
    "triangulate": of_triangulate,
}
