"""The ftle probe: Lyapunov exponents from a depth over a horizon, per step and per unit time."""

import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from dyneq.dynamics.averages import Plan
from dyneq.dynamics.finite_time import COMPLETE, finite_time_exponents
from dyneq.dynamics.lyapunov import Exponents, lyapunov_exponents, token_exponents
from dyneq.dynamics.relax import GROWTH, default_tolerance, relax
from dyneq.dynamics.residuals import least_size, residuals_of, sample_norm
from dyneq.dynamics.status import Status
from dyneq.dynamics.stepping import Scheme, Stepper
from dyneq.dynamics.structure import ALL_CUTS, check_causality
from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.contraction import flow_rate
from dyneq.probes.ftle_attributes import describe
from dyneq.probes.ftle_dataset import Floats, Measured, Wanted, dataset
from dyneq.systems.protocol import System

#: How many exponents are listed where no number is given.
USUAL = 4


class FtleParams(Params):
    """Parameters of the ftle probe."""

    depth: int = Field(400, ge=0, description="relaxation steps before the horizon begins")
    horizon: int = Field(400, ge=1, description="length of the horizon, steps; its first fifth aligns the vectors")
    count: int | None = Field(None, ge=1, description="exponents a sample and a token; 4, or all if there are fewer")
    tokens: Literal["auto", "yes", "no"] = Field("auto", description="asymptotic exponents token by token")
    singular: bool = Field(True, description="also finite-time exponents: singular values of the whole product")
    scheme: Scheme = Field("euler", description="steps of the horizon: the relaxation's own, or Runge-Kutta's")
    qr_every: int = Field(1, ge=1, description="steps between orthonormalisations")
    batches: int = Field(20, ge=2, description="batches of the error bars")
    rate_steps: int = Field(12, ge=1, description="steps of the contraction rate, the measure that floss penalises")
    seed: int = Field(0, description="seed of the first tangent vectors")


class FtleProbe(Probe):
    """Lyapunov exponents with error bars: does a small perturbation grow, persist or fade, and at which token."""

    name = "ftle"
    Params: ClassVar[type[Params]] = FtleParams

    def run(self, system: System, params: FtleParams, progress: Progress = silent) -> xr.Dataset:
        """Measure the exponents; dimensions ``sample``, ``mode`` (rank), ``step`` (history) and for blocks ``token``.

        Raises:
            UsageError: If a number fits neither the state nor the horizon, or tokens are asked for that do not exist.
        """
        begun = time.perf_counter()
        wanted = _wanted(system, params)
        # what cannot be asked is said before anything is computed
        Plan.of(params.horizon, params.qr_every, params.batches)
        Stepper(system, params.scheme)
        progress(f"relaxing to depth {params.depth}", 0.0)
        relaxation = relax(system, params.depth)
        usable = torch.tensor([s is not Status.DIVERGED for s in relaxation.status])
        measured = _measure(system, params, wanted, relaxation.z, usable, progress)
        ds = dataset(system, wanted, relaxation, measured)
        ds["contraction_rate"] = ("sample", _contraction(system, params, relaxation.z, usable))
        ds["forces"] += params.rate_steps + 1
        ds["seconds"] = time.perf_counter() - begun
        progress("done", 1.0)
        # the reading of a result depends on these, so it carries them even before it is stamped
        attributes = {"eps": system.eps, "time": str(system.time), "horizon": params.horizon, "depth": params.depth}
        return describe(ds).assign_attrs(attributes)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how many samples expand, persist and contract, what that can mean, and what to beware of."""
        from dyneq.probes.ftle_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the samples with the largest exponents as a table."""
        from dyneq.probes.ftle_summary import table

        return table(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the exponents of every sample as plain values."""
        from dyneq.probes.ftle_summary import json_entry

        return json_entry(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the convergence of the leading exponents, and all exponents or those of the tokens; two axes."""
        from dyneq.probes.ftle_plot import plot_ftle

        return plot_ftle(ds, ax)


def _wanted(system: System, params: FtleParams) -> Wanted:
    z0 = system.initial_state()
    dim, causal = z0[0].numel(), system.structure.causal
    if params.tokens == "yes" and not causal:
        raise UsageError(
            f"exponents by token need a block that is causal over tokens, but {system.name} is not; use --tokens no"
        )
    per_token = causal and params.tokens != "no"
    most = z0[0, 0].numel() if per_token else dim
    if params.count is not None and params.count > most:
        what = "a token of {} has {} channels" if per_token else "the state of a sample of {} has {} components"
        raise UsageError(
            f"{what.format(system.name, most)}, so there are {most} exponents, but {params.count} were asked for; "
            "lower count"
        )
    count = min(USUAL, most) if params.count is None else params.count
    # a frame that fills the space costs little where the state is small, and gives all exponents
    return Wanted(count, dim if dim <= COMPLETE and not per_token else count, per_token, dim)


@torch.no_grad()
def _contraction(system: System, params: FtleParams, z: torch.Tensor, usable: torch.Tensor) -> Floats:
    """Return the contraction rate along the flow of every sample, NaN where it is lost or rests to rounding."""
    rate = flow_rate(system, z, params.rate_steps).cpu().double()
    return torch.where(usable, rate, torch.nan).numpy()


def _measure(
    system: System, params: FtleParams, wanted: Wanted, z: torch.Tensor, usable: torch.Tensor, progress: Progress
) -> Measured | None:
    """Return the exponents of the usable samples, None if there is none."""
    index = usable.nonzero().flatten()
    if not len(index):
        return None
    whole = len(index) == len(usable)
    part = system if whole else system.select(index.to(z.device))
    z = z if whole else z[index.to(z.device)]
    stages = 1 if params.scheme == "euler" else 4
    horizon: dict[str, Any] = {
        "steps": params.horizon,
        "count": wanted.frame,
        "qr_every": params.qr_every,
        "batches": params.batches,
    }

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(params.seed)

    exponents, finite, forces, products = None, None, 0, 0
    if wanted.tokens:
        progress("exponents token by token", 0.2)
        check_causality(part, z)
        exponents = token_exponents(part, z, generator=generator(), scheme=params.scheme, **horizon)
        forces = 3 + min(z.shape[1], 32 if z.shape[1] > ALL_CUTS else ALL_CUTS) + stages * params.horizon
        products = stages * params.horizon * wanted.frame
    if params.singular:
        progress("singular values of the whole product", 0.5)
        finite = finite_time_exponents(part, z, generator=generator(), scheme=params.scheme, **horizon)
        forces, products = forces + finite.forces, products + finite.products
        exponents = exponents or finite.exponents
    if exponents is None:
        progress("exponents of whole samples", 0.2)
        exponents = lyapunov_exponents(part, z, generator=generator(), scheme=params.scheme, **horizon)
        forces, products = stages * params.horizon, stages * params.horizon * wanted.frame
    diverged, residual = _end(part, exponents)
    # one more force tells how the horizon ends
    return Measured(index.numpy(), exponents, finite, diverged, residual, forces + 1, products)


@torch.no_grad()
def _end(system: System, exponents: Exponents) -> tuple[NDArray[np.bool_], Floats]:
    """Return which samples left during the horizon, and the force residuals at its end."""
    z = exponents.z
    assert z is not None
    origin = sample_norm(system.initial_state().detach())
    residual = residuals_of(z, system.force(z), system.eps, least_size(system)).force
    grown = (sample_norm(z) > GROWTH * origin.clamp(min=1.0)) & ~(residual <= default_tolerance(z.dtype))
    return (~exponents.valid | grown).cpu().numpy(), residual.cpu().double().numpy()
