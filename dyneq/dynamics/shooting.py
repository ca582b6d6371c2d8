"""Multiple shooting: the points of a closed orbit, and its period, as one system of equations solved by Newton.

A period is cut into segments that are integrated side by side. Their tangent maps stay of moderate size where the whole
period contracts by exp(-85) or expands, so that Newton's method sees no number that rounding has spoilt.
Source: Ascher, Mattheij and Russell, Numerical Solution of Boundary Value Problems (1995), section 4.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.stepping import Scheme
from dyneq.systems.protocol import System

#: Largest dimension of a state whose tangent maps are formed as matrices.
DENSE_LIMIT = 256
#: Most unknowns of the Newton system.
UNKNOWNS = 2048
#: Most segments a period of a flow is cut into.
SEGMENTS = 64
#: Shortest Newton step tried.
SHORTEST = 2.0**-10
#: An old Jacobian is kept while it shrinks the defect at least this much.
CHORD = 0.1
#: Largest relative change of the period in one Newton step.
TRUST = 0.25


class Field:
    """The force of one sample on many flat states ``[many, dim]`` at once, and its derivatives.

    Args:
        system: A system of one sample.
        shape: Shape of its state ``[1, ...]``.

    Attributes:
        evaluations: Force evaluations of one state so far; a tangent vector counts as one.
    """

    def __init__(self, system: System, like: Tensor) -> None:
        self._system, self._shape = system, like.shape
        self.evaluations = 0
        self._batched = self._works(lambda y: torch.func.vmap(self._one)(y), like)
        self._forward: bool | None = None

    def _one(self, y: Tensor) -> Tensor:
        return self._system.force(y.view(self._shape)).reshape(-1)

    def _own(self, y: Tensor, context: Tensor) -> Tensor:
        return self._system.force(y.view(self._shape), context.view(self._shape)).reshape(-1)

    def _works(self, f: Callable[[Tensor], Tensor], like: Tensor) -> bool:
        """Whether a batched form exists and agrees with the force itself; not every force can be batched by torch."""
        y = like.reshape(1, -1)
        try:
            found = f(y.repeat(2, 1))
        except (RuntimeError, ValueError, TypeError):
            return False
        return torch.allclose(found, self._one(y[0]).expand(2, -1), rtol=1e-4, atol=1e-6, equal_nan=True)

    def force(self, y: Tensor) -> Tensor:
        """Return F of every state."""
        self.evaluations += len(y)
        if self._batched and len(y) > 1:
            return torch.func.vmap(self._one)(y)
        return torch.stack([self._one(row) for row in y])

    def tangent(self, y: Tensor, vectors: Tensor, *, tokens_only: bool = False) -> Tensor:
        """Return J(y) V for ``vectors`` V ``[many, dim, k]``, or D(y) V with the token-diagonal blocks D of J."""
        self.evaluations += len(y) * vectors.shape[-1]
        if self._batched and self._forward is not False:
            try:
                found = _push(self._own if tokens_only else lambda at, _: self._one(at), y, vectors)
            except (RuntimeError, NotImplementedError):
                # such as fused attention, which has products of its own but no forward mode
                self._forward = False
            else:
                self._forward = True
                return found
        rows = []
        for row, columns in zip(y, vectors, strict=True):
            linearize = self._system.linearize_tokens if tokens_only else self._system.linearize
            product = linearize(row.view(self._shape))[0]
            images = [product(c.reshape(self._shape)).reshape(-1) for c in columns.unbind(-1)]
            rows.append(torch.stack(images, dim=-1))
        return torch.stack(rows)


def _push(f: Callable[[Tensor, Tensor], Tensor], y: Tensor, vectors: Tensor) -> Tensor:
    """Differentiate ``f(y, y)`` in its first argument along every vector."""

    def column(at: Tensor, v: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(lambda x: f(x, at), (at,), (v,))[1]
        return out

    return torch.func.vmap(torch.func.vmap(column, (None, 1), 1))(y, vectors)


class Segments:
    """One period of a discretised flow, or of a map, in equal segments advanced side by side.

    Args:
        system: A system of one sample.
        like: A state ``[1, ...]``.
        scheme: ``rk4`` for the flow, ``euler`` for the map.
    """

    def __init__(self, system: System, like: Tensor, scheme: Scheme) -> None:
        self.field = Field(system, like)
        self.scheme, self._eps = scheme, system.eps

    def size(self, period: float, steps: int) -> float:
        """Return the size of a step, time units; the map's own for a map, whose period is in steps."""
        return self._eps if self.scheme == "euler" else period / steps

    def ends(self, points: Tensor, period: float, steps: int) -> Tensor:
        """Return where every segment's start ``[segment, dim]`` is led."""
        h, y = self.size(period, steps), points
        for _ in range(steps // len(points)):
            y = self.step(y, h)
        return y

    def trace(self, points: Tensor, period: float, steps: int) -> Tensor:
        """Return the states at all steps of the period ``[steps, dim]``, in order of time."""
        h, y, states = self.size(period, steps), points, []
        for _ in range(steps // len(points)):
            states.append(y)
            y = self.step(y, h)
        return torch.stack(states, dim=1).flatten(0, 1)

    def tangents(
        self, points: Tensor, period: float, steps: int, *, tokens: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the ends of the segments and their tangent maps ``[segment, dim, dim]``.

        With the number of tokens given, the maps are the products of token-diagonal blocks, stacked:
        ``[segment, token * channel, channel]``.
        """
        count, dim = points.shape
        h, y = self.size(period, steps), points
        width = dim // (tokens or 1)
        v = torch.eye(width, dtype=y.dtype, device=y.device).repeat(tokens or 1, 1).expand(count, dim, width)
        force = self.field.force

        def tangent(at: Tensor, vectors: Tensor) -> Tensor:
            return self.field.tangent(at, vectors, tokens_only=tokens is not None)

        for _ in range(steps // count):
            if self.scheme == "euler":
                y, v = y + h * force(y), v + h * tangent(y, v)
                continue
            total, total_v, at, moved = torch.zeros_like(y), torch.zeros_like(v), y, v
            for weight, ahead in ((1, h / 2), (2, h / 2), (2, h), (1, 0.0)):
                k, kv = force(at), tangent(at, moved)
                total, total_v = total + weight * k, total_v + weight * kv
                at, moved = y + ahead * k, v + ahead * kv
            y, v = y + h / 6 * total, v + h / 6 * total_v
        return y, v

    def step(self, y: Tensor, h: float) -> Tensor:
        """Return the states one step of size ``h`` later."""
        f = self.field.force
        if self.scheme == "euler":
            return y + h * f(y)
        k1 = f(y)
        k2 = f(y + h / 2 * k1)
        k3 = f(y + h / 2 * k2)
        k4 = f(y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def segments_of(steps: int, dim: int, most: int = SEGMENTS) -> int:
    """Return the largest number of segments that divides the steps and fits the Newton system."""
    return max(m for m in range(1, max(1, min(steps, most, UNKNOWNS // dim)) + 1) if steps % m == 0)


def spread(points: Tensor) -> float:
    """Return the root mean square distance of points ``[point, dim]`` from their mean."""
    return float((points - points.mean(0)).square().sum(1).mean().sqrt())


@dataclass(frozen=True)
class Closed:
    """Where Newton's iteration ended.

    Attributes:
        points: Starts of the segments ``[segment, dim]``.
        period: Time units (steps for a map).
        update: Last change of the period, time units: what rounding leaves undecided.
        converged: Whether points and period stopped changing.
        iterations: Newton steps taken.
    """

    points: Tensor
    period: float
    update: float
    converged: bool
    iterations: int


class Closing:
    """Newton's method for closed orbits; its Jacobian is kept from one call to the next while it serves.

    For a flow the period is an unknown, and the phase is fixed by sum over segments of <F(z_i), dz_i> = 0.

    Args:
        segments: The discretised system.
        max_iterations: Newton steps of one call.
    """

    def __init__(self, segments: Segments, max_iterations: int) -> None:
        self._segments, self._most = segments, max_iterations
        self._factors: tuple[Tensor, Tensor] | None = None

    def solve(self, points: Tensor, period: float, steps: int) -> Closed:
        """Solve from a guess; ``steps`` is a multiple of the number of points."""
        small = max(1e-11, 200 * torch.finfo(points.dtype).eps)
        defect = self._defect(points, period, steps)
        merit, update, iteration = float(defect.norm()), math.inf, 0
        for iteration in range(1, self._most + 1):
            if not math.isfinite(merit):
                break
            fresh = self._factors is None
            if fresh:
                self._factorise(points, period, steps)
            change, shift = self._direction(defect)
            size = float(change.norm()) / math.sqrt(len(points))
            if not math.isfinite(size + shift):
                break
            longest = min(1.0, TRUST * period / abs(shift)) if shift else 1.0
            last = size <= small * max(spread(points), small * float(points.norm())) and abs(shift) <= small * period
            length = longest
            while True:
                trial = points + length * change, period + length * shift
                trial_defect = self._defect(*trial, steps)
                trial_merit = float(trial_defect.norm())
                # the last correction is of the size of rounding errors, and so may be its effect on the defect
                accepted = last or trial_merit <= (1 - length / 4) * merit
                if accepted or length < SHORTEST or not fresh:
                    break
                length /= 2
            if not fresh and (not accepted or trial_merit > CHORD * merit):
                self._factors = None
            if fresh and (length < 1 or trial_merit > CHORD * merit):
                self._factors = None
            if not accepted:
                if fresh:
                    break
                continue
            (points, period), defect, merit, update = trial, trial_defect, trial_merit, abs(length * shift)
            if last:
                return Closed(points, period, update, True, iteration)
        return Closed(points, period, update, False, iteration)

    def _defect(self, points: Tensor, period: float, steps: int) -> Tensor:
        return self._segments.ends(points, period, steps) - points.roll(-1, 0)

    def _factorise(self, points: Tensor, period: float, steps: int) -> None:
        count, dim = points.shape
        flow = self._segments.scheme == "rk4"
        ends, maps = self._segments.tangents(points, period, steps)
        system = points.new_zeros(count * dim + flow, count * dim + flow)
        blocks = system[: count * dim, : count * dim].unflatten(0, (count, dim)).unflatten(2, (count, dim))
        each = torch.arange(count)
        eye = torch.eye(dim, dtype=points.dtype, device=points.device)
        blocks[each, :, each] += maps
        blocks[each, :, (each + 1) % count] -= eye
        if flow:
            # the derivative of a segment's end in the period, up to the error of the discretisation
            system[:-1, -1] = self._segments.field.force(ends).flatten() / count
            phase = self._segments.field.force(points).flatten()
            system[-1, :-1] = phase / phase.norm()
        self._factors = torch.linalg.lu_factor_ex(system)[:2]

    def _direction(self, defect: Tensor) -> tuple[Tensor, float]:
        assert self._factors is not None
        flow = self._segments.scheme == "rk4"
        right = torch.cat([defect.flatten(), defect.new_zeros(int(flow))])
        solution = -torch.linalg.lu_solve(*self._factors, right[:, None])[:, 0]
        return solution[: defect.numel()].view_as(defect), float(solution[-1]) if flow else 0.0
