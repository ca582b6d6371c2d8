"""Periodic orbits: of flows by multiple shooting, of maps and of Euler's map by Newton on all points of the orbit."""

import enum
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dyneq.dynamics.stepping import Scheme
from dyneq.systems.protocol import System


class OrbitStatus(enum.Enum):
    """How a search for a periodic orbit ended; ``value`` is the short name, ``sentence`` says what to do."""

    sentence: str

    def __new__(cls, short: str, sentence: str) -> Self:
        """Attach the sentence to the short name."""
        member = object.__new__(cls)
        member._value_ = short
        member.sentence = sentence
        return member

    CONVERGED = "converged", "a periodic orbit, closed within tolerance, its period within the error bar given"
    COARSE = (
        "coarse",
        "a periodic orbit of the discretised flow, but its error bar exceeds the tolerance at the most steps allowed: "
        "use the error bar, or allow more steps",
    )
    FIXED_POINT = "fixed_point", "the search ended in a root of the force: start nearer to the cycle, if there is one"
    STAGNATED = "stagnated", "undetermined: no closed orbit near the start: relax longer, or guess the period better"
    DIVERGED = "diverged", "undetermined: the state overflowed within one period: take a smaller step or another start"
    SIZE = "size", "undetermined: the state is too large for shooting: take one token as a system of its own"

    @property
    def good(self) -> bool:
        """Whether the result may be used as a periodic orbit."""
        return self in {OrbitStatus.CONVERGED, OrbitStatus.COARSE}


@dataclass(frozen=True)
class Orbit:
    """A periodic orbit of one sample, or where the search for one ended.

    Attributes:
        z: A point on it ``[1, ...]``.
        period: Minimal period: time units for a flow (``scheme`` is ``rk4``), steps for a map (``euler``).
        period_error: Estimated error of the period by step doubling, time units; 0 for maps.
        closure: norm(phi_T(z) - z)/amplitude, over one period in one piece.
        amplitude: Root mean square distance of the orbit from its time mean, state units.
        half_range: Half of the peak-to-peak range of every component, of the shape of ``z``.
        slowness: Largest norm(F) along the orbit over the smallest; infinite where it touches a root.
        steps: Steps per period.
        iterations: Newton iterations in all.
        evaluations: Force evaluations of one state, tangent vectors counted as one each.
        scheme: ``rk4`` for orbits of the flow, ``euler`` for orbits of the relaxation map.
        status: How the search ended; other numbers mean little where it is not ``good``.
    """

    z: Tensor
    period: float
    period_error: float
    closure: float
    amplitude: float
    half_range: Tensor
    slowness: float
    steps: int
    iterations: int
    evaluations: int
    scheme: Scheme
    status: OrbitStatus


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
    """Find the periodic orbit of a flow near a state.

    Args:
        system: A flow of one sample (``system.select`` gives one).
        z: State near the orbit ``[1, ...]``.
        period: Guess of the period, time units.
        steps: Runge-Kutta steps per period; doubled until the error estimate is within ``tol`` if None.
        tol: Relative error of the period aimed at.
        max_iterations: Newton iterations for each number of steps.
        max_steps: Most steps per period.
    """
    raise NotImplementedError


@torch.no_grad()
def map_orbit(
    system: System, z: Tensor, period: int, *, tol: float | None = None, max_iterations: int = 50
) -> Orbit:
    """Find the orbit of integer period near a state, of a map or of Euler's map z + eps F(z) of a flow."""
    raise NotImplementedError


@torch.no_grad()
def follow_orbit(system: System, z: Tensor, period: float, steps: int, scheme: Scheme = "rk4") -> Orbit:
    """Measure how well a state of any size closes after a given period, without changing it."""
    raise NotImplementedError
