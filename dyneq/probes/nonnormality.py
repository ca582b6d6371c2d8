"""The nonnormality probe: what the eigenvalues do not say about the first steps and about small changes of J."""

import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator

from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, align, silent
from dyneq.probes.nonnormality_attributes import describe
from dyneq.probes.nonnormality_measured import Measured
from dyneq.systems.protocol import System


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
            measured = Measured(part, z[index.to(z.device)], index, params, progress)
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
