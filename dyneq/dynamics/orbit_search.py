"""The search for one periodic orbit: finer and finer steps, the error of its period, and its minimal period."""

import math

import torch
from torch import Tensor

from dyneq.dynamics.orbit_status import OrbitStatus
from dyneq.dynamics.shooting import Closed, Closing, Segments, segments_of, spread
from dyneq.dynamics.stepping import Scheme
from dyneq.systems.protocol import System

#: An orbit smaller than this, relative to the trajectory it was looked for along, is the root inside it.
COLLAPSED = 1e-4
#: A period outside the guess times or over this has been lost.
ASTRAY = 3.0
#: Levels on which Newton's method may fail before the search is given up.
FAILURES = 3
#: Levels on which the trajectory may overflow, which coarse steps make it do where the force is stiff.
OVERFLOWS = 5
#: A period is divided by up to this number at a time to see whether a part of it closes already.
DIVISORS = 12
#: Distance, in amplitudes, below which two points may be the same point of an orbit.
SAME = 1e-6


class Search:
    """The search for an orbit near one state and one guess of its period.

    Args:
        system: A system of one sample.
        z: State to start from ``[1, ...]``.
        period: Guess of the period: time units, or steps for ``euler``.
        scheme: ``rk4`` or ``euler``.
        levels: Numbers of steps per period to solve with, each a multiple of the first.
        tol: Relative error of the period at which to stop refining; None to use all levels.
        max_iterations: Newton iterations for each level.

    Attributes:
        status: How it ended.
        closed: The closed orbit on the finest level that has one.
        steps: Steps of that level.
        error: Estimated error of its period.
        iterations: Newton iterations in all.
    """

    def __init__(
        self,
        system: System,
        z: Tensor,
        period: float,
        scheme: Scheme,
        levels: list[int],
        tol: float | None,
        max_iterations: int,
    ) -> None:
        self.start, self.guess, self.scheme = z.detach(), float(period), scheme
        self._system, self._levels, self._tol, self._most = system, levels, tol, max_iterations
        self.segments = Segments(system, self.start, scheme)
        dim = self.start.numel()
        # the points of a map's orbit are all unknowns where they fit
        self._count = segments_of(levels[0], dim, levels[0]) if scheme == "euler" else segments_of(levels[0], dim)
        self._closing = Closing(self.segments, max_iterations)
        self.status, self.steps, self.iterations, self.error = OrbitStatus.STAGNATED, levels[0], 0, math.inf
        self.closed = Closed(self.start.reshape(1, -1), self.guess, math.inf, False, 0)
        self._refine()

    @property
    def z(self) -> Tensor:
        """The orbit's first point ``[1, ...]``."""
        return self.closed.points[:1].reshape(self.start.shape)

    def trace(self) -> Tensor:
        """Return the orbit at every step, ``[step, dim]``."""
        return self.segments.trace(self.closed.points, self.closed.period, self.steps)

    def _refine(self) -> None:
        found: list[Closed] = []
        failures, overflows = 0, 0
        for steps in self._levels:
            if failures == FAILURES or overflows == OVERFLOWS:
                return
            points, period = (found[-1].points, found[-1].period) if found else (self._along(steps), self.guess)
            reach = spread(points)
            if not math.isfinite(reach):
                self.status, overflows = OrbitStatus.DIVERGED, overflows + 1
                continue
            closed = self._closing.solve(points[:: len(points) // self._count], period, steps)
            self.iterations += closed.iterations
            if self._collapsed(closed, steps, reach):
                self.status, self.closed, self.steps = OrbitStatus.FIXED_POINT, closed, steps
                return
            if not closed.converged or not 1 / ASTRAY < closed.period / self.guess < ASTRAY:
                # discretisations with a failure between them are no sequence
                self.status, found, failures = OrbitStatus.STAGNATED, [], failures + 1
                continue
            found.append(closed)
            self.closed, self.steps, self.error = closed, steps, period_error(found, self.scheme)
            self.status = OrbitStatus.CONVERGED
            if self._tol is not None:
                if self.error <= self._tol * closed.period:
                    return
                self.status = OrbitStatus.COARSE

    def _along(self, steps: int) -> Tensor:
        """Return the trajectory from the start over the guess of the period, ``[step, dim]``."""
        return self.segments.trace(self.start.reshape(1, -1), self.guess, steps)

    def _collapsed(self, closed: Closed, steps: int, reach: float) -> bool:
        path = self.segments.trace(closed.points, closed.period, steps)
        resolved = math.sqrt(torch.finfo(path.dtype).eps) * float(path[0].norm())
        return spread(path) <= max(COLLAPSED * reach, resolved)

    def shorter(self) -> "Search | None":
        """Return the search for the same orbit with a part of the period, if a part of it closes already."""
        if not self.status.good:
            return None
        path = self.trace()
        # the part that closes does so up to the error of the discretisation
        near = spread(path) * min(max(SAME, 10 * self.error / self.closed.period), 1e-2)
        for part in range(DIVISORS, 1, -1):
            if float((self._after(path, part) - path[0]).norm()) > near:
                continue
            levels = [self.steps // part] if self.scheme == "euler" else self._levels
            period = self.closed.period / part
            found = Search(self._system, self.z, period, self.scheme, levels, self._tol, self._most)
            if found.status.good and self._same(path, found, part):
                found.start, found.iterations = self.start, found.iterations + self.iterations
                found.segments.field.evaluations += self.segments.field.evaluations
                return found
        return None

    def _same(self, path: Tensor, found: "Search", part: int) -> bool:
        """Whether what was found lies on this orbit, up to a step along it, and has the part of its period."""
        step = (path.roll(-1, 0) - path).norm(dim=1).max() if self.scheme == "rk4" else SAME * spread(path)
        apart = (path - found.closed.points[0]).norm(dim=1).min()
        off = abs(part * found.closed.period - self.closed.period)
        error = self.error + part * found.error
        return bool(apart <= step) and (not math.isfinite(error) or off <= 10 * error + SAME * self.closed.period)

    def _after(self, path: Tensor, part: int) -> Tensor:
        """Return the state after a part of the period; infinite where a map has none."""
        whole, left = divmod(self.steps, part)
        if not left:
            return path[whole]
        if self.scheme == "euler":
            return torch.full_like(path[0], math.inf)
        return self.segments.step(path[whole : whole + 1], left / part * self.closed.period / self.steps)[0]


def period_error(found: list[Closed], scheme: Scheme) -> float:
    """Estimate the error of the last period from those on coarser steps, each half as many.

    The last two differences show an order of convergence, which counts as the fourth at most.

    Args:
        found: Closed orbits on successive levels.
        scheme: ``euler``: the period is a whole number, and exact.
    """
    if scheme == "euler":
        return 0.0
    if len(found) < 2:
        return math.inf
    last = abs(found[-1].period - found[-2].period)
    rounding = found[-1].update + 4 * torch.finfo(found[-1].points.dtype).eps * found[-1].period
    if len(found) < 3:
        return last + rounding
    before = abs(found[-2].period - found[-3].period)
    ratio = before / last if last else math.inf
    # a fourth order shrinks differences by 16; where the last one is smaller still, it may have passed through zero
    return max(last / (min(max(ratio, 2.0), 16.0) - 1), before / 240) + rounding
