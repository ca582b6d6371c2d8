"""The census probe: for every sample the token where it does not settle, the root there, and the cause."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from dyneq.dynamics.census import Census, take_census
from dyneq.dynamics.judgement import Judgement
from dyneq.dynamics.moving import PATIENCE
from dyneq.dynamics.watching import WATCH
from dyneq.probes.base import CERTIFICATE, COST, EXACT, Finding, Params, Probe, Progress, annotate, silent
from dyneq.systems.protocol import System, Time


class CensusParams(Params):
    """Parameters of the census probe."""

    depth: int = Field(1000, ge=1, description="relaxation steps after which what still moves is looked at")
    watch: int = Field(WATCH, ge=200, description="steps an attractor is watched for at most")
    patience: int = Field(PATIENCE, ge=0, description="steps a slow relaxation is continued for at most")
    seed: int = Field(0, description="seed of displacements, root starts and Krylov starts")


class CensusProbe(Probe):
    """For every sample the first token that does not settle, its leading pair at the root, and the cause."""

    name = "census"
    version = 1
    Params: ClassVar[type[Params]] = CensusParams

    def run(self, system: System, params: CensusParams, progress: Progress = silent) -> xr.Dataset:
        """Take the census; dimensions ``sample`` and, for causal blocks, ``token``."""
        generator = torch.Generator().manual_seed(params.seed)
        taken = take_census(
            system,
            depth=params.depth,
            generator=generator,
            watch=params.watch,
            patience=params.patience,
            progress=progress,
        )
        progress("done", 1.0)
        return census_dataset(taken, system)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return the checkpoint's verdict with its share, and what each cause means."""
        from dyneq.probes.census_reading import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the samples that do not settle, one a line."""
        from dyneq.probes.census_reading import table

        return table(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the verdict and the census, one entry a sample."""
        from dyneq.probes.census_reading import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the map of samples and tokens: what has settled, what is slow, where motion starts, what it drives."""
        from dyneq.probes.census_plot import plot_census

        return plot_census(ds, ax)


#: How each judgement's sentences are kept in one string.
def sentences(text: object) -> list[str]:
    """Return the sentences that a variable of a census holds for one sample."""
    return list(json.loads(str(text)))


def census_dataset(taken: Census, system: System) -> xr.Dataset:
    """Return a census as a dataset.

    Args:
        taken: The census.
        system: What it was taken of.
    """
    judged = taken.judgements
    ds = xr.Dataset(
        {
            **{name: ("sample", [of(j) for j in judged], attrs) for name, (of, attrs) in _NUMBERS.items()},
            **{
                name: ("sample", np.array([of(j) for j in judged], dtype=object), {"long_name": text, "units": ""})
                for name, (of, text) in _WORDS.items()
            },
        },
        {"sample": np.arange(len(judged))},
    )
    settling = taken.settling

    def entry(values: Any, long_name: str, units: str, dims: Any = "sample") -> tuple[Any, Any, dict[str, str]]:
        return dims, values, {"long_name": long_name, "units": units}

    ds = ds.assign(
        origin=entry(np.array(taken.token), "token where it starts not to settle, -1: none", ""),
        status=entry(np.array([s.value for s in settling.status], dtype=object), "status of the relaxation", ""),
        force_residual=entry(settling.residual.double().cpu().numpy(), "norm(F)/norm(z) at the end", "1/time"),
        steps=entry(settling.steps.numpy(), "relaxation steps taken: fewer than the depth where it converged", "steps"),
        sample_critical_eps=entry(
            taken.sample_critical_eps, "smallest critical step of all tokens, NaN unless every flow is stable", "time"
        ),
        force_evaluations=entry(taken.cost.forces, "forces on the whole batch", "evaluations", ()),
        jacobian_products=entry(taken.cost.products, "products with the Jacobian of the whole batch", "products", ()),
        token_evaluations=entry(
            taken.cost.tokens, "forces on single tokens, in units of one on every token of the batch", "evaluations", ()
        ),
        evaluations=entry(
            taken.cost.total, "force evaluations of the whole batch, all of it together", "evaluations", ()
        ),
    )
    if taken.token_state is not None:
        meaning = "0 settled, 1 slow, 2 where it starts, 3 moves because an earlier one does"
        ds["token_state"] = entry(taken.token_state.astype(np.int64), meaning, "", ("sample", "token"))
        leading = "rightmost eigenvalue" if system.time is Time.FLOW else "largest multiplier minus 1"
        ds["token_mu"] = entry(
            taken.token_mu,
            f"{leading} of the token's block at the root, NaN where none was sought",
            "1/time",
            ("sample", "token"),
        )
    ds = annotate(ds, bars=_BARS, roles=_ROLES)
    return ds.assign_attrs(eps=system.eps, time=str(system.time), depth=settling.depth)


_Numbers = dict[str, tuple[Callable[[Judgement], Any], dict[str, str]]]
_NUMBERS: _Numbers = {
    name: ((lambda j, name=name: getattr(j, name)), {"long_name": long_name, "units": units})  # type: ignore[misc]
    for name, long_name, units in (
        (
            "mu",
            "deciding eigenvalue at the root: rightmost of a flow, largest multiplier minus 1 of a map",
            "1/time",
        ),
        ("mu_error", "first-order error of it, the root's own share included", "1/time"),
        ("critical_mu", "mode that sets the critical step", "1/time"),
        ("critical_eps", "step above which Euler amplifies a mode of the stable flow where it starts", "time"),
        ("critical_eps_error", "first-order error of it", "time"),
        ("root_residual", "norm(F)/norm(z) at the root", "1/time"),
        ("period", "period of the cycle", "time"),
        ("amplitude", "size of the motion relative to the state", "1"),
        ("exponent", "leading Lyapunov exponent", "1/time"),
        ("exponent_error", "its standard error", "1/time"),
        ("passage", "time the whole passage of a ghost takes", "time"),
    )
}
_WORDS: dict[str, tuple[Callable[[Judgement], str], str]] = {
    "verdict": (lambda j: j.verdict.value, "cause"),
    "confidence": (lambda j: j.confidence.value, "what the verdict rests on"),
    "kind": (lambda j: j.kind, "finer name of the cause"),
    "supports": (lambda j: json.dumps(j.supports), "what speaks for the verdict, a JSON list of sentences"),
    "against": (lambda j: json.dumps(j.against), "what speaks against it, a JSON list of sentences"),
}
_BARS = {
    "mu": "mu_error",
    "critical_eps": "critical_eps_error",
    "exponent": "exponent_error",
}
_ROLES = {
    **dict.fromkeys(("force_evaluations", "jacobian_products", "token_evaluations", "evaluations"), COST),
    **dict.fromkeys(("force_residual", "root_residual"), CERTIFICATE),
    **dict.fromkeys(("origin", "token_state", "steps"), EXACT),
}
