"""Roots F(z) = 0, also where the relaxation cycles or a root is unstable.

Causal blocks are solved token by token (forward substitution): given the roots of tokens < t, token t is a problem of
the dimension of the channels alone. Everything else is solved per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import SMALLEST, DenseDirection, Direction, KrylovDirection, newton, relative_size
from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.status import Status
from dyneq.dynamics.substitution import solve_by_substitution
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError, nearest
from dyneq.systems.protocol import System

Start = Literal["relaxed", "mean", "initial", "random"]
#: Starting points, in the order they are tried.
STARTS: tuple[Start, ...] = ("relaxed", "mean", "initial", "random")
#: Roots closer than this, relative to their norm, are the same root.
SAME = 1e-5
#: Largest state whose Jacobian is formed explicitly when there is no token structure.
DENSE_LIMIT = 768
#: Frobenius norm of a Jacobian block from which a root is called degenerate (tiny variance under a layer norm).
STEEP = 1e3


@dataclass(frozen=True)
class OtherRoot:
    """A further root of a sample, found from another start."""

    sample: int
    start: str
    residual: float
    distance: float
    z: Tensor


@dataclass
class Roots:
    """The roots found, one a sample.

    Attributes:
        z: ``[sample, ...]``; for samples without a root, where the search ended.
        residual: norm(F)/norm(z) by the whole force, ``[sample]``; relative to a thousandth of norm(z_0) where the root
            is smaller than that, so that a root z = 0 can be recognised.
        status: ``CONVERGED`` or ``STAGNATED``, one a sample.
        start: The start each root was found from, one a sample.
        failed_token: First token without a root, -1 where all have one or there are no tokens, ``[sample]``.
        token_start: For causal blocks, the guess each token's root came from (see
            :data:`dyneq.dynamics.substitution.GUESSES`), int8 ``[sample, token]``; None otherwise.
        steepness: Frobenius norm of the Jacobian (of each token's block), ``[sample]`` or ``[sample, token]``.
        others: Further roots that other starts led to.
        tol: Force residual accepted as a root.
        relaxation: The relaxation the starts came from.
    """

    z: Tensor
    residual: Tensor
    status: list[Status]
    start: list[str]
    failed_token: Tensor
    token_start: Tensor | None
    steepness: Tensor
    tol: float
    relaxation: Relaxation | None
    others: list[OtherRoot] = field(default_factory=list)

    @property
    def found(self) -> Tensor:
        """Which samples have a root, bool ``[sample]``."""
        return torch.tensor([s.good for s in self.status])

    @property
    def degenerate(self) -> Tensor:
        """Which samples' roots sit where a normalisation is nearly singular, bool ``[sample]``."""
        return (self.steepness.reshape(len(self.status), -1) > STEEP).any(1)


def default_root_tolerance(dtype: torch.dtype) -> float:
    """Return the force residual accepted as a root: 1e-11 in double, 1e-5 in single precision."""
    return 1e-11 if dtype == torch.float64 else 1e-5


@torch.no_grad()
def find_root(
    system: System,
    *,
    starts: Sequence[str] = ("relaxed", "mean", "initial"),
    depth: int = 400,
    relaxation: Relaxation | None = None,
    explore: bool = False,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Roots:
    """Find a root of every sample.

    Args:
        system: The system.
        starts: Starting points to try, out of ``relaxed`` (the state at ``depth``), ``mean`` (time mean of the second
            half of the relaxation, which lies inside a cycle), ``initial`` (z_0) and ``random`` (the relaxed state
            displaced by a tenth of its norm). Later ones are tried for the samples that still lack a root.
        depth: Depth of the relaxation that gives the starts.
        relaxation: A relaxation already done, used instead; ``mean`` needs one with a recorded trajectory.
        explore: Try every start for every sample and report the roots that differ.
        tol: Force residual accepted as a root; :func:`default_root_tolerance` if None.
        generator: Randomness of the starts and of Krylov solves; seed 0 if None.

    Raises:
        UsageError: If a start is unknown.
    """
    for name in starts:
        if name not in STARTS:
            raise UsageError(f"there is no start called {name!r} for a root{nearest(name, STARTS)}")
    generator = generator or torch.Generator().manual_seed(0)
    if relaxation is None or ("mean" in starts and relaxation.trajectory is None):
        relaxation = relax(system, depth, recorder=Recorder(system.eps, depth))
    z0 = system.initial_state().detach()
    tol = default_root_tolerance(z0.dtype) if tol is None else tol
    samples = z0.shape[0]
    best: Roots | None = None
    others: list[OtherRoot] = []
    for name in starts:
        todo = torch.arange(samples) if best is None or explore else (~best.found).nonzero().flatten()
        if not len(todo):
            break
        start = _starting_point(name, system, relaxation, generator)
        part = system if len(todo) == samples else system.select(todo.to(z0.device))
        found = _solve(part, start[todo], name, tol, relaxation, generator)
        if best is None:
            best = found
            continue
        others += _merge(best, found, todo)
    assert best is not None
    best.others = others
    return best


def _starting_point(name: str, system: System, relaxation: Relaxation, generator: torch.Generator) -> Tensor:
    z0 = system.initial_state().detach()
    mean = relaxation.trajectory.mean if relaxation.trajectory is not None else None
    relaxed = torch.where(torch.isfinite(relaxation.z), relaxation.z, z0)  # a diverged sample starts over
    if name == "initial":
        return z0
    if name == "mean" and mean is not None:
        return torch.where(torch.isfinite(mean), mean, z0)
    if name == "random":
        noise = torch.randn(z0.shape, generator=generator, dtype=torch.float64).to(z0)
        shape = (-1,) + (1,) * (z0.ndim - 1)
        return relaxed + 0.1 * noise * (sample_norm(relaxed) / sample_norm(noise)).view(shape)
    return relaxed


def _solve(
    system: System, start: Tensor, name: str, tol: float, relaxation: Relaxation, generator: torch.Generator
) -> Roots:
    samples = start.shape[0]
    failed = torch.full((samples,), -1, dtype=torch.int64)
    guesses: Tensor | None = None
    if system.structure.causal:
        solved = solve_by_substitution(system, start, tol=tol, generator=generator)
        z, failed, guesses, steepness = solved.z, solved.failed_token, solved.guess, solved.steepness
    else:
        z, steepness = _newton_whole(system, start, tol, generator)
    residual = relative_size(system.force(z), z, _least(system))
    status = [Status.CONVERGED if r <= tol else Status.STAGNATED for r in residual.tolist()]
    return Roots(z, residual, status, [name] * samples, failed, guesses, steepness, tol, relaxation)


def _least(system: System) -> Tensor:
    return SMALLEST * sample_norm(system.initial_state().detach())


def _newton_whole(system: System, start: Tensor, tol: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return roots and steepness of a system without token structure, by Newton on whole samples."""
    shape = start.shape

    def f(y: Tensor) -> Tensor:
        return system.force(y.view(shape)).flatten(1)

    direction: Direction
    if shape[1:].numel() <= DENSE_LIMIT:
        direction = DenseDirection(lambda y: Linearization(system, y.view(shape)).dense())
    else:
        direction = KrylovDirection(lambda y: Linearization(system, y.view(shape)).whole, generator)
    result = newton(f, direction, start.flatten(1), least=_least(system), tol=tol)
    return result.z.view(shape), result.steepness


def _merge(best: Roots, found: Roots, todo: Tensor) -> list[OtherRoot]:
    """Put newly found roots where there was none, and return those that differ from the one there is."""
    others = []
    for row, sample in enumerate(todo.tolist()):
        if not found.status[row].good:
            continue
        if not best.status[sample].good:
            best.z[sample], best.residual[sample] = found.z[row], found.residual[row]
            best.status[sample], best.start[sample] = found.status[row], found.start[row]
            best.failed_token[sample] = found.failed_token[row]
            best.steepness[sample] = found.steepness[row]
            if best.token_start is not None and found.token_start is not None:
                best.token_start[sample] = found.token_start[row]
            continue
        norm = torch.linalg.vector_norm
        distance = float(norm(found.z[row] - best.z[sample]) / norm(best.z[sample]).clamp(min=1e-300))
        if distance > SAME:
            others.append(
                OtherRoot(sample, found.start[row], float(found.residual[row]), distance, found.z[row].clone())
            )
    return others
