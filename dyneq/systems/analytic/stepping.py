"""Stable flows that Euler's step makes oscillate: a Neimark-Sacker circle and a flip, both in closed form."""

import math

from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.analytic.base import AnalyticFlow, scattered
from dyneq.systems.analytic.oscillators import StuartLandau


class HopfNormalForm(StuartLandau):
    """w' = (a + i b) w - c abs(w)^2 w, and what its Euler map w + eps w' does that the flow does not.

    The circle of the map is where abs(1 + eps (a - c rho^2 + i b)) = 1. With a < 0 the flow is stable, yet above the
    critical step its Euler map has this stable circle.

    Args:
        a: Growth rate at the origin.
        b: Angular frequency.
        c: Saturation.
        z0: Start ``[sample, 2]``; within 0.1 of (0.3, 0) if None.
        eps: Step size; 0.5 lies above the critical step 0.198 of the default parameters.
    """

    def __init__(
        self, a: float = -0.1, b: float = 1.0, c: float = 1.0, z0: Tensor | None = None, *, eps: float = 0.5
    ) -> None:
        super().__init__(a, b, c, 0.0, scattered([0.3, 0.0], 0.1) if z0 is None else z0, eps=eps)

    @property
    def critical_step(self) -> float:
        """The eps above which the origin is unstable for the map, -2 a/(a^2 + b^2); 0 where the flow is unstable."""
        return max(0.0, -2 * self.r / (self.r**2 + self.nu**2))

    @property
    def circle_radius(self) -> float:
        """Radius rho of the map's invariant circle, rho^2 = (a + (1 - sqrt(1 - eps^2 b^2))/eps)/c.

        Raises:
            DyneqError: If there is no such circle at this step.
        """
        shrink = self._root()
        # (1 - s)/eps without cancellation at small steps
        square = (self.r + self.eps * self.nu**2 / (1 + shrink)) / self.c
        if not square > 0:
            raise DyneqError(
                f"the Euler map of {self.name} has no circle at eps={self.eps}; its critical step is "
                f"{self.critical_step:.6g}, choose a larger eps"
            )
        return math.sqrt(square)

    @property
    def rotation(self) -> float:
        """Angle the map turns by on the circle, asin(eps b), radians per step.

        Raises:
            DyneqError: If abs(eps b) >= 1.
        """
        self._root()
        return math.asin(self.eps * self.nu)

    @property
    def radial_multiplier(self) -> float:
        """Multiplier across the circle, 1 - 2 eps c rho^2 sqrt(1 - eps^2 b^2); stable where below 1 in modulus.

        It is d abs(w_next)/d abs(w) at abs(w) = rho.
        """
        return 1 - 2 * self.eps * self.c * self.circle_radius**2 * self._root()

    def _root(self) -> float:
        inside = 1 - (self.eps * self.nu) ** 2
        if inside <= 0:
            raise DyneqError(
                f"the circle's closed form needs abs(eps b) < 1, but it is {self.eps * self.nu}; lower eps"
            )
        return math.sqrt(inside)


class FlipFlow(AnalyticFlow):
    """z' = mu z + c z^3: one real rate mu < 0, whose Euler map flips to period 2 when mu < -2/eps.

    The orbit +-p solves -p = (1 + eps mu) p + eps c p^3. The flow itself has roots at +-sqrt(-mu/c), beyond it.

    Args:
        rate: mu, below 0.
        cubic: c, above 0: the flip is supercritical.
        z0: Start ``[sample, 1]``; within 0.2 of 0.5 if None.
        eps: Step size; 0.1 lies above the critical step 0.0909 of the default rate.
    """

    def __init__(self, rate: float = -22.0, cubic: float = 1.0, z0: Tensor | None = None, *, eps: float = 0.1) -> None:
        super().__init__(1, scattered([0.5], 0.2) if z0 is None else z0, eps)
        self.rate, self.cubic = rate, cubic

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 1]``."""
        return self.rate * z + self.cubic * z**3

    @property
    def critical_step(self) -> float:
        """The eps above which the origin is unstable for the map, -2/mu."""
        return -2 / self.rate

    @property
    def orbit_amplitude(self) -> float:
        """Amplitude p of the orbit of period 2, p^2 = -(2 + eps mu)/(eps c).

        Raises:
            DyneqError: If there is none at this step.
        """
        square = -(2 + self.eps * self.rate) / (self.eps * self.cubic)
        if not square > 0:
            raise DyneqError(
                f"the Euler map of {self.name} has no orbit of period 2 at eps={self.eps}; its critical step is "
                f"{self.critical_step:.6g}, choose a larger eps"
            )
        return math.sqrt(square)

    @property
    def orbit_multiplier(self) -> float:
        """Multiplier of the orbit over its two steps, (5 + 2 eps mu)^2: stable for -3 < eps mu < -2."""
        return (5 + 2 * self.eps * self.rate) ** 2
