"""The spectrum probe: leading eigenvalues of the relaxation map, with address, residual and condition."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.drift import symmetric_drift
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax, relax_through
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.spectra import LeadingSpectrum, Method, leading_spectrum
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.linalg.lanczos import extremal_symmetric
from dyneq.linalg.targets import CriticalStep, LargestModulus, Rightmost, Target, critical_step
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.spectrum_attributes import describe
from dyneq.probes.spectrum_errors import add_errors, reaches
from dyneq.probes.spectrum_match import match_spectra
from dyneq.probes.spectrum_summary import summarize
from dyneq.systems.protocol import System, Time

#: ``depth`` coordinate of a result at the root.
ROOT = -1


class SpectrumParams(Params):
    """Parameters of the spectrum probe."""

    depth: tuple[int, ...] = Field((800,), min_length=1, description="relaxation depths, steps")
    at: Literal["relaxed", "root"] = Field("relaxed", description="the relaxed states, or the root they lead to")
    method: Method = Field("auto", description="token blocks, whole samples by Krylov or densely, or chosen")
    count: int = Field(16, ge=1, description="length of the list of leading pairs")
    numerical_abscissa: bool = Field(True, description="also the largest initial growth rate, whole samples")
    seed: int = Field(0, description="seed of Krylov start vectors and of root starts")

    @field_validator("depth")
    @classmethod
    def _positive(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        for depth in depths:
            if depth < 1:
                raise ValueError(f"a relaxation depth is at least 1 step, not {depth}")
        return tuple(sorted(set(depths)))


@dataclass(frozen=True)
class State:
    """Where a spectrum is taken: depth (-1: root), state, and how far each sample is from a fixed point."""

    depth: int
    z: torch.Tensor
    status: list[Status]
    force_residual: torch.Tensor
    start: list[str]


class SpectrumProbe(Probe):
    """Leading eigenvalues mu of J = dF/dz and multipliers 1 + eps mu, at relaxed states or at the root."""

    name = "spectrum"
    version = 2
    Params: ClassVar[type[Params]] = SpectrumParams

    def run(self, system: System, params: SpectrumParams, progress: Progress = silent) -> xr.Dataset:
        """Measure the spectrum at every state asked for.

        The dataset has dimensions ``depth`` (-1 marks the root), ``sample``, ``mode`` and, for token blocks, ``token``.
        ``mu`` is per unit time, ``multiplier`` per step.

        Args:
            system: Any system.
            params: Depths, place, method and size of the list.
            progress: Told how far the measurement is.
        """
        entries = []
        for state in _states(system, params, progress):
            place = "the root" if state.depth == ROOT else f"depth {state.depth}"
            progress(f"eigenvalues at {place}", 0.5)
            entries.append(_measure(system, state, params))
        progress("done", 1.0)
        ds = xr.concat(entries, dim="depth", join="outer", combine_attrs="drop_conflicts")
        # the reading of a result depends on these, so it carries them even before it is stamped
        return describe(ds).assign_attrs(eps=system.eps, time=str(system.time))

    def match(self, a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Return two spectra on the same coordinates, modes paired by address and then by least distance."""
        return match_spectra(a, b)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return the reading of each state: how far it is from a fixed point, and what its leading pairs say."""
        return summarize(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the multipliers against the unit circle and the map of the abscissa; ``ax`` is a pair of axes."""
        from dyneq.probes.spectrum_plot import plot_spectrum

        return plot_spectrum(ds, ax)


def _states(system: System, params: SpectrumParams, progress: Progress) -> list[State]:
    """Return every state asked for."""
    if params.at == "relaxed":
        progress(f"relaxing to depth {max(params.depth)}", 0.0)
        return [
            State(r.depth, r.z, r.status, r.residuals.force, ["relaxed"] * len(r.status))
            for r in relax_through(system, list(params.depth))
        ]
    depth = max(params.depth)
    progress(f"finding the root from depth {depth}", 0.0)
    relaxation = relax(system, depth, recorder=Recorder(system.eps, depth))
    generator = torch.Generator().manual_seed(params.seed)
    roots = find_root(system, relaxation=relaxation, generator=generator, starts=STARTS)
    return [State(ROOT, roots.z, roots.status, roots.residual, roots.start)]


def _targets(system: System) -> dict[str, Target]:
    """Return what is wanted of each block; the first decides the list of leading pairs."""
    largest = {"largest": LargestModulus(system.eps)}
    if system.time is Time.MAP:
        return dict(largest)
    return {**largest, "rightmost": Rightmost(), "critical": CriticalStep()}


def _measure(system: System, state: State, params: SpectrumParams) -> xr.Dataset:
    """Return the dataset of one state, with a ``depth`` dimension of length one."""
    begun = time.perf_counter()
    z, depth = state.z, state.depth
    samples = z.shape[0]
    lost = (Status.DIVERGED, Status.ABSORBED, Status.STAGNATED)
    usable = torch.isfinite(z).flatten(1).all(1).cpu() & torch.tensor([s not in lost for s in state.status])
    index = usable.nonzero().flatten()
    residual = state.force_residual.cpu().double().numpy()
    base = {
        "status": (("depth", "sample"), np.array([[s.value for s in state.status]], dtype=object)),
        "start": (("depth", "sample"), np.array([state.start], dtype=object)),
        "force_residual": (("depth", "sample"), residual[None]),
        "step_residual": (("depth", "sample"), system.eps * residual[None]),
    }
    coords = {
        "depth": [depth],
        "state": ("depth", np.array(["root" if depth == ROOT else "relaxed"], dtype=object)),
        "sample": np.arange(samples),
    }
    ds = xr.Dataset(base, coords)
    if not len(index):
        return ds.assign(
            method=("depth", np.array(["none"], dtype=object)),
            matvecs=("depth", [0]),
            seconds=("depth", [time.perf_counter() - begun]),
        )
    whole = len(index) == samples
    part = system if whole else system.select(index.to(z.device))
    linearization = Linearization(part, z if whole else z[index.to(z.device)])
    generator = torch.Generator().manual_seed(params.seed)
    targets = _targets(system)
    displacement = None
    if depth == ROOT:  # a generator of its own: the error bars must not change the eigenvalues
        displacement = root_displacement(part, linearization.z, generator=torch.Generator().manual_seed(params.seed))
    spectrum = leading_spectrum(
        linearization,
        list(targets.values()),
        params.count,
        generator=generator,
        method=params.method,
        displacement=displacement,
    )
    ds = ds.assign(_per_block(spectrum, targets, index.numpy(), samples))
    ds = ds.assign(_modes(spectrum, system.eps, index.numpy()))
    ds = add_errors(_derive(ds, system), system, _reach(spectrum, targets, system.eps, index.numpy(), samples))
    matvecs = spectrum.matvecs
    if params.numerical_abscissa:
        symmetric = linearization.symmetric()
        before = symmetric.products
        omega = extremal_symmetric(symmetric, "largest", 1, generator=generator, tol=1e-6)
        matvecs += symmetric.products - before
        # of the product S v and of the multiple of v subtracted from it
        rounding = 2 * torch.finfo(z.dtype).eps * omega.scale
        moved, more = symmetric_drift(linearization, omega.vectors[:, 0], displacement)
        # until it has converged it is near some eigenvalue, not known to be the largest
        error = np.where(omega.converged[:, 0], omega.residual[:, 0] + rounding + 2 * moved, np.nan)
        for name, values in (("numerical_abscissa", omega.values[:, 0]), ("numerical_abscissa_error", error)):
            filled = np.full(samples, np.nan)
            filled[index.numpy()] = values
            ds[name] = (("depth", "sample"), filled[None])
        matvecs += more
    return ds.assign(
        method=("depth", np.array([spectrum.method], dtype=object)),
        matvecs=("depth", [matvecs]),
        seconds=("depth", [time.perf_counter() - begun]),
    )


def _per_block(
    spectrum: LeadingSpectrum, targets: dict[str, Target], index: NDArray[np.int64], samples: int
) -> dict[str, Any]:
    """Return each target's best pair of every block as variables over samples (and tokens)."""
    shape = (samples, spectrum.tokens) if spectrum.per_token else (samples,)
    dims = ("depth", "sample", "token")[: 1 + len(shape)]
    variables: dict[str, Any] = {}
    for name, target in targets.items():
        best = spectrum.pairs.best(target, spectrum.samples * spectrum.tokens).reshape(-1, *shape[1:])
        for part in ("mu", "residual", "condition", "error", "converged"):
            fill = np.nan + 0j if part == "mu" else np.nan
            values = np.full(shape, fill)
            values[index] = np.where(best >= 0, getattr(spectrum.pairs, part)[best], fill)
            variables[f"{name}_{part}"] = (dims, values[None])
    return variables


def _reach(
    spectrum: LeadingSpectrum, targets: dict[str, Target], eps: float, index: NDArray[np.int64], samples: int
) -> dict[str, xr.DataArray]:
    """Return how far up the pairs of each block reach, with the dimensions of :func:`_per_block`."""
    shape = (samples, spectrum.tokens) if spectrum.per_token else (samples,)
    found = {}
    for name, reach in reaches(spectrum.pairs, targets, eps, spectrum.samples * spectrum.tokens).items():
        filled = np.full(shape, np.nan)
        filled[index] = reach.reshape(-1, *shape[1:])
        found[name] = xr.DataArray(filled[None], dims=("depth", "sample", "token")[: 1 + len(shape)])
    return found


def _modes(spectrum: LeadingSpectrum, eps: float, index: NDArray[np.int64]) -> dict[str, Any]:
    """Return the list of globally leading pairs as variables over ``mode``."""
    pairs = spectrum.pairs.take(spectrum.leading)
    address = [spectrum.address(int(b)) for b in pairs.block]
    columns = {
        "mu": pairs.mu,
        "multiplier": 1 + eps * pairs.mu,
        "modulus": np.abs(1 + eps * pairs.mu),
        # the bar of mu, and the rounding of 1 + eps mu, which is larger for small eps
        "multiplier_error": eps * pairs.error + np.finfo(np.float64).eps * np.abs(1 + eps * pairs.mu),
        "mode_sample": np.array([index[s] for s, _ in address], dtype=np.float64),
        "mode_token": np.array([-1 if t is None else t for _, t in address], dtype=np.float64),
        "residual": pairs.residual,
        "condition": pairs.condition,
        "error": pairs.error,
        "converged": pairs.converged.astype(np.float64),
    }
    modes: dict[str, Any] = {name: (("depth", "mode"), values[None]) for name, values in columns.items()}
    return {**modes, "mode": np.arange(len(pairs.mu))}  # states may differ by one mode: a pair is never split


def _derive(ds: xr.Dataset, system: System) -> xr.Dataset:
    """Add the abscissa, the spectral radius and the critical step of every sample."""
    over = [d for d in ("token",) if d in ds["largest_mu"].dims]
    ds["spectral_radius"] = xr.ufuncs.abs(1 + system.eps * ds["largest_mu"]).max(over)
    settled = [ds[name] for name in ("largest_converged", "rightmost_converged", "critical_converged") if name in ds]
    # an unconverged pair of any block could be the one that decides
    ds["pairs_converged"] = xr.concat(settled, "target", coords="minimal").min([*over, "target"], skipna=False)
    if system.time is Time.MAP:
        return ds
    ds["abscissa"] = ds["rightmost_mu"].real.max(over)
    step = xr.apply_ufunc(lambda mu: critical_step(np.asarray(mu, dtype=np.complex128)), ds["critical_mu"])
    # defined only where the flow itself is stable
    ds["critical_eps"] = step.min(over).where(ds["abscissa"] < 0)
    return ds
