"""Euler relaxation z <- z + eps F(z) to a given depth, with a status for every sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import Residuals, least_size, residuals_of, sample_norm
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder, Trajectory
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: A state this many times larger than it began, or than 1, is called diverged even while it is still finite, unless its
#: force residual is within tolerance.
GROWTH = 1e8
#: Comparing a state with its successor synchronises with the device, so it is done once in this many steps.
CHECK_EVERY = 8


@dataclass(frozen=True)
class Relaxation:
    """A relaxed state.

    Attributes:
        z: State ``[sample, ...]`` after ``depth`` steps.
        depth: Steps asked for in all, counted from the initial state.
        steps: Steps actually taken; fewer than ``depth`` only where the rest would have changed nothing.
        residuals: Residuals of ``z``, each ``[sample]``, as the samples are judged by them: norm(F)/norm(z), with
            norm(z) not taken below a thousandth of norm(z_0), so that z = 0 can be a fixed point.
        status: One :class:`Status` a sample.
        tol: Force residual up to which a sample is called converged.
        eps: Step size of the last stretch.
        stationary: Whether the state returned itself bit for bit, so that further steps of this size change nothing.
        trajectory: What was recorded on the way, None if nothing was asked for.
    """

    z: Tensor
    depth: int
    steps: int
    residuals: Residuals
    status: list[Status]
    tol: float
    eps: float
    stationary: bool = False
    trajectory: Trajectory | None = None

    @property
    def converged(self) -> Tensor:
        """Which samples converged, bool ``[sample]``."""
        return torch.tensor([s.good for s in self.status])


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the force residual called converged: 1e-6 in double precision, what rounding allows (1e-5) in single."""
    return 1e-6 if dtype == torch.float64 else 1e-5


@torch.no_grad()
def relax(
    system: System,
    depth: int,
    *,
    start: Tensor | Relaxation | None = None,
    eps: float | None = None,
    tol: float | None = None,
    recorder: Recorder | None = None,
) -> Relaxation:
    """Take Euler steps z <- z + eps F(z) until ``depth`` of them are done.

    It ends early only where further steps provably change nothing: when a step returns the state bit for bit (NaN for
    NaN), so that all later steps would too.

    Args:
        system: What is relaxed.
        depth: Number of steps, counted from the initial state; with a :class:`Relaxation` as start, its depth counts.
        start: Where to begin; the system's initial state if None.
        eps: Step size; the system's own if None.
        tol: Force residual called converged; :func:`default_tolerance` if None.
        recorder: Collects a trajectory on the way.

    Returns:
        The relaxed state with residuals and a status for every sample.

    Raises:
        UsageError: If ``depth`` is negative or less than the steps already taken.
    """
    system = system if eps is None or eps == system.eps else system.with_eps(eps)
    done = 0
    if isinstance(start, Relaxation):
        done, z = start.depth, start.z
    else:
        z = system.initial_state().detach() if start is None else start
    if depth < done or depth < 0:
        raise UsageError(f"a relaxation of {done} steps cannot be continued to depth {depth}; ask for a larger depth")
    least = least_size(system)
    # with another step size a stationary state may move again
    stationary = isinstance(start, Relaxation) and start.stationary and start.eps == system.eps
    steps = start.steps if isinstance(start, Relaxation) else 0
    for n in range(depth if stationary else done, depth):
        f = system.force(z)
        if recorder is not None:
            recorder.add(n, z, f, least)
        moved = torch.add(z, f, alpha=system.eps)
        steps += 1
        if n % CHECK_EVERY == 0:
            stationary = bool(((moved == z) | (moved.isnan() & z.isnan())).all())
        z = moved
        if stationary:
            break
    f = system.force(z)
    tol = default_tolerance(z.dtype) if tol is None else tol
    found = residuals_of(z, f, system.eps, least)
    status = _judge(system, z, f, found, tol)
    trajectory = None if recorder is None else recorder.finish(z)
    return Relaxation(z, depth, steps, found, status, tol, system.eps, stationary, trajectory)


def relax_through(system: System, depths: list[int], *, tol: float | None = None) -> list[Relaxation]:
    """Return the relaxations to several depths, in the order given, of one and the same trajectory.

    Args:
        system: What is relaxed.
        depths: Numbers of steps.
        tol: Force residual called converged.
    """
    reached: dict[int, Relaxation] = {}
    last: Relaxation | None = None
    for depth in sorted(set(depths)):
        last = reached[depth] = relax(system, depth, start=last, tol=tol)
    return [reached[depth] for depth in depths]


def _judge(system: System, z: Tensor, f: Tensor, found: Residuals, tol: float) -> list[Status]:
    """Return the status of every sample of a relaxed state."""
    size, origin = sample_norm(z), sample_norm(system.initial_state().detach())
    good = found.force <= tol
    # element by element, because the norm of a finite state can overflow
    finite = (torch.isfinite(z) & torch.isfinite(f)).flatten(1).all(1)
    diverged = ~finite | ((size > GROWTH * origin.clamp(min=1.0)) & ~good)
    unchanged = (torch.add(z, f, alpha=system.eps) == z).flatten(1).all(1)
    dead = unchanged & ~good
    parts = system.branches(z)
    if parts:
        # a healthy fixed point in low precision also has eps F below one ulp of z; what tells absorption apart is that
        # the branches themselves no longer reach the state's last bit; branches that are switched off are not hidden
        branch = torch.stack([sample_norm(p) for p in parts.values()]).amax(0)
        hidden = (branch > 0) & (system.eps * branch < torch.finfo(z.dtype).eps * size)
        dead = dead | (unchanged & hidden)
    judged = []
    for d, a, g in zip(diverged.tolist(), dead.tolist(), good.tolist(), strict=True):
        judged.append(Status.DIVERGED if d else Status.ABSORBED if a else Status.CONVERGED if g else Status.MAX_STEPS)
    return judged
