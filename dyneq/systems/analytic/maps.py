"""Chaotic maps with known Lyapunov exponents: logistic, tent, Henon."""

import math

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.analytic.base import AnalyticMap, scattered


class Logistic(AnalyticMap):
    """z -> r z (1 - z) on [0, 1] (May 1976, Nature 261, 459).

    Args:
        r: Growth, 0 to 4.
        z0: Start ``[sample, 1]``; within 0.1 of 0.4 if None.
    """

    def __init__(self, r: float = 4.0, z0: Tensor | None = None) -> None:
        super().__init__(1, scattered([0.4], 0.1) if z0 is None else z0)
        self.r = r

    def step(self, z: Tensor) -> Tensor:
        """Return r z (1 - z) ``[sample, 1]``."""
        return self.r * z * (1 - z)

    @property
    def lyapunov_exponent(self) -> float:
        """Exponent of almost every start, nats per step, where it is known in closed form.

        ln r up to r = 1, ln abs(2 - r) on the fixed point, half of ln abs(4 + 2 r - r^2) on the cycle of period 2, ln 2
        at r = 4; minus infinity where the cycle is superstable.

        Raises:
            DyneqError: If r lies between 1 + sqrt(6) and 4, or outside 0..4.
        """
        r = self.r
        if 0 < r <= 1:
            return _log(r)
        if 1 < r <= 3:
            return _log(abs(2 - r))
        if 3 < r <= 1 + math.sqrt(6):
            return _log(abs(4 + 2 * r - r * r)) / 2
        if r == 4:
            return math.log(2)
        raise DyneqError(
            f"the Lyapunov exponent of the logistic map is known in closed form for 0 < r <= 1 + sqrt(6) and r = 4, "
            f"but r is {r}; measure it"
        )


class Tent(AnalyticMap):
    """z -> slope min(z, 1 - z) on [0, 1]; the exponent is ln(slope), the slope being the same everywhere.

    At slope 2 every float64 start reaches 0 after about 53 steps, for doubling shifts its binary digits out; the
    derivative there is still 2, so exponents stay right while orbits do not.

    Args:
        slope: Above 0, up to 2.
        z0: Start ``[sample, 1]``; within 0.1 of 0.4 if None.
    """

    def __init__(self, slope: float = 2.0, z0: Tensor | None = None) -> None:
        super().__init__(1, scattered([0.4], 0.1) if z0 is None else z0)
        self.slope = slope

    def step(self, z: Tensor) -> Tensor:
        """Return slope min(z, 1 - z) ``[sample, 1]``; the derivative at the tip is taken from the right."""
        # not torch.minimum: at a tie it would return the mean of the slopes, 0, and the exponent minus infinity
        return torch.where(z < 0.5, self.slope * z, self.slope * (1 - z))

    @property
    def lyapunov_exponent(self) -> float:
        """Exponent of every start, nats per step."""
        return math.log(self.slope)


class Henon(AnalyticMap):
    """(x, y) -> (1 - a x^2 + y, b x) (Henon 1976, Commun. Math. Phys. 50, 69).

    At a=1.4, b=0.3 the exponents are 0.419 and -1.623 nats per step (Sprott, Chaos and Time-Series Analysis, 2003).

    Args:
        a: Bend.
        b: Contraction; the Jacobian determinant is -b everywhere.
        z0: Start ``[sample, 2]``; within 0.1 of the origin if None.
    """

    def __init__(self, a: float = 1.4, b: float = 0.3, z0: Tensor | None = None) -> None:
        super().__init__(2, scattered([0.0, 0.0], 0.1) if z0 is None else z0)
        self.a, self.b = a, b

    def step(self, z: Tensor) -> Tensor:
        """Return the image ``[sample, 2]``."""
        x, y = z.unbind(-1)
        return torch.stack([1 - self.a * x * x + y, self.b * x], dim=-1)

    @property
    def exponent_sum(self) -> float:
        """Sum of both Lyapunov exponents, ln abs(b), nats per step."""
        return _log(abs(self.b))

    @property
    def fixed_points(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The two fixed points, roots of a x^2 + (1 - b) x - 1 = 0 with y = b x; the one with larger x first.

        Raises:
            DyneqError: If there are none.
        """
        discriminant = (1 - self.b) ** 2 + 4 * self.a
        if discriminant < 0 or self.a == 0:
            raise DyneqError(f"the Henon map with a={self.a}, b={self.b} has no pair of fixed points; raise a")
        high, low = sorted(((self.b - 1 + s * math.sqrt(discriminant)) / (2 * self.a) for s in (1, -1)), reverse=True)
        return (high, self.b * high), (low, self.b * low)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
