"""What is measured of every snapshot of a run, and the few numbers of each result that make a series."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from dyneq.catalog.drift_follow import of_decompose, of_lrsweep, of_navg
from dyneq.catalog.drift_gradient import of_triangulate
from dyneq.catalog.drift_penalties import specs_of
from dyneq.catalog.specs import parse_probe
from dyneq.errors import UsageError, nearest
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
#: What can be followed of the gradient; all but the first only if asked for, because of what they cost.
FOLLOWED = ("triangulate", "navg", "decompose", "lrsweep")

#: What is measured unless more is asked for: the least that makes a series. The depth is filled in.
SMALL: dict[str, dict[str, Any]] = {
    "residual": {"root": False},
    "spectrum": {"at": "root", "count": 4, "numerical_abscissa": False},
    "triangulate": {"estimator": ("aep", "track"), "batches": 4, "samples": 16},
    "navg": {"estimator": ("aep", "track"), "batches": 8, "samples": 16},
    "decompose": {"batches": 4, "samples": 16},
    "lrsweep": {"lr": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), "samples": 16, "heldout": 0.0},
}


@dataclass(frozen=True)
class Part:
    """One probe with its parameters.

    Attributes:
        probe: The probe.
        params: Its parameters.
        asked: Whether it was asked for by name, so that a system it does not fit is an error.
        trained: Whether its penalties are those of the run's recipe, once that is known.
    """

    probe: Probe
    params: Params
    asked: bool = True
    trained: bool = False

    def of_run(self, recipe: Mapping[str, Any]) -> "Part":
        """Return it with the penalties of a run's recipe, if it is to have them and there are any.

        Args:
            recipe: The recipe a snapshot carries.

        Raises:
            UsageError: If a penalty of the recipe is not installed, or has other options by now.
        """
        specs = specs_of(recipe) if self.trained else ()
        if not specs:
            return self
        given = {key: getattr(self.params, key) for key in self.params.model_fields_set}
        return replace(self, params=make_params(self.probe, {**given, "penalty": specs}))

    def plain(self) -> dict[str, Any]:
        """Return its parameters as plain values."""
        return self.params.model_dump(mode="json")

    def series(self, ds: xr.Dataset) -> xr.Dataset:
        """Return the numbers of one result that go into the series, with its own dimensions."""
        return _SERIES[self.probe.name](ds)


def choose_parts(
    specs: Sequence[str], depth: int, seed: int, default: Sequence[str], follow: Sequence[str] = ()
) -> list[Part]:
    """Return what is measured.

    Args:
        specs: Probes, with parameters that take the place of the small defaults: ``spectrum:at=relaxed``.
        depth: Relaxation steps at which the loss and the residual are read, from which the root is sought, and over
            which the reference gradient is unrolled.
        seed: Seed for probes that have one.
        default: Names of the probes if no spec is given.
        follow: Probes of the gradient, with parameters in the same way; they take the place of those in ``default``.

    Raises:
        UsageError: If a probe is none of those that make a series, is given twice, or a parameter is unknown.
    """
    parts: dict[str, Part] = {}
    for spec in follow:
        if (name := spec.partition(":")[0]) not in FOLLOWED:
            raise UsageError(
                f"what can be followed of the gradient is {', '.join(FOLLOWED)}, but --follow {name!r} was given"
                f"{nearest(name, FOLLOWED)}"
            )
    usual = [name for name in default if not follow or name not in FOLLOWED]
    for spec in [*(specs or usual), *follow]:
        name = spec.partition(":")[0]
        if name not in SMALL:
            raise UsageError(
                f"a drift is made of {', '.join(SMALL)}, but {name!r} was asked for; for other probes use "
                "`dyneq run` and dyneq.open_results"
            )
        if name in parts:
            raise UsageError(f"{name} is given twice (--probe, --follow); put all its parameters into one")
        full, stated = _completed(spec, {**SMALL[name], **_deep(name, depth)})
        probe, params = parse_probe(full, seed)
        trained = name == "decompose" and "penalty" not in stated
        parts[name] = Part(probe, params, bool(specs) or spec in follow, trained)
    return list(parts.values())


def _completed(spec: str, values: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Return a spec with the values it does not state itself, and the parameters it does state.

    They are one spec before it is read, since parameters may be wrong by each other's defaults.
    """
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", spec.partition(":")[2])  # what is quoted or listed has commas of its own
    stated = {part.partition("=")[0] for part in bare.split(",")}
    added = [f"{key}={json.dumps(value)}" for key, value in values.items() if key not in stated]
    return ",".join([spec if ":" in spec else f"{spec}:{added.pop(0)}", *added]), stated


def _deep(name: str, depth: int) -> dict[str, Any]:
    """Return the parameters of a probe that depend on the depth."""
    exact = f"bptt{depth}"
    known: dict[str, dict[str, Any]] = {
        "triangulate": {"ref": (exact,)},
        "navg": {"ref": (exact,)},
        "decompose": {"gradient": exact},
        "lrsweep": {"gradient": (exact, "aep", "track")},
    }
    return known.get(name, {"depth": (depth,)})


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
    "navg": of_navg,
    "decompose": of_decompose,
    "lrsweep": of_lrsweep,
}
