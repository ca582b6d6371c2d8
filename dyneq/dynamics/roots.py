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
from dyneq.dynamics.newton import (
    DenseDirection,
    Direction,
    KrylovDirection,
    NewtonResult,
    default_correction_tolerance,
    newton,
)
from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.residuals import least_size, relative_size, sample_norm
from dyneq.dynamics.status import Status
from dyneq.dynamics.structure import check_causality
from dyneq.dynamics.substitution import solve_by_substitution
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError, nearest
from dyneq.systems.protocol import System

Start = Literal["relaxed", "mean", "initial", "random"]
#: Starting points, in the order they are tried.
STARTS: tuple[Start, ...] = ("relaxed", "mean", "initial", "random")
#: Roots closer than this, relative to their norm, are the same root; so are roots within four of their corrections,
#: since the correction at a double root is half the distance to it.
SAME = 1e-5
#: Largest state whose Jacobian is formed explicitly when there is no token structure.
DENSE_LIMIT = 768
#: Frobenius norm of a Jacobian (block) above which a root is called degenerate: a tiny variance under a layer norm
#: makes it that large, but so does any steep force.
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
        correction: norm(J^{-1} F)/norm(z), the relative Newton correction at the root with the Jacobian there,
            ``[sample]``: an estimate of the distance to the true root. By substitution it is the largest of the
            tokens', each relative to its token and with the earlier ones held, so that errors passed on from token to
            token are not in it; NaN for samples in which a token has no root. ``CONVERGED`` needs it to be within
            :func:`dyneq.dynamics.newton.default_correction_tolerance`: a force may be small without a root near.
        status: ``CONVERGED`` or ``STAGNATED``, one a sample.
        start: The start each root was found from, one a sample.
        failed_token: First token without a root, -1 where all have one or there are no tokens, ``[sample]``.
        token_start: For causal blocks, the guess each token's root came from (see
            :data:`dyneq.dynamics.substitution.GUESSES`), int8 ``[sample, token]``; None otherwise.
        steepness: Frobenius norm of the Jacobian (of each token's block) at the root, ``[sample]`` or
            ``[sample, token]``; NaN where it is never formed (Newton-Krylov) or a token has no root.
        others: Further roots that other starts led to, each once.
        tol: Force residual accepted as a root.
        relaxation: The relaxation the starts came from.
    """

    z: Tensor
    residual: Tensor
    correction: Tensor
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
        """Whether a Jacobian norm exceeds :data:`STEEP`, ``[sample]``: 1, 0, or NaN where it was not evaluated.

        At such a root beware of a nearly singular normalisation; a force that is steep for another reason counts too.
        """
        steepness = self.steepness.reshape(len(self.status), -1)
        unknown = torch.where(steepness.isnan().any(1), torch.nan, 0.0)
        return torch.where((steepness > STEEP).any(1), 1.0, unknown)


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
            displaced by a tenth of its norm). Later ones are tried for the samples that still lack a root. ``mean`` is
            skipped where the relaxation has none: one that became stationary before half its depth (if no other start
            is asked for, its state, which then is the mean, is tried as ``relaxed``).
        depth: Depth of the relaxation that gives the starts.
        relaxation: A relaxation already done, used instead; without a recorded trajectory ``mean`` is skipped.
        explore: Try every start for every sample and report the roots that differ.
        tol: Force residual accepted as a root; :func:`default_root_tolerance` if None.
        generator: Randomness of the starts and of Krylov solves; seed 0 if None.

    Raises:
        UsageError: If there is no start, one is unknown, or ``mean`` is the only one and the relaxation given has no
            trajectory.
        CausalityError: If the system declares itself causal but is not.
    """
    if not starts:
        raise UsageError(f"no start for a root was given; name at least one of {', '.join(STARTS)}")
    for name in starts:
        if name not in STARTS:
            raise UsageError(f"there is no start called {name!r} for a root{nearest(name, STARTS)}")
    generator = generator or torch.Generator().manual_seed(0)
    if relaxation is None:
        relaxation = relax(system, depth, recorder=Recorder(system.eps, depth))
    z0 = system.initial_state().detach()
    tol = default_root_tolerance(z0.dtype) if tol is None else tol
    samples, least = z0.shape[0], least_size(system)
    if system.structure.causal:
        grown = torch.tensor([s is Status.DIVERGED for s in relaxation.status], device=z0.device)
        check_causality(system, torch.where(grown.view(-1, *[1] * (z0.ndim - 1)), z0, relaxation.z))
    best: Roots | None = None
    others: list[OtherRoot] = []
    for name in _available(starts, relaxation):
        todo = torch.arange(samples) if best is None or explore else (~best.found).nonzero().flatten()
        if not len(todo):
            break
        start = _starting_point(name, system, relaxation, generator)
        part = system if len(todo) == samples else system.select(todo.to(z0.device))
        found = _solve(part, start[todo], name, tol, relaxation, generator)
        if best is None:
            best = found
            continue
        _merge(best, found, todo, least, others)
    assert best is not None
    best.others = others
    return best


def _available(starts: Sequence[str], relaxation: Relaxation) -> list[str]:
    """Return the starts that the relaxation can give."""
    if relaxation.trajectory is not None and relaxation.trajectory.mean is not None:
        return list(starts)
    left = [name for name in starts if name != "mean"]
    if not left and relaxation.trajectory is None:
        raise UsageError(
            "the start 'mean' needs a relaxation with a recorded trajectory, but the one given has none; pass a "
            "recorder to relax, or name another start"
        )
    return left or ["relaxed"]


def _starting_point(name: str, system: System, relaxation: Relaxation, generator: torch.Generator) -> Tensor:
    z0 = system.initial_state().detach()
    mean = relaxation.trajectory.mean if relaxation.trajectory is not None else None
    relaxed = torch.where(torch.isfinite(relaxation.z), relaxation.z, z0)  # a diverged sample starts over
    if name == "initial":
        return z0
    if name == "mean":
        assert mean is not None
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
        correction, good = solved.correction.amax(1), (failed < 0).to(z.device)
    else:
        result = _newton_whole(system, start, tol, generator)
        z, correction, steepness, good = result.z.view_as(start), result.correction, result.steepness, result.converged
    residual = relative_size(system.force(z), z, least_size(system))
    good = good & (residual <= tol) & (correction <= default_correction_tolerance(z.dtype))
    return Roots(
        z=z,
        residual=residual,
        correction=correction,
        status=[Status.CONVERGED if g else Status.STAGNATED for g in good.tolist()],
        start=[name] * samples,
        failed_token=failed,
        token_start=guesses,
        steepness=steepness,
        tol=tol,
        relaxation=relaxation,
    )


def _newton_whole(system: System, start: Tensor, tol: float, generator: torch.Generator) -> NewtonResult:
    """Solve a system without token structure by Newton on whole samples, flattened."""
    shape = start.shape

    def f(y: Tensor) -> Tensor:
        return system.force(y.view(shape)).flatten(1)

    direction: Direction
    if shape[1:].numel() <= DENSE_LIMIT:
        direction = DenseDirection(lambda y: Linearization(system, y.view(shape)).dense())
    else:
        direction = KrylovDirection(lambda y: Linearization(system, y.view(shape)).whole, generator)
    return newton(f, direction, start.flatten(1), least=least_size(system), tol=tol)


def _merge(best: Roots, found: Roots, todo: Tensor, least: Tensor, others: list[OtherRoot]) -> None:
    """Put newly found roots where there was none, and add to ``others`` those that differ from all there are."""
    for row, sample in enumerate(todo.tolist()):
        if not found.status[row].good:
            continue
        if not best.status[sample].good:
            best.z[sample], best.residual[sample] = found.z[row], found.residual[row]
            best.correction[sample] = found.correction[row]
            best.status[sample], best.start[sample] = found.status[row], found.start[row]
            best.failed_token[sample] = found.failed_token[row]
            best.steepness[sample] = found.steepness[row]
            if best.token_start is not None and found.token_start is not None:
                best.token_start[sample] = found.token_start[row]
            continue
        known = torch.stack([best.z[sample], *(o.z for o in others if o.sample == sample)])
        distances = relative_size(found.z[row] - known, known, least[sample])
        same = max(SAME, 4 * float(best.correction[sample] + found.correction[row]))
        if bool((distances > same).all()):
            z, residual = found.z[row].clone(), float(found.residual[row])
            others.append(OtherRoot(sample, found.start[row], residual, float(distances[0]), z))
