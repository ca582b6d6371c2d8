"""The mixing probe: what one token does to another, at once and at equilibrium, and the loss at every position."""

import time
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.influence import Coupling, Influence, Undeclared, influence, token_coupling
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import STARTS, Roots, find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError
from dyneq.probes.base import CERTIFICATE, COST, EXACT, Finding, Params, Probe, Progress, annotate, silent
from dyneq.probes.mixing_decay import decay, profile
from dyneq.systems.protocol import System

#: Perturbed tokens where none are named.
SOURCES = 4


class MixingParams(Params):
    """Parameters of the mixing probe."""

    depth: int = Field(800, ge=1, description="depth of the relaxation that leads to the root, steps")
    source: tuple[int, ...] = Field((), description="perturbed tokens; 4 spread over the context if none are named")
    directions: int = Field(4, ge=2, description="random directions of the force on each perturbed token")
    seed: int = Field(0, description="seed of directions and of the root's random start")


class MixingProbe(Probe):
    """Influence of a force on one token on the equilibrium of others against distance, causality, loss by position."""

    name = "mixing"
    version = 1
    Params: ClassVar[type[Params]] = MixingParams

    def run(self, system: System, params: MixingParams, progress: Progress = silent) -> xr.Dataset:
        """Measure at the root of every sample that has one; without tokens the whole state counts as one.

        Dimensions ``sample``, ``token``, ``from_token`` (what acts), ``source`` (perturbed tokens) and ``distance``.

        Args:
            system: Any system.
            params: Depth, perturbed tokens and directions.
            progress: Told how far the measurement is.
        """
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(params.seed)
        sources = _sources(system, params.source)
        progress(f"relaxing to depth {params.depth}", 0.0)
        relaxation = relax(system, params.depth, recorder=Recorder(system.eps, params.depth))
        usable = _usable(relaxation.z, relaxation.status)
        ds = xr.Dataset(
            {"relaxed_status": ("sample", np.array([s.value for s in relaxation.status], dtype=object))},
            {"sample": np.arange(len(relaxation.status))},
        )
        products = 0
        coupling = None
        if len(usable):
            progress("which token acts on which", 0.3)
            part, z = _some(system, usable, relaxation.z)
            coupling = token_coupling(part, z, generator=generator)
            products += coupling.products
            ds = ds.assign_coords(_token_coords(coupling)).assign(_coupled(coupling, usable, len(relaxation.status)))
        leaks = coupling is not None and bool((coupling.leak > 0).any())
        # by substitution one token at a time a leak would be left out: then nothing the system declares is relied on
        trusted = Undeclared(system) if leaks and system.structure.causal else system
        progress("finding the roots", 0.5)
        roots = find_root(trusted, relaxation=relaxation, starts=STARTS, generator=generator)
        ds = ds.assign(_roots(roots))
        found = roots.found.nonzero().flatten()
        measured: Influence | None = None
        if len(found):
            progress("responses of the roots", 0.7)
            part, z = _some(trusted, found, roots.z)
            measured = influence(part, z, sources, params.directions, generator=generator)
            products += measured.products
        ds = _with_influence(ds, measured, found, sources, causal=trusted.structure.causal)
        ds = ds.assign(_losses(system, relaxation.z, usable, roots))
        ds = ds.assign(forces=((), relaxation.steps + 2), products=((), products))
        ds["seconds"] = ((), time.perf_counter() - begun)
        progress("done", 1.0)
        return _describe(ds).assign_attrs(
            tokens=0 if system.structure.token_axis is None else _tokens(system),
            declared_causal=int(system.structure.causal),
            method="none" if measured is None else measured.method,
            has_loss=int(system.has_loss),
        )

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how far influence reaches, whether the future leaks, and how the loss depends on the position."""
        from dyneq.probes.mixing_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the table of influence against distance."""
        from dyneq.probes.mixing_summary import table

        return table(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw influence against distance, the token-to-token blocks, and the loss by position; ``ax`` are three."""
        from dyneq.probes.mixing_plot import plot_mixing

        return plot_mixing(ds, ax)


def _tokens(system: System) -> int:
    axis = system.structure.token_axis
    return 1 if axis is None else int(system.initial_state().shape[axis])


def _sources(system: System, asked: tuple[int, ...]) -> list[int]:
    """Return the tokens to perturb.

    Raises:
        UsageError: If one is asked for that the system has not.
    """
    tokens = _tokens(system)
    for s in asked:
        if not 0 <= s < tokens:
            has = f"has the tokens 0 to {tokens - 1}" if system.structure.token_axis is not None else "has no tokens"
            raise UsageError(f"token {s} was to be perturbed, but {system.name} {has}; name another --source, or none")
    if asked:
        return sorted(set(asked))
    # every source has others after it, the first all of them
    return sorted({int(s) for s in np.linspace(0, tokens, SOURCES, endpoint=False)})


def _usable(z: Tensor, status: list[Status]) -> Tensor:
    lost = (Status.DIVERGED, Status.STAGNATED)
    kept = torch.isfinite(z).flatten(1).all(1).cpu() & torch.tensor([s not in lost for s in status])
    return kept.nonzero().flatten()


def _some(system: System, index: Tensor, z: Tensor) -> tuple[System, Tensor]:
    at = index.to(z.device)
    return (system if len(index) == z.shape[0] else system.select(at)), z[at]


def _fill(values: Tensor, index: Tensor, samples: int) -> NDArray[np.float64]:
    """Return values of the samples ``index`` as float64 among all samples, NaN for the others."""
    filled = np.full((samples, *values.shape[1:]), np.nan)
    filled[index.numpy()] = values.detach().double().cpu().numpy()
    return filled


def _token_coords(coupling: Coupling) -> dict[str, Any]:
    tokens = np.arange(coupling.norm.shape[1])
    return {"token": tokens, "from_token": tokens}


def _coupled(coupling: Coupling, index: Tensor, samples: int) -> dict[str, Any]:
    """Return the blocks of J over the samples, and what leaks in each."""
    squares = coupling.norm.double().square()
    return {
        "coupling": (("token", "from_token"), squares.mean(0).sqrt().cpu().numpy()),
        "leak": ("sample", _fill(coupling.leak, index, samples)),
    }


def _roots(roots: Roots) -> dict[str, Any]:
    residual = roots.residual.cpu().double().numpy()
    return {
        "root_status": ("sample", np.array([s.value for s in roots.status], dtype=object)),
        "force_residual": ("sample", np.where(np.isfinite(residual), residual, np.nan)),
    }


def _with_influence(
    ds: xr.Dataset, measured: Influence | None, found: Tensor, sources: list[int], causal: bool
) -> xr.Dataset:
    """Return the dataset with the responses of the roots, and their profile and law."""
    if measured is None:
        return ds
    samples, response = ds.sizes["sample"], measured.response.double()
    rows = found.numpy()
    law = profile(response.cpu().numpy(), sources, causal)
    followed = decay(response.cpu().numpy(), sources)

    def among_all(values: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = np.full((samples, *values.shape[1:]), np.nan)
        filled[rows] = values
        return filled

    mean = response.square().mean(2)
    spread = response.square().std(2) / (2 * mean.sqrt() * response.shape[2] ** 0.5)
    condition = measured.condition.expand(-1, response.shape[3])
    ds = ds.assign_coords(token=np.arange(response.shape[3]), source=sources, distance=law.distance)
    return ds.assign(
        influence=(("sample", "source", "token"), _fill(mean.sqrt(), found, samples)),
        influence_error=(("sample", "source", "token"), _fill(torch.where(mean > 0, spread, mean), found, samples)),
        residual=(("sample", "source"), _fill(measured.residual.amax(2), found, samples)),
        condition=(("sample", "token"), _fill(condition, found, samples)),
        profile=(("sample", "distance"), among_all(law.influence)),
        profile_error=(("sample", "distance"), among_all(law.error)),
        typical=("distance", law.typical),
        typical_error=("distance", law.typical_error),
        decay=((), np.array(followed.kind, dtype=object)),
        decay_length=((), followed.length),
        decay_length_error=((), followed.length_error),
        decay_power=((), followed.exponent),
        decay_power_error=((), followed.exponent_error),
        decay_samples=((), float(followed.samples)),
    )


@torch.no_grad()
def _losses(system: System, z: Tensor, usable: Tensor, roots: Roots) -> dict[str, Any]:
    """Return the loss at every token, where the system gives it, at the relaxed state and at the root."""
    token_loss = getattr(system, "token_loss", None)
    if not system.has_loss or not callable(token_loss) or system.structure.token_axis is None:
        return {}
    kept = torch.zeros(z.shape[0], dtype=torch.bool)
    kept[usable] = True
    variables: dict[str, Any] = {}
    for name, state, mask in (("relaxed_token_loss", z, kept), ("token_loss", roots.z, roots.found)):
        values = token_loss(state).double().cpu().numpy()
        values = np.where(mask.numpy()[:, None] & np.isfinite(values), values, np.nan)
        count = np.isfinite(values).sum(0)
        mean = np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
        square = np.nansum((values - mean) ** 2, 0) / np.maximum(count - 1, 1)
        bar = np.where(count > 1, np.sqrt(square / np.maximum(count, 1)), np.nan)
        variables[name] = (("sample", "token"), values)
        variables[f"{name}_mean"] = ("token", mean)
        variables[f"{name}_mean_error"] = ("token", bar)
    return variables


_RESPONSE = "norm(dz_t)/norm(delta) for a small constant force delta on the source, root mean square over directions"
_ATTRIBUTES = {
    "relaxed_status": ("how the relaxation ended", ""),
    "root_status": ("whether a root was found", ""),
    "force_residual": ("norm(F)/norm(z) at the root", "1/time"),
    "coupling": (
        "size of dF_t/dz_s, Frobenius norm over the root of the number of channels, estimated from one random vector a "
        "sample; root mean square over samples, at the relaxed states",
        "1/time",
    ),
    "leak": ("largest size of dF_t/dz_s with s > t over the largest with s = t; 0 for a causal block", "1"),
    "influence": (f"{_RESPONSE}; NaN where J is singular to working precision", "time"),
    "influence_error": ("standard error from the scatter over directions", "time"),
    "residual": ("norm(J dz + delta)/norm(delta), worst direction", "1"),
    "condition": ("Frobenius condition number of J_tt, or of the whole J where it is solved whole; NaN: unknown", "1"),
    "profile": ("influence against distance t - s, root mean square over sources and directions", "time"),
    "profile_error": ("standard error from the scatter over sources and directions", "time"),
    "typical": ("median of the profile over samples", "time"),
    "typical_error": ("half-width of the distribution-free 68 % interval of the median", "time"),
    "decay": ("law that influence follows from distance 1 on", ""),
    "decay_length": ("distance over which influence falls by e", "tokens"),
    "decay_length_error": ("standard error from the scatter over samples", "tokens"),
    "decay_power": ("p where influence falls as distance^-p", "1"),
    "decay_power_error": ("standard error from the scatter over samples", "1"),
    "decay_samples": ("samples the law was fitted to", "samples"),
    "relaxed_token_loss": ("loss at every token, read out from the relaxed state", "nats"),
    "relaxed_token_loss_mean": ("its mean over samples", "nats"),
    "relaxed_token_loss_mean_error": ("standard error over samples", "nats"),
    "token_loss": ("loss at every token, read out at the root", "nats"),
    "token_loss_mean": ("its mean over samples", "nats"),
    "token_loss_mean_error": ("standard error over samples", "nats"),
    "forces": ("force evaluations, without those of Newton's method", "evaluations"),
    "products": ("products with the Jacobian or its transpose of the whole batch", "products"),
    "seconds": ("wall time", "s"),
}
_BARS = {
    name: f"{name}_error"
    for name in (
        "influence",
        "profile",
        "typical",
        "decay_length",
        "decay_power",
        "token_loss_mean",
        "relaxed_token_loss_mean",
    )
}
_ROLES = {
    **dict.fromkeys(("force_residual", "residual", "condition"), CERTIFICATE),
    **dict.fromkeys(("forces", "products", "seconds"), COST),
    "decay_samples": EXACT,
}


def _describe(ds: xr.Dataset) -> xr.Dataset:
    for name in ds.data_vars:
        long_name, units = _ATTRIBUTES[str(name)]
        ds[name].attrs.update(long_name=long_name, units=units)
    for dim, words in (("from_token", "token that acts"), ("source", "perturbed token"), ("distance", "t - s")):
        if dim in ds.coords:
            ds[dim].attrs.update(long_name=words, units="tokens")
    return annotate(ds, bars=_BARS, roles=_ROLES)
