"""What the linearisation at roots says of stability, block by block, with its errors."""

import enum
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.spectra import Pairs, leading_spectrum
from dyneq.linalg.targets import CriticalStep, LargestModulus, Rightmost, Target, critical_step
from dyneq.systems.protocol import System, Time

#: Eigenvalues closer to the boundary than this share of the spectrum's scale decide nothing: at a double root the root
#: itself is only known to the square root of the rounding.
RESOLUTION = {torch.float64: 1e-6, torch.float32: 1e-3}
#: An eigenvalue whose error is above this many margins is not known well enough to be called on the boundary.
RESOLVED = 10.0
#: The scale is at least that of a multiplier this far from 1.
LEAST_RATE = 0.1

Array = NDArray[np.float64]


class Standing(enum.StrEnum):
    """Which side of stability a root is on."""

    STABLE = "stable"
    """Flow and step (or the map) return to it."""
    STEP = "step"
    """The flow returns, the step does not."""
    UNSTABLE = "unstable"
    """The flow (or the map) leaves it."""
    BOUNDARY = "boundary"
    """On the boundary within what the errors allow to resolve."""
    UNKNOWN = "unknown"
    """An eigenvalue that could decide has no known error."""


@dataclass(frozen=True)
class Leading:
    """One target's best eigenvalue of every block, with imaginary part not below 0.

    Attributes:
        mu: ``[sample, block]``, per unit time.
        error: First-order bar of abs(mu), the root's own share included; NaN where not known.
    """

    mu: NDArray[np.complex128]
    error: Array


@dataclass(frozen=True)
class RootView:
    """Stability at roots; blocks are tokens for causal systems, else there is one a sample.

    Attributes:
        largest: Largest multiplier of the relaxation map.
        rightmost: Largest real part; for a map the same as ``largest``.
        critical: Mode of the smallest critical step; for a map the same as ``largest``.
        margin: What is not resolved of a rate, ``[sample, block]``, per unit time.
        eps: Step.
        flow: Whether the system is a flow.
        products: Products with the Jacobian it took.
    """

    largest: Leading
    rightmost: Leading
    critical: Leading
    margin: Array
    eps: float
    flow: bool
    products: int

    @property
    def radius(self) -> Array:
        """abs(1 + eps mu) of the largest multiplier ``[sample, block]``."""
        return np.abs(1 + self.eps * self.largest.mu)

    @property
    def critical_eps(self) -> Array:
        """Critical step of each block; NaN where its flow is not stable, or for a map."""
        step = critical_step(self.critical.mu)
        return np.where(self.rightmost.mu.real < 0, step, np.nan) if self.flow else np.full_like(step, np.nan)

    @property
    def critical_eps_error(self) -> Array:
        """First-order bar of the critical step: 2 error/abs(mu)^2 moves -2 Re(1/mu)."""
        size = np.abs(self.critical.mu)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = 2 * self.critical.error / (size * (size - self.critical.error))
        return np.where(self.critical.error < size, moved, np.nan)

    def standing(self) -> list["Standing"]:
        """Return how each sample's root stands, all of its blocks together."""
        flow, stepped = self.flow_side(), self.map_side()
        error = self.largest.error + self.rightmost.error
        found = []
        for i in range(len(flow)):
            open_ = (flow[i] == 0) | (stepped[i] == 0)
            if (flow[i] > 0).any():
                found.append(Standing.UNSTABLE)
            elif (stepped[i] > 0).any():
                found.append(Standing.STEP)
            elif not open_.any():
                found.append(Standing.STABLE)
            else:
                known = error[i][open_] <= RESOLVED * self.margin[i][open_]  # false where it is NaN
                found.append(Standing.BOUNDARY if known.all() else Standing.UNKNOWN)
        return found

    def neutral(self, sample: int) -> bool:
        """Return whether the deciding eigenvalue of a sample is real and not told from 0."""
        block = int(np.argmax(self.rightmost.mu[sample].real if self.flow else self.radius[sample]))
        leading = self.rightmost if self.flow else self.largest
        mu, error = leading.mu[sample, block], leading.error[sample, block]
        margin = self.margin[sample, block]
        return bool(mu.imag == 0 and error <= RESOLVED * margin and abs(mu) - error <= margin)

    def flow_side(self) -> NDArray[np.int8]:
        """Return 1 where the flow leaves the root, -1 where it returns, 0 where that is not resolved."""
        if not self.flow:
            return self.map_side()
        return _side(self.rightmost.mu.real, self.rightmost.error, self.margin)

    def map_side(self) -> NDArray[np.int8]:
        """Return 1 where the relaxation map leaves the root, -1 where it returns, 0 where that is not resolved."""
        return _side(self.radius - 1, self.eps * self.largest.error, self.eps * self.margin)


def _side(distance: Array, error: Array, margin: Array) -> NDArray[np.int8]:
    error = np.where(np.isnan(error), np.inf, error)
    side = np.zeros(distance.shape, dtype=np.int8)
    side[distance - error > margin] = 1
    side[distance + error < -margin] = -1
    return side


@torch.no_grad()
def view_roots(system: System, z: Tensor, *, generator: torch.Generator) -> RootView:
    """Linearise at roots and look for the eigenvalues that decide.

    Args:
        system: The system.
        z: Roots ``[sample, ...]``, finite.
        generator: Randomness of Krylov starts and of the estimate of the roots' errors.
    """
    flow = system.time is Time.FLOW
    targets: dict[str, Target] = {"largest": LargestModulus(system.eps)}
    if flow:
        targets |= {"rightmost": Rightmost(), "critical": CriticalStep()}
    displacement = root_displacement(system, z, generator=generator)
    found = leading_spectrum(
        Linearization(system, z), list(targets.values()), 1, generator=generator, displacement=displacement
    )
    blocks = found.samples * found.tokens
    views = {name: _leading(found.pairs, target, blocks, found.samples) for name, target in targets.items()}
    scale = np.maximum.reduce([np.abs(v.mu) for v in views.values()])
    margin = RESOLUTION.get(z.dtype, 1e-3) * np.maximum(scale, LEAST_RATE / system.eps)
    largest = views["largest"]
    return RootView(
        largest,
        views.get("rightmost", largest),
        views.get("critical", largest),
        margin,
        system.eps,
        flow,
        found.matvecs,
    )


def _leading(pairs: Pairs, target: Target, blocks: int, samples: int) -> Leading:
    best = pairs.best(target, blocks)
    mu = pairs.mu[best]
    return Leading((mu.real + 1j * np.abs(mu.imag)).reshape(samples, -1), pairs.error[best].reshape(samples, -1))
