"""The nonnormality probe: what the eigenvalues do not say about the first steps and about small changes of J."""

import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.drift import symmetric_drift
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.nonnormality import (
    Blocks,
    explicit_blocks,
    token_asymmetry,
    token_numerical_abscissa,
    whole_sample,
)
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.spectra import LeadingSpectrum, leading_spectrum
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError
from dyneq.linalg.hutchinson import Estimate, jackknife
from dyneq.linalg.lanczos import extremal_symmetric
from dyneq.linalg.targets import LargestModulus, Rightmost, Target
from dyneq.probes.base import Finding, Params, Probe, Progress, align, silent
from dyneq.probes.branch_norm import branch_jacobian_squares
from dyneq.probes.nonnormality_attributes import describe
from dyneq.probes.nonnormality_blocks import analyse_blocks, block_growth, chosen_blocks, sample_growth
from dyneq.probes.nonnormality_stability import Stability, stability
from dyneq.systems.protocol import System, Time


class NonnormalityParams(Params):
    """Parameters of the nonnormality probe."""

    at: Literal["root", "relaxed"] = Field("root", description="the root the relaxation leads to, or its last state")
    depth: int = Field(800, ge=1, description="depth of the relaxation, steps")
    vectors: int = Field(32, ge=4, description="random vectors of each estimate")
    growth_steps: int = Field(200, ge=1, description="longest transient looked at, steps")
    blocks: int = Field(6, ge=1, description="blocks whose pseudospectra are computed")
    rank: Literal["growth", "departure", "rightmost"] = Field(
        "growth", description="which blocks come first: largest growth, largest relative departure, or rightmost pair"
    )
    token: int | None = Field(None, ge=0, description="look at the pseudospectra of this token's blocks only")
    level: tuple[float, ...] = Field(
        (0.01, 0.03, 0.1, 0.3), min_length=1, description="sizes of the change of J, per unit time"
    )
    grid: int = Field(60, ge=8, le=600, description="points along each side of the contour plot")
    largest_block: int = Field(256, ge=1, description="dimension above which blocks are not formed as matrices")
    seed: int = Field(0, description="seed of random vectors, Krylov starts and root starts")

    @field_validator("level")
    @classmethod
    def _positive(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        for level in levels:
            if not 0 < level < float("inf"):
                raise ValueError(f"a change of J has a positive, finite size, not {level}")
        return tuple(sorted(set(levels)))


class NonnormalityProbe(Probe):
    """Numerical abscissa, departure from normality, transient growth and pseudospectra of J = dF/dz."""

    name = "nonnormality"
    version = 1
    Params: ClassVar[type[Params]] = NonnormalityParams

    def run(self, system: System, params: NonnormalityParams, progress: Progress = silent) -> xr.Dataset:
        """Measure the non-normality of J at the root or at the relaxed state.

        Variables over ``sample`` belong to the whole sample, those over ``token`` and ``block`` to one token's block
        (to the whole sample where there are no token blocks).
        """
        begun = time.perf_counter()
        _check_token(system, params.token)
        z, status, residual = _state(system, params, progress)
        base = {
            "status": ("sample", np.array([s.value for s in status], dtype=object)),
            "force_residual": ("sample", residual.cpu().double().numpy()),
        }
        ds = xr.Dataset(base, {"sample": np.arange(z.shape[0])})
        lost = (Status.DIVERGED, Status.ABSORBED, Status.STAGNATED)
        usable = torch.isfinite(z).flatten(1).all(1).cpu() & torch.tensor([s not in lost for s in status])
        index = usable.nonzero().flatten()
        products = 0
        if len(index):
            part = system if len(index) == len(status) else system.select(index.to(z.device))
            measured = _Measured(part, z[index.to(z.device)], index, params, progress)
            ds = ds.assign(measured.variables(z.shape[0])).assign_coords(measured.coordinates)
            products = measured.products
        ds = ds.assign(products=((), products), seconds=((), time.perf_counter() - begun))
        progress("done", 1.0)
        return describe(ds).assign_attrs(eps=system.eps, time=str(system.time), at=params.at)

    def match(self, a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Return two results on the same samples, with the blocks that both looked at.

        The grids of the contour plot are left out: each has a frame of its own.

        Args:
            a: A result of this probe.
            b: Another one.
        """
        a, b = (ds.drop_vars(["sigma_min", "real", "imag"], errors="ignore") for ds in (a, b))
        if "block" not in a.dims or "block" not in b.dims:
            return align(a, b)
        first, second = align(a, b, exclude=("block",))
        addresses = [list(zip(ds["block_sample"].values, ds["block_token"].values, strict=True)) for ds in (a, b)]
        shared = [address for address in addresses[0] if address in addresses[1]]
        found = []
        for ds, own in zip((first, second), addresses, strict=True):
            part = ds.isel(block=[own.index(address) for address in shared])
            left = {"block": len(own) - len(shared)} if len(own) > len(shared) else {}
            found.append(
                part.assign_coords(block=np.arange(len(shared))).assign_attrs(
                    unmatched={**ds.attrs["unmatched"], **left}
                )
            )
        return found[0], found[1]

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return what the numbers mean for convergence, and what they do not."""
        from dyneq.probes.nonnormality_summary import summarize

        return summarize(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the pseudospectrum of the first block and the transient growth; ``ax`` is a pair of axes."""
        from dyneq.probes.nonnormality_plot import plot_nonnormality

        return plot_nonnormality(ds, ax)

    def text(self, ds: xr.Dataset) -> str | None:
        """Return a table of the samples and one of the blocks."""
        from dyneq.probes.nonnormality_text import tables

        return tables(ds)


def _check_token(system: System, token: int | None) -> None:
    if token is None:
        return
    tokens = system.initial_state().shape[1] if system.structure.causal else 0
    if token >= tokens:
        has = f"tokens 0..{tokens - 1}" if tokens else "no token blocks"
        raise UsageError(
            f"the blocks of token {token} were asked for, but {system.name} has {has}; name one it has, or leave "
            "--token out"
        )


def _state(
    system: System, params: NonnormalityParams, progress: Progress
) -> tuple[torch.Tensor, list[Status], torch.Tensor]:
    progress(f"relaxing to depth {params.depth}", 0.0)
    recorder = Recorder(system.eps, params.depth) if params.at == "root" else None
    relaxation = relax(system, params.depth, recorder=recorder)
    if params.at == "relaxed":
        return relaxation.z, relaxation.status, relaxation.residuals.force
    progress("finding the root", 0.2)
    generator = torch.Generator().manual_seed(params.seed)
    roots = find_root(system, relaxation=relaxation, starts=STARTS, generator=generator)
    return roots.z, roots.status, roots.residual


class _Measured:
    """Everything measured at one state of the samples that have a usable one."""

    def __init__(
        self, system: System, z: torch.Tensor, index: torch.Tensor, params: NonnormalityParams, progress: Progress
    ) -> None:
        self.system, self.params, self.index = system, params, index.numpy()
        self.linearization = Linearization(system, z)
        self.progress = progress
        self.over_samples: dict[str, Any] = {}
        self.over_tokens: dict[str, Any] = {}
        self.over_branches: dict[str, Any] = {}
        self.others: dict[str, Any] = {}
        self.coordinates: dict[str, Any] = {}
        self.products = 0
        displacement = None
        if params.at == "root":
            displacement = root_displacement(system, z, generator=self._generator())
        progress("eigenvalues", 0.3)
        stable = self._stability(displacement)
        progress("sizes and shares", 0.5)
        blocks = explicit_blocks(self.linearization, params.largest_block, displacement)
        if blocks is not None:
            # the blocks at the displaced state are formed by a linearisation of their own
            self.products += 0 if displacement is None else blocks.matrix.shape[-1]
        self._numerical_abscissa(displacement)
        self._tokens(blocks)
        self._shares(blocks)
        progress("transient growth", 0.6)
        self._growth(blocks, stable)
        if blocks is not None:
            progress("pseudospectra", 0.8)
            self._pseudospectra(blocks)
        self._branches(z)
        self.products += self.linearization.whole.products
        if system.structure.causal:
            self.products += self.linearization.token_diagonal().products

    def _generator(self) -> torch.Generator:
        """Return the source of randomness of one quantity: each has its own, so that none depends on the others."""
        return torch.Generator().manual_seed(self.params.seed)

    def _put(self, name: str, found: Estimate | None) -> None:
        if found is not None:
            self.over_samples[name], self.over_samples[f"{name}_error"] = found.value, found.error

    def _stability(self, displacement: torch.Tensor | None) -> Stability:
        flow = self.system.time is not Time.MAP
        targets: list[Target] = [LargestModulus(self.system.eps), *([Rightmost()] if flow else [])]
        spectrum: LeadingSpectrum = leading_spectrum(
            self.linearization, targets, 1, generator=self._generator(), displacement=displacement
        )
        # products at the displaced state are counted by the spectrum alone
        own = self.linearization.whole.products
        if self.system.structure.causal:
            own += self.linearization.token_diagonal().products
        self.products += spectrum.matvecs - own
        found = stability(spectrum, targets, self.system.eps)
        self.over_samples |= found.variables()
        return found

    def _numerical_abscissa(self, displacement: torch.Tensor | None) -> None:
        symmetric = self.linearization.symmetric()
        omega = extremal_symmetric(symmetric, "largest", generator=self._generator(), tol=1e-6)
        rounding = 2 * torch.finfo(symmetric.dtype).eps * omega.scale
        before = self.linearization.whole.products
        moved, taken = symmetric_drift(self.linearization, omega.vectors[:, 0], displacement)
        self.products += taken - (self.linearization.whole.products - before)
        error = np.where(omega.converged[:, 0], omega.residual[:, 0] + rounding + 2 * moved, np.nan)
        self._put("numerical_abscissa", Estimate(omega.values[:, 0], error))

    def _tokens(self, blocks: Blocks | None) -> None:
        if not self.system.structure.causal:
            return
        if blocks is None:
            omega, error = token_numerical_abscissa(self.linearization, self._generator())
            self.over_tokens |= {"token_numerical_abscissa": omega, "token_numerical_abscissa_error": error}
        else:
            self.over_tokens |= {
                "token_numerical_abscissa": blocks.numerical_abscissa,
                # an eigenvalue of a symmetric matrix moves by at most the change of the matrix
                "token_numerical_abscissa_error": blocks.uncertainty,
                "token_departure": blocks.departure.departure,
                "token_departure_error": blocks.departure.error,
                "token_relative_departure": blocks.departure.relative,
                "token_norm": blocks.departure.norm,
                "token_antisymmetric_share": blocks.departure.antisymmetric_share,
            }
        asymmetry = token_asymmetry(self.linearization, self.params.vectors, self._generator())
        self.over_tokens |= {"token_asymmetry": asymmetry.value, "token_asymmetry_error": asymmetry.error}

    def _shares(self, blocks: Blocks | None) -> None:
        found = whole_sample(self.linearization, blocks, self.params.vectors, self._generator())
        for name in ("norm", "departure", "relative_departure", "antisymmetric_share", "asymmetry"):
            self._put(name, getattr(found, name))

    def _growth(self, blocks: Blocks | None, stable: Stability) -> None:
        steps, eps = self.params.growth_steps, self.system.eps
        contracts = None
        if blocks is not None and blocks.per_token:
            grown, contracts = block_growth(blocks, eps, steps)
            self.over_tokens |= grown
        found, curve, taken = sample_growth(
            self.linearization, blocks, stable, contracts, eps, steps, self._generator()
        )
        self.products += taken
        self.over_samples |= found
        self.others["growth_curve"] = (("sample", "step"), curve)
        self.coordinates["step"] = np.arange(steps + 1)

    def _pseudospectra(self, blocks: Blocks) -> None:
        growth = self.over_tokens.get("token_growth") if blocks.per_token else self.over_samples["growth"]
        chosen = chosen_blocks(blocks, self.params.rank, growth, self.params.blocks, self.params.token)
        variables, coordinates = analyse_blocks(
            blocks,
            chosen,
            flow=self.system.time is not Time.MAP,
            eps=self.system.eps,
            levels=self.params.level,
            grid=self.params.grid,
            horizon=self.params.growth_steps,
        )
        address = chosen // blocks.tokens, chosen % blocks.tokens
        self.others |= variables
        self.others["block_sample"] = ("block", self.index[address[0]].astype(np.int64))
        token = address[1] if blocks.per_token else np.full(len(chosen), -1)
        self.others["block_token"] = ("block", token.astype(np.int64))
        self.coordinates |= coordinates

    def _branches(self, z: torch.Tensor) -> None:
        if not self.system.branches(z):
            return
        self.products += self.params.vectors  # one backward pass through the branches each
        squares = branch_jacobian_squares(self.system, z, self._generator(), self.params.vectors)
        found = [
            jackknife(lambda x: np.sqrt(np.maximum(x, 0.0)), s.detach().double().cpu().numpy().T)
            for s in squares.values()
        ]
        self.over_branches = {
            "branch_norm": np.stack([f.value for f in found], 1),
            "branch_norm_error": np.stack([f.error for f in found], 1),
        }
        self.coordinates["branch"] = np.array(list(squares), dtype=object)

    def variables(self, samples: int) -> dict[str, Any]:
        """Return every variable, NaN (or a word) for the samples that were left out."""

        def filled(values: Any, tail: tuple[int, ...]) -> np.ndarray[Any, Any]:
            array = np.asarray(values).reshape(len(self.index), *tail)
            words = array.dtype == object
            out = np.full((samples, *tail), "left out" if words else np.nan, dtype=object if words else np.float64)
            out[self.index] = array
            return out

        out: dict[str, Any] = {name: ("sample", filled(v, ())) for name, v in self.over_samples.items()}
        if self.over_tokens:
            tokens = (self.linearization.z.shape[1],)
            out |= {name: (("sample", "token"), filled(v, tokens)) for name, v in self.over_tokens.items()}
        for name, v in self.over_branches.items():
            out[name] = (("sample", "branch"), filled(v, v.shape[1:]))
        for name, (dims, v) in self.others.items():
            out[name] = (dims, filled(v, v.shape[1:]) if "sample" in dims else v)
        return out
