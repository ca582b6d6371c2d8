"""Periodic orbits: of flows by multiple shooting, of maps and of Euler's map by Newton on all points of the orbit."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dyneq.dynamics.orbit_search import Search
from dyneq.dynamics.orbit_status import OrbitStatus
from dyneq.dynamics.shooting import DENSE_LIMIT, spread
from dyneq.dynamics.stepping import Scheme, Stepper
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.protocol import System, Time

__all__ = ["Orbit", "OrbitStatus", "follow_orbit", "map_orbit", "shoot"]

#: Steps per period of the coarsest discretisation tried.
FEWEST = 64


@dataclass(frozen=True)
class Orbit:
    """A periodic orbit of one sample, or where the search for one ended.

    Attributes:
        z: A point on it ``[1, ...]``.
        period: Minimal period: time units for a flow (``scheme`` is ``rk4``), steps for a map (``euler``).
        period_error: Estimated error of the period, time units; infinite where one discretisation alone closed; 0 for
            maps.
        closure: norm(phi_T(z) - z)/amplitude, over one period in one piece; unstable orbits magnify rounding.
        amplitude: Root mean square distance of the orbit from its time mean, state units.
        half_range: Half of the peak-to-peak range of every component, of the shape of ``z``.
        slowness: Largest norm(F) along the orbit over the smallest: large near a root or a slow passage.
        distance: Distance of the start from the nearest point of the orbit, in amplitudes.
        steps: Steps per period.
        iterations: Newton iterations in all.
        evaluations: Force evaluations of one state, tangent vectors counted as one each.
        scheme: ``rk4`` for orbits of the flow, ``euler`` for orbits of the relaxation map.
        status: How the search ended; other numbers mean little where it is not ``good``.
        points: Points on the orbit at equal times, the first of them z, ``[point, ...]``; z alone for large states.
    """

    z: Tensor
    period: float
    period_error: float
    closure: float
    amplitude: float
    half_range: Tensor
    slowness: float
    distance: float
    steps: int
    iterations: int
    evaluations: int
    scheme: Scheme
    status: OrbitStatus
    points: Tensor = field(repr=False)


@torch.no_grad()
def shoot(
    system: System,
    z: Tensor,
    period: float,
    *,
    steps: int | None = None,
    tol: float = 1e-9,
    max_iterations: int = 20,
    max_steps: int = 16384,
) -> Orbit:
    """Find the periodic orbit of a flow near a state, by multiple shooting with Runge-Kutta steps.

    The number of steps is doubled at least twice, and the error of the period estimated from the order of convergence
    that shows.

    Args:
        system: A flow of one sample (``system.select`` gives one).
        z: State near the orbit ``[1, ...]``.
        period: Guess of the period, time units.
        steps: Runge-Kutta steps per period, rounded up to a multiple of 8; chosen by ``tol`` if None.
        tol: Relative error of the period aimed at.
        max_iterations: Newton iterations for each number of steps.
        max_steps: Most steps per period that ``tol`` may lead to.

    Raises:
        UsageError: If the system is a map, or the guess of the period or a number of steps is not positive.
        DyneqError: If the state is not that of one sample, or not finite.
    """
    _check_state(system, z)
    if system.time is Time.MAP:
        raise UsageError(f"{system.name} is a map: its orbits have whole periods; look for them with map_orbit")
    if not 0 < period < math.inf:
        raise UsageError(f"the guess of a period must be positive and finite, but {period} was given")
    if max_steps < FEWEST or (steps is not None and steps < 1):
        raise UsageError(f"a period needs at least 1 step, and max_steps at least {FEWEST}, but {steps=}, {max_steps=}")
    if z[0].numel() > DENSE_LIMIT:
        return _no_orbit(z, period, "rk4", OrbitStatus.SIZE)
    if steps is None:
        levels = [FEWEST << k for k in range(int(math.log2(max_steps / FEWEST)) + 1)]
        return _result(Search(system, z, period, "rk4", levels, tol, max_iterations))
    finest = 8 * math.ceil(steps / 8)
    return _result(Search(system, z, period, "rk4", [finest // 4, finest // 2, finest], None, max_iterations))


@torch.no_grad()
def map_orbit(system: System, z: Tensor, period: int, *, max_iterations: int = 50) -> Orbit:
    """Find the orbit of integer period near a state, of a map or of Euler's map z + eps F(z) of a flow.

    All points of the orbit are unknowns. A fixed point of the map is reported as such, not as an orbit of period 1.

    Args:
        system: A map, or a flow that is relaxed by Euler steps, of one sample.
        z: State near the orbit ``[1, ...]``.
        period: Steps after which the state returns.
        max_iterations: Newton iterations.

    Raises:
        UsageError: If the period is not a whole number of at least one step.
        DyneqError: If the state is not that of one sample, or not finite.
    """
    _check_state(system, z)
    if not isinstance(period, int) or period < 1:
        raise UsageError(f"the period of an orbit of a map is a whole number of steps from 1 on, but is {period}")
    if z[0].numel() > DENSE_LIMIT:
        return _no_orbit(z, period, "euler", OrbitStatus.SIZE)
    return _result(Search(system, z, period, "euler", [period], None, max_iterations))


@torch.no_grad()
def follow_orbit(
    system: System, z: Tensor, period: float, steps: int, *, scheme: Scheme = "rk4", tol: float = 1e-6
) -> Orbit:
    """Measure how well a state of any size closes after a given period, without changing either.

    For whole blocks relaxed onto a cycle whose period one token has given. The error of the period is how far along the
    orbit the end lies from the start; ranges are those of the steps.

    Args:
        system: A system of one sample.
        z: State on the orbit ``[1, ...]``.
        period: Time units, or steps for ``euler``.
        steps: Steps per period; the period itself for ``euler``.
        scheme: ``rk4`` for the flow, ``euler`` for the relaxation map.
        tol: Closure, in amplitudes, up to which the state counts as one on a periodic orbit.

    Raises:
        UsageError: If the period or the number of steps is not positive, or they differ for ``euler``.
        DyneqError: If the state is not that of one sample, or not finite.
    """
    _check_state(system, z)
    if not 0 < period < math.inf or steps < 1 or (scheme == "euler" and steps != period):
        raise UsageError(
            f"an orbit is followed for a positive period in at least one step, a map's in as many steps as its period, "
            f"but {period=}, {steps=}, {scheme=}"
        )
    stepper = Stepper(system, scheme, period / steps if scheme == "rk4" else None)
    y = start = z.detach()
    low, high, total, square = y.clone(), y.clone(), torch.zeros_like(y), y.new_zeros(())
    speeds = y.new_tensor([math.inf, 0.0])
    for _ in range(steps):
        speed = system.force(y).norm()
        speeds = torch.stack([torch.minimum(speeds[0], speed), torch.maximum(speeds[1], speed)])
        low, high = torch.minimum(low, y), torch.maximum(high, y)
        total, square = total + (y - start), square + (y - start).square().sum()
        y = stepper.advance(y)
    amplitude = float((square / steps - (total / steps).square().sum()).clamp(min=0).sqrt())
    gap, force = y - start, system.force(start)
    closure = float(gap.norm()) / amplitude if amplitude else math.inf
    slowest, fastest = speeds.tolist()
    known = math.isfinite(closure) and amplitude > math.sqrt(torch.finfo(y.dtype).eps) * float(start.norm())
    status = OrbitStatus.STAGNATED
    if not bool(torch.isfinite(y).all()):
        status = OrbitStatus.DIVERGED
    elif not known:
        status = OrbitStatus.FIXED_POINT
    elif closure <= tol:
        status = OrbitStatus.CONVERGED
    along = float((gap * force).sum().abs() / force.square().sum())
    return Orbit(
        z=start,
        period=float(period),
        period_error=along if scheme == "rk4" else 0.0,
        closure=closure,
        amplitude=amplitude,
        half_range=(high - low) / 2,
        slowness=fastest / slowest if slowest else math.inf,
        distance=0.0,
        steps=steps,
        iterations=0,
        evaluations=steps * (5 if scheme == "rk4" else 2) + 1,
        scheme=scheme,
        status=status,
        points=start,
    )


def _check_state(system: System, z: Tensor) -> None:
    expected = system.initial_state().shape
    if expected[0] != 1 or z.shape != expected:
        raise DyneqError(
            f"an orbit is that of one sample, a state of shape {[1, *expected[1:]]}, but the system has {expected[0]} "
            f"samples and the state the shape {list(z.shape)}; take one with system.select"
        )
    if not bool(torch.isfinite(z).all()):
        raise DyneqError("an orbit was looked for from a state that is not finite; start from an earlier state")


def _result(search: Search) -> Orbit:
    """Measure what was found, with the shortest period that closes."""
    while (shorter := search.shorter()) is not None:
        search = shorter
    if not search.status.good:
        return _no_orbit(search.z, search.closed.period, search.scheme, search.status, search)
    path, period = search.trace(), search.closed.period
    force = torch.cat([search.segments.field.force(part) for part in path.split(1024)])
    speed = force.norm(dim=1)
    amplitude, first = spread(path), path[:1]
    end = search.segments.ends(first, period, search.steps)
    h = search.segments.size(period, search.steps)
    half_range = _half_range(path, h * force) if search.scheme == "rk4" else (path.amax(0) - path.amin(0)) / 2
    return Orbit(
        z=search.z,
        period=period,
        period_error=search.error,
        closure=float((end - first).norm()) / amplitude,
        amplitude=amplitude,
        half_range=half_range.view_as(search.z),
        slowness=float(speed.max() / speed.min()),
        distance=float((path - search.start.reshape(1, -1)).norm(dim=1).min()) / amplitude,
        steps=search.steps,
        iterations=search.iterations,
        evaluations=search.segments.field.evaluations,
        scheme=search.scheme,
        status=search.status,
        points=search.closed.points.view(-1, *search.z.shape[1:]),
    )


def _half_range(path: Tensor, slope: Tensor) -> Tensor:
    """Return half of the peak-to-peak range ``[dim]`` of the cubics through states and slopes (per step)."""
    y0, m0 = path, slope
    y1, m1 = path.roll(-1, 0), slope.roll(-1, 0)
    # the cubic y0 + s (m0 + s (b + s a)), s from 0 to 1, is level where 3 a s^2 + 2 b s + m0 = 0
    a, b = 2 * (y0 - y1) + m0 + m1, 3 * (y1 - y0) - 2 * m0 - m1
    root = (b * b - 3 * a * m0).clamp(min=0).sqrt()
    low, high = path.amin(0), path.amax(0)
    for sign in (1, -1):
        # the form without cancellation for a near 0
        s = torch.nan_to_num(-m0 / (b + sign * root), nan=0.0).clamp(0, 1)
        value = y0 + s * (m0 + s * (b + s * a))
        low, high = torch.minimum(low, value.amin(0)), torch.maximum(high, value.amax(0))
    return (high - low) / 2


def _no_orbit(z: Tensor, period: float, scheme: Scheme, status: OrbitStatus, search: Search | None = None) -> Orbit:
    nan = math.nan
    return Orbit(
        z=z,
        period=float(period),
        period_error=nan,
        closure=nan,
        amplitude=nan,
        half_range=torch.full_like(z, nan),
        slowness=nan,
        distance=nan,
        steps=0 if search is None else search.steps,
        iterations=0 if search is None else search.iterations,
        evaluations=0 if search is None else search.segments.field.evaluations,
        scheme=scheme,
        status=status,
        points=z,
    )
