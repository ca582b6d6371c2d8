"""Euler relaxations of one problem with several step sizes, compared at equal time n eps.

The number of steps says nothing about convergence when eps changes: twice the step covers twice the time. So every run
ends at the same time and is judged by the force residual, which does not know eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.relax import CHECK_EVERY, default_tolerance, relax
from dyneq.dynamics.residuals import Residuals, least_size, relative_size
from dyneq.dynamics.status import Status
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: Largest number of rows of a run's history.
ROWS = 120
#: Of the steps of a run, this many at most are taken; with smaller steps the horizon must be shorter.
MOST_STEPS = 200_000


@dataclass(frozen=True)
class EpsRun:
    """One relaxation from the initial state.

    Attributes:
        eps: Step size.
        steps: Steps the state stands for; where it became stationary before, the rest would have changed nothing.
        z: State ``[sample, ...]`` at the end; not finite for samples that overflowed.
        late: State after three quarters of the steps.
        residuals: Residuals of ``z``, each ``[sample]``.
        status: One a sample.
        first_within: Steps after which the force residual was first within tolerance, -1 if never, ``[sample]``.
        quarters: Largest force residual in the third and in the fourth quarter of the steps, ``[sample, 2]``.
        history: Force residual at the steps ``history_steps``, ``[row, sample]``; at most :data:`ROWS` rows.
        history_steps: Number of steps taken before each row.
        mean: Time mean of the states of the second half, ``[sample, ...]``.
        forces: Force evaluations used.
    """

    eps: float
    steps: int
    z: Tensor
    late: Tensor
    residuals: Residuals
    status: list[Status]
    first_within: Tensor
    quarters: Tensor
    history: Tensor
    history_steps: list[int]
    mean: Tensor
    forces: int

    @property
    def time(self) -> float:
        """The time reached, steps times eps: within half a step of the horizon (one step where it is shorter)."""
        return self.steps * self.eps

    @property
    def tail_rate(self) -> Tensor:
        """Rate at which the largest residual fell from the third to the fourth quarter, 1/time, ``[sample]``.

        NaN where it is not finite, or the run is too short to have quarters.
        """
        third, fourth = self.quarters.unbind(1)
        rate = 4 * (third / fourth).log() / self.time
        return torch.where(torch.isfinite(rate), rate, torch.nan)


def steps_at(horizon: float, eps: float) -> int:
    """Return the number of steps of size ``eps`` that come nearest to a time, at least 1."""
    return max(1, round(horizon / eps))


@torch.no_grad()
def sweep_eps(system: System, eps: Sequence[float], horizon: float, *, tol: float | None = None) -> list[EpsRun]:
    """Relax from the initial state with each step size to the same time.

    Args:
        system: A flow.
        eps: Step sizes.
        horizon: Time to reach, in units of n eps.
        tol: Force residual called converged; :func:`dyneq.dynamics.relax.default_tolerance` if None.

    Raises:
        UsageError: If the system is a map, or a step is so small that it would take more than :data:`MOST_STEPS` (and
            does not vanish in rounding).
    """
    parts = [system.with_eps(e) for e in eps]
    for part in parts:  # before anything is spent
        if horizon / part.eps > MOST_STEPS and not _stationary(part, part.initial_state().detach()):
            raise UsageError(
                f"a horizon of {horizon:g} takes {horizon / part.eps:.2g} steps of eps={part.eps:g}, but at most "
                f"{MOST_STEPS} are taken; raise eps, or ask for a horizon of at most {MOST_STEPS * part.eps:.3g}"
            )
    return [run_eps(part, horizon, tol=tol) for part in parts]


@torch.no_grad()
def run_eps(system: System, horizon: float, *, tol: float | None = None) -> EpsRun:
    """Relax from the initial state with the system's own step size to a time.

    Args:
        system: A flow.
        horizon: Time to reach, in units of n eps.
        tol: Force residual called converged; :func:`dyneq.dynamics.relax.default_tolerance` if None.
    """
    z = system.initial_state().detach()
    tol = default_tolerance(z.dtype) if tol is None else tol
    steps, least = steps_at(horizon, system.eps), least_size(system)
    samples = z.shape[0]
    first = torch.full((samples,), -1, dtype=torch.int64, device=z.device)
    quarters = z.new_zeros(samples, 2)
    total, counted = torch.zeros_like(z), 0
    stride = -(-steps // (ROWS - 1))
    rows, at = [], []
    taken, late = steps, z
    for n in range(steps):
        if n == 3 * steps // 4:
            late = z
        f = system.force(z)
        residual = relative_size(f, z, least)
        if n % stride == 0:
            rows.append(residual)
            at.append(n)
        first = torch.where((first < 0) & (residual <= tol), n, first)
        if 2 * n >= steps:
            column = int(4 * n >= 3 * steps)
            quarters[:, column] = torch.maximum(quarters[:, column], residual)
            total, counted = total + z, counted + 1
        moved = torch.add(z, f, alpha=system.eps)
        if n % CHECK_EVERY == 0 and bool(((moved == z) | (moved.isnan() & z.isnan())).all()):
            taken, late = n, z
            quarters = residual[:, None].expand(-1, 2).clone()
            total, counted = z, 1
            break
        z = moved
    judged = relax(system, 0, start=z, tol=tol)
    first = torch.where((first < 0) & (judged.residuals.force <= tol), taken, first)
    quarters[:, 1] = torch.maximum(quarters[:, 1], judged.residuals.force)
    return EpsRun(
        eps=system.eps,
        steps=steps,
        z=z,
        late=late,
        residuals=judged.residuals,
        status=judged.status,
        first_within=first,
        quarters=quarters,
        history=torch.stack([*rows, judged.residuals.force]),
        history_steps=[*at, steps],
        mean=total / max(counted, 1),
        forces=taken + 1 + int(taken < steps),
    )


def _stationary(system: System, z: Tensor) -> bool:
    """Return whether a step returns the state bit for bit."""
    return bool((torch.add(z, system.force(z), alpha=system.eps) == z).all())
