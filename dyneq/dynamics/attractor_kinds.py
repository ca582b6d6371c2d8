"""What a relaxation that is followed for long can end on, and what is known when that is judged."""

import enum
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.chaos import ZeroOne
from dyneq.dynamics.decay import Decay
from dyneq.dynamics.orbits import Orbit
from dyneq.dynamics.period import Oscillation
from dyneq.systems.protocol import Time

Array = NDArray[np.float64]


class AttractorKind(enum.StrEnum):
    """What a sample ends on."""

    FIXED_POINT = "fixed-point"
    """The force residual is within tolerance and does not grow."""
    SLOW = "slow"
    """Still approaching a fixed point, at a known rate or power."""
    CYCLE = "cycle"
    """A periodic orbit, or an invariant closed curve of a map on which the rotation is irrational."""
    TORUS = "torus"
    """Two or more incommensurate frequencies."""
    CHAOS = "chaos"
    DIVERGED = "diverged"
    UNDETERMINED = "undetermined"


@dataclass
class Attractor:
    """What one sample ends on, with what speaks for it and against it.

    Attributes:
        kind: The verdict; never more than the evidence allows.
        period_steps: Period as a real number, steps of the relaxation; NaN unless it oscillates about one frequency.
        period_error: Its standard error; 0 for an orbit that closes exactly.
        amplitude: Root mean square distance from the time mean, relative to the root mean square of norm(z).
        mean: Time mean of the state, of the shape of one sample.
        exponents: Leading Lyapunov exponents ``[k]``, nats per step; NaN where not measured.
        exponent_errors: Their standard errors ``[k]``.
        zero_one: Median of the 0-1 test, NaN where not measured.
        orbit: Periodic orbit of the flow (of the map, for maps) found by shooting; None if none was.
        token: Token at which the motion starts in a causal system, -1 elsewhere.
        predicted_steps: Further steps to the tolerance where the kind is slow; NaN if unknown.
        of_the_flow: Whether the flow cycles too: True where shooting found its orbit from where the flow itself leads,
            False where the flow comes to rest, None where neither was shown or it was not looked for.
        cycle_size: Amplitude of the cycle in units of the state ``orbit`` has, NaN where no orbit was looked for.
        evidence: What supports the verdict, sentences.
        against: What speaks against it, or is missing.
        decay: How the residual falls.
        first: The oscillation of the record; None where it was not looked at.
        second: The same from the second start; None without one.
        zero_one_spread: Half of the interquartile range of the 0-1 test.
        evaluations: Forces of this sample evaluated, a product with its Jacobian counted as one.
        residual: Largest force residual over the last tenth of the record.
    """

    kind: AttractorKind
    period_steps: float
    period_error: float
    amplitude: float
    mean: Tensor
    exponents: Array
    exponent_errors: Array
    zero_one: float
    orbit: Orbit | None = None
    token: int = -1
    predicted_steps: float = float("nan")
    of_the_flow: bool | None = None
    cycle_size: float = float("nan")
    evidence: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    decay: Decay | None = None
    first: Oscillation | None = None
    second: Oscillation | None = None
    zero_one_spread: float = float("nan")
    evaluations: int = 0
    residual: float = float("nan")


@dataclass
class Evidence:
    """What was measured of one sample.

    Attributes:
        time: Whether steps discretise a flow or are the dynamics themselves.
        steps: Steps of the record.
        tol: Force residual called converged.
        residual: Force residual at the end of the record.
        lost: Step at which it was lost, -1 if it was not.
        frozen: Whether steps return the state bit for bit.
        decay: How the residual falls over the record.
        first: Its oscillation.
        second: The oscillation from the second start; None without one.
        second_end: Where the second start went if it does not oscillate, else empty.
        exponents: Leading exponents ``[k]``, nats per step; None where not measured.
        errors: Their standard errors.
        averaged: Steps the exponents are averaged over.
        dimension: Dimension of the state.
        zero_one: The 0-1 test; None where not done.
        evaluations: Forces evaluated, a product with the Jacobian counted as one.
    """

    time: Time
    steps: int
    tol: float
    residual: float
    lost: int
    frozen: bool
    decay: Decay
    first: Oscillation
    second: Oscillation | None = None
    second_end: str = ""
    exponents: Array | None = None
    errors: Array | None = None
    averaged: int = 0
    dimension: int = 0
    zero_one: ZeroOne | None = None
    evaluations: int = 0


@dataclass
class Verdict:
    """A kind with its reasons."""

    kind: AttractorKind
    evidence: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    predicted_steps: float = float("nan")
