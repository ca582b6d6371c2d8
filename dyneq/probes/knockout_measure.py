"""What the knockout probe measures: relaxations, followed roots, their leading pairs, and where these cross."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.continuation import Family, Loss, follow_root
from dyneq.dynamics.crossing import Crossing, locate_crossing
from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.root_pairs import RootPairs, root_pairs
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder
from dyneq.systems.protocol import System

Array = NDArray[np.float64]
#: Numbers in the Jacobian blocks of the samples that are followed together; more samples are followed in groups.
BLOCK_NUMBERS = 2**27
#: Starts of the roots, in the order they are tried.
STARTS = ("relaxed", "mean", "initial")


@dataclass(frozen=True)
class Settling:
    """How the relaxation ends at one value of alpha, each ``[sample]``.

    Attributes:
        status: One a sample.
        residual: Force residual at the depth.
        floor: Smallest force residual of the second half of the steps; NaN where diverged.
        oscillation: Standard deviation of the force residual over the last quarter of the steps; NaN where diverged.
        relaxation: The relaxation itself.
    """

    status: list[Status]
    residual: Array
    floor: Array
    oscillation: Array
    relaxation: Relaxation


@torch.no_grad()
def settle(system: System, depth: int) -> Settling:
    """Relax a system from its initial state and read its residuals."""
    relaxation = relax(system, depth, recorder=Recorder(system.eps, depth))
    assert relaxation.trajectory is not None
    last = relaxation.residuals.force
    recorded = relaxation.trajectory.force_residual
    # what is not recorded is stationary: every later residual is the last one
    half = torch.cat([recorded[depth // 2 :], last[None]])
    quarter = torch.cat([recorded[3 * depth // 4 :], last[None]])
    lost = torch.tensor([s is Status.DIVERGED for s in relaxation.status], device=last.device)

    def kept(x: Tensor) -> Array:
        return torch.where(lost, torch.nan, x).double().cpu().numpy()

    return Settling(
        relaxation.status,
        last.double().cpu().numpy(),
        kept(half.amin(0)),
        kept(quarter.std(0, correction=0)),
        relaxation,
    )


@dataclass
class Roots:
    """Followed roots.

    Attributes:
        z: ``[alpha, sample, ...]``, NaN without a root.
        residual: Force residuals ``[alpha, sample]``.
        correction: Relative Newton corrections ``[alpha, sample]``.
        anchor: Index of the alpha each sample's branch started at, -1 without a root anywhere, ``[sample]``.
        losses: Where branches ended, by samples of the whole batch.
        steps: Continuation steps.
    """

    z: Tensor
    residual: Array
    correction: Array
    anchor: NDArray[np.int64]
    losses: list[Loss]
    steps: int

    @property
    def found(self) -> NDArray[np.bool_]:
        """Where there is a root, ``[alpha, sample]``."""
        return ~np.isnan(self.residual)


def follow(
    family: Family, alphas: list[float], depth: int, generator: torch.Generator, relaxation: Relaxation | None = None
) -> Roots:
    """Find a root of every sample at the alpha nearest to 1 that has one, and follow it along the others.

    Args:
        family: The systems.
        alphas: Values, increasing.
        depth: Depth of the relaxations the starts come from.
        generator: Randomness of starts and Krylov methods.
        relaxation: That of the whole batch at the alpha nearest to 1, if it is done already.
    """
    z0 = family(alphas[0]).initial_state().detach()
    samples = z0.shape[0]
    found = Roots(
        z=z0.new_full((len(alphas), *z0.shape), torch.nan),
        residual=np.full((len(alphas), samples), np.nan),
        correction=np.full((len(alphas), samples), np.nan),
        anchor=np.full(samples, -1),
        losses=[],
        steps=0,
    )
    for k in by_distance(alphas):
        rows = torch.as_tensor(np.flatnonzero(found.anchor < 0), device=z0.device)
        if not len(rows):
            break
        roots = find_root(
            _of(family, rows)(alphas[k]), starts=STARTS, depth=depth, relaxation=relaxation, generator=generator
        )
        relaxation = None  # it belongs to the first alpha and all samples
        good = roots.found.to(z0.device)
        for group in _groups(rows[good], z0):
            start = roots.z[torch.isin(rows, group)]
            branch = follow_root(_of(family, group), alphas, start, anchor=k, generator=generator)
            at = group.cpu().numpy()
            found.anchor[at[branch.found[k]]] = k
            found.z[:, group] = branch.z
            found.residual[:, at], found.correction[:, at] = branch.residual, branch.correction
            found.losses += [Loss(int(at[x.sample]), x.token, x.alpha, x.beyond, x.fold) for x in branch.losses]
            found.steps += branch.steps
    return found


def by_distance(alphas: list[float]) -> list[int]:
    """Return the indices of the values, the nearest to 1 first."""
    return sorted(range(len(alphas)), key=lambda i: (abs(alphas[i] - 1), i))


def _of(family: Family, rows: Tensor) -> Family:
    """Return the family of some samples."""

    def part(alpha: float) -> System:
        whole = family(alpha)
        return whole if len(rows) == whole.samples else whole.select(rows)

    return part


def _groups(rows: Tensor, z0: Tensor) -> Iterator[Tensor]:
    """Split samples so that the Jacobian blocks of each group fit."""
    shape = z0.shape[1:]
    size = shape.numel() * (shape[-1] if len(shape) > 1 else shape.numel())
    if len(rows):
        yield from rows.split(max(1, BLOCK_NUMBERS // size))


def pairs_along(
    family: Family, alphas: list[float], roots: Roots, generator: torch.Generator
) -> list[tuple[NDArray[np.int64], RootPairs] | None]:
    """Return for every alpha the samples with a root and their leading pairs; None where there is none."""
    along: list[tuple[NDArray[np.int64], RootPairs] | None] = []
    for k, alpha in enumerate(alphas):
        at = np.flatnonzero(roots.found[k])
        rows = torch.as_tensor(at, device=roots.z.device)
        parts = [
            root_pairs(_of(family, group)(alpha), roots.z[k, group], generator=generator)
            for group in _groups(rows, roots.z[0])
        ]
        along.append((at, _joined(parts)) if parts else None)
    return along


def _joined(parts: list[RootPairs]) -> RootPairs:
    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(p, name) for p in parts])

    names = ("mu", "token", "residual", "condition", "error")
    return RootPairs(**{name: all_of(name) for name in names}, flow=parts[0].flow)


def crossings(
    family: Family,
    alphas: list[float],
    roots: Roots,
    margin: Array,
    generator: torch.Generator,
) -> tuple[dict[int, Crossing | None], NDArray[np.int64]]:
    """Locate each sample's crossing nearest to alpha = 1, and count the sign changes on the grid.

    Args:
        family: The systems.
        alphas: Values, increasing.
        roots: The followed roots.
        margin: Margins of the leading pairs ``[alpha, sample]``, NaN without a root.
        generator: Randomness of Krylov methods.

    Returns:
        For every sample with a sign change its crossing, None where the branch was lost inside the interval; and the
        numbers of sign changes ``[sample]``.
    """
    with np.errstate(invalid="ignore"):
        changes = margin[:-1] * margin[1:] < 0
    found: dict[int, Crossing | None] = {}
    for sample in np.flatnonzero(changes.any(0)).tolist():
        inside = np.flatnonzero(changes[:, sample])
        k = int(min(inside, key=lambda i: abs((alphas[i] + alphas[i + 1]) / 2 - 1)))
        known = {alphas[j]: roots.z[j, sample : sample + 1] for j in (k, k + 1)}
        found[sample] = locate_crossing(family, sample, known, generator=generator)
    return found, changes.sum(0)


def heads(system: System) -> tuple[Array, Array]:
    """Return norm(W_O W_V) and the antisymmetric share norm(A)/norm(W_O W_V) of every head, Frobenius norms."""
    products = system.head_products()
    if products is None:
        return np.empty(0), np.empty(0)
    products = products.detach().double()
    gain = torch.linalg.matrix_norm(products)
    share = torch.linalg.matrix_norm((products - products.mT) / 2) / gain
    return gain.cpu().numpy(), share.cpu().numpy()
