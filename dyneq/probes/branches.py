"""The branches probe: how large the branches of a block are beside its state and input, and what its attention does."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from dyneq.dynamics.influence import by_token
from dyneq.dynamics.relax import relax, relax_through
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.probes.base import CERTIFICATE, COST, EXACT, Finding, Params, Probe, Progress, annotate, silent
from dyneq.systems.protocol import System
from dyneq.systems.statistics import STATISTICS, attention_of, attention_statistics

#: ``depth`` coordinate of a result at the root.
ROOT = -1


class BranchesParams(Params):
    """Parameters of the branches probe."""

    depth: tuple[int, ...] = Field((800,), min_length=1, description="relaxation depths, steps")
    at: Literal["relaxed", "root"] = Field("relaxed", description="the relaxed states, or the root they lead to")
    seed: int = Field(0, description="seed of the root's random start")

    @field_validator("depth")
    @classmethod
    def _increasing(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        for depth in depths:
            if depth < 0:
                raise ValueError(f"a relaxation depth is at least 0 steps, not {depth}")
        return tuple(sorted(set(depths)))


@dataclass(frozen=True)
class _State:
    """Where branches are measured: depth (-1: root), state, and how each sample got there."""

    depth: int
    z: Tensor
    status: list[Status]
    force_residual: Tensor
    steps: int


class BranchesProbe(Probe):
    """Norms of the attention and feed-forward branches against state and input, and statistics of the attention."""

    name = "branches"
    version = 1
    Params: ClassVar[type[Params]] = BranchesParams

    def run(self, system: System, params: BranchesParams, progress: Progress = silent) -> xr.Dataset:
        """Measure at every state asked for; dimensions ``depth`` (-1: the root), ``sample``, ``token``, ``head``.

        ``branch`` counts the branches the system declares; without any, and without attention, what there is, the
        sizes of state and input, is given.

        Args:
            system: Any system.
            params: Depths and place.
            progress: Told how far the measurement is.
        """
        begun = time.perf_counter()
        entries = [_measure(system, state) for state in _states(system, params, progress)]
        progress("done", 1.0)
        ds = xr.concat(entries, dim="depth", join="outer")
        ds["seconds"] = ((), time.perf_counter() - begun)
        attention = attention_of(system)
        ds = ds.assign_attrs(
            eps=system.eps,
            machine_epsilon=torch.finfo(system.initial_state().dtype).eps,
            qk_norm=-1 if attention is None else int(attention.qk_norm),
        )
        return _describe(ds)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return how large the branches are, whether the state can feel them, and what the attention does."""
        from dyneq.probes.branches_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str | None:
        """Return the table of branches and heads."""
        from dyneq.probes.branches_summary import table

        return table(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the branches against the tokens, and the spread of every head; ``ax`` is a pair of axes."""
        from dyneq.probes.branches_plot import plot_branches

        return plot_branches(ds, ax)


def _states(system: System, params: BranchesParams, progress: Progress) -> list[_State]:
    """Return every state asked for."""
    deepest = max(params.depth)
    if params.at == "relaxed":
        progress(f"relaxing to depth {deepest}", 0.0)
        return [
            _State(r.depth, r.z, r.status, r.residuals.force, r.steps)
            for r in relax_through(system, list(params.depth))
        ]
    progress(f"finding the root from depth {deepest}", 0.0)
    relaxation = relax(system, deepest, recorder=Recorder(system.eps, deepest))
    generator = torch.Generator().manual_seed(params.seed)
    roots = find_root(system, relaxation=relaxation, starts=STARTS, generator=generator)
    return [_State(ROOT, roots.z, roots.status, roots.residual, relaxation.steps)]


@torch.no_grad()
def _measure(system: System, state: _State) -> xr.Dataset:
    """Return the dataset of one state, with a ``depth`` dimension of length one."""
    samples = len(state.status)
    # absorbed samples stay: they are what this probe recognises
    lost = (Status.DIVERGED, Status.STAGNATED)
    usable = torch.isfinite(state.z).flatten(1).all(1).cpu() & torch.tensor([s not in lost for s in state.status])
    index = usable.nonzero().flatten()
    residual = state.force_residual.cpu().double().numpy()
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "status": (("sample",), np.array([s.value for s in state.status], dtype=object)),
        "force_residual": (("sample",), np.where(np.isfinite(residual), residual, np.nan)),
    }
    coords: dict[str, Any] = {
        "depth": [state.depth],
        "state": ("depth", np.array(["root" if state.depth == ROOT else "relaxed"], dtype=object)),
        "sample": np.arange(samples),
    }
    if len(index):
        part = system if len(index) == samples else system.select(index.to(state.z.device))
        z = state.z[index.to(state.z.device)]
        # where there are no tokens, only whole samples are measured
        tokens = system.structure.token_axis is not None
        for name, (dims, values) in (_sizes(part, z, tokens) | _attention(part, z)).items():
            columns[name] = (("sample", *dims), _fill(values, index, samples))
        branches = list(part.branches(z))
        if branches:
            coords["branch"] = np.array(branches, dtype=object)
        for dim in ("token", "head"):
            found = [values.shape[dims.index(dim)] for dims, values in columns.values() if dim in dims]
            if found:
                coords[dim] = np.arange(found[0])
    ds = xr.Dataset({name: (("depth", *dims), values[None]) for name, (dims, values) in columns.items()}, coords)
    # one for the residual, and the branches are evaluated for their sizes and in what attention does
    return ds.assign(forces=("depth", [state.steps + 3]))


def _fill(values: Tensor, index: Tensor, samples: int) -> NDArray[np.float64]:
    """Return values of the samples ``index`` as float64 among all samples, NaN for the others."""
    filled = np.full((samples, *values.shape[1:]), np.nan)
    filled[index.numpy()] = values.double().cpu().numpy()
    return filled


def _sizes(system: System, z: Tensor, tokens: bool) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Return the sizes of state, input and branches, of whole samples and of tokens; ratios where nothing divides."""
    x, branches = system.initial_state().detach(), system.branches(z)
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    measures: list[tuple[str, tuple[str, ...], Callable[[Tensor], Tensor]]] = [("", (), sample_norm)]
    if tokens:
        measures.append(("token_", ("token",), lambda v: torch.linalg.vector_norm(by_token(system, v), dim=2)))
    for prefix, dims, norm in measures:
        state, given = norm(z).double(), norm(x).double()
        found |= {f"{prefix}state_norm": (dims, state), f"{prefix}input_norm": (dims, given)}
        if not branches:
            continue
        size = torch.stack([norm(b) for b in branches.values()], dim=-1).double()
        total = norm(torch.stack(list(branches.values())).sum(0)).double()
        over = (*dims, "branch")
        found |= {
            f"{prefix}branch_norm": (over, size),
            f"{prefix}branch_to_state": (over, _ratio(size, state.unsqueeze(-1))),
            f"{prefix}branch_to_input": (over, _ratio(size, given.unsqueeze(-1))),
            f"{prefix}sum_to_state": (dims, _ratio(total, state)),
            f"{prefix}cancellation": (dims, 1 - _ratio(total, size.sum(-1))),
        }
    return found


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.nan)


def _attention(system: System, z: Tensor) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    statistics = attention_statistics(system, z)
    if statistics is None:
        return {}
    dims = ("head", "token")
    spread = statistics["logit_max"] - statistics["logit_min"]
    return {**{name: (dims, statistics[name]) for name in STATISTICS}, "logit_range": (dims, spread)}


_OF = {"": "of the sample", "token_": "of each token"}
_ATTRIBUTES = {
    "status": ("how the state was reached", ""),
    "force_residual": ("norm(F)/norm(z) of the state", "1/time"),
    "entropy": ("entropy of the attention weights, -sum p log p", "nats"),
    "relative_entropy": ("entropy over that of uniform attention, log(t + 1); not defined at token 0", "1"),
    "own_weight": ("attention weight of the token itself", "1"),
    "query_rms_before": ("root mean square of the query over its head, before normalisation", "state"),
    "query_rms": ("root mean square of the query over its head, as it is used", "1"),
    "key_rms_before": ("root mean square of the key over its head, before normalisation", "state"),
    "key_rms": ("root mean square of the key over its head, as it is used", "1"),
    "logit_min": ("smallest logit q k^T/sqrt(d) over the tokens seen", "nats"),
    "logit_max": ("largest logit q k^T/sqrt(d) over the tokens seen", "nats"),
    "logit_range": ("largest minus smallest logit over the tokens seen", "nats"),
    "forces": ("force evaluations up to this depth, without those of Newton's method", "evaluations"),
    "seconds": ("wall time", "s"),
}
for _prefix, _of in _OF.items():
    _ATTRIBUTES |= {
        f"{_prefix}state_norm": (f"norm(z) {_of}", "state"),
        f"{_prefix}input_norm": (f"norm(z_0) {_of}; z_0 is the input x of a block", "state"),
        f"{_prefix}branch_norm": (f"norm of the branch {_of}", "state/time"),
        f"{_prefix}branch_to_state": (f"norm of the branch over norm(z) {_of}", "1/time"),
        f"{_prefix}branch_to_input": (f"norm of the branch over norm(z_0) {_of}", "1/time"),
        f"{_prefix}sum_to_state": (f"norm of the sum of the branches over norm(z) {_of}", "1/time"),
        f"{_prefix}cancellation": (f"1 - norm of the sum of the branches over the sum of their norms {_of}", "1"),
    }


def _describe(ds: xr.Dataset) -> xr.Dataset:
    for name in ds.data_vars:
        long_name, units = _ATTRIBUTES[str(name)]
        ds[name].attrs.update(long_name=long_name, units=units)
    roles = {"force_residual": CERTIFICATE, "forces": COST, "seconds": COST, "status": EXACT}
    return annotate(ds, bars={}, roles=roles)
