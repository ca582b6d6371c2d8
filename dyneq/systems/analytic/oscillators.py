"""Planar flows around a Hopf bifurcation: Stuart-Landau, van der Pol, Brusselator, FitzHugh-Nagumo."""

import math

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.analytic.base import AnalyticFlow, scattered


class StuartLandau(AnalyticFlow):
    """w' = (r + i nu) w - (c + i d) abs(w)^2 w, the normal form of a Hopf bifurcation, on the real state (Re w, Im w).

    Source: Kuznetsov, Elements of Applied Bifurcation Theory (2004), section 3.4. All facts follow from
    abs(w)' = (r - c abs(w)^2) abs(w) and arg(w)' = nu - d abs(w)^2.

    Args:
        r: Growth rate at the origin; the Hopf bifurcation is at 0.
        nu: Angular frequency at the origin.
        c: Saturation; above 0 the bifurcation is supercritical.
        d: Change of frequency with amplitude.
        z0: Start ``[sample, 2]``; within 0.5 of (1, 0) if None.
        eps: Step size.
    """

    def __init__(
        self,
        r: float = 0.5,
        nu: float = 2.0,
        c: float = 1.0,
        d: float = 0.0,
        z0: Tensor | None = None,
        *,
        eps: float = 0.01,
    ) -> None:
        super().__init__(2, scattered([1.0, 0.0], 0.5) if z0 is None else z0, eps)
        self.r, self.nu, self.c, self.d = r, nu, c, d

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 2]``."""
        x, y = z.unbind(-1)
        square = x * x + y * y
        growth, turn = self.r - self.c * square, self.nu - self.d * square
        return torch.stack([growth * x - turn * y, turn * x + growth * y], dim=-1)

    @property
    def eigenvalues(self) -> tuple[complex, complex]:
        """Eigenvalues r +- i nu at the origin."""
        return complex(self.r, self.nu), complex(self.r, -self.nu)

    @property
    def cycle_radius(self) -> float:
        """Radius of the limit cycle, sqrt(r/c).

        Raises:
            DyneqError: If there is no cycle.
        """
        if not self.r * self.c > 0:
            raise DyneqError(f"{self.name} with r={self.r}, c={self.c} has no cycle; r and c must have the same sign")
        return math.sqrt(self.r / self.c)

    @property
    def period(self) -> float:
        """Period of the limit cycle, 2 pi/abs(nu - d r/c), time units; infinite where it is a circle of roots."""
        turn = self.nu - self.d * self.cycle_radius**2
        return 2 * math.pi / abs(turn) if turn else math.inf

    @property
    def floquet_multipliers(self) -> tuple[float, float]:
        """Floquet multipliers of the limit cycle, 1 and exp(-2 r T)."""
        return 1.0, math.exp(-2 * self.r * self.period)


class VanDerPol(AnalyticFlow):
    """x' = y, y' = mu (1 - x^2) y - x (van der Pol 1926, Phil. Mag. 2, 978).

    Args:
        mu: Strength of the nonlinear damping; the Hopf bifurcation of the origin is at 0.
        z0: Start ``[sample, 2]``; within 0.5 of (2, 0) if None.
        eps: Step size.
    """

    def __init__(self, mu: float = 1.0, z0: Tensor | None = None, *, eps: float = 0.01) -> None:
        super().__init__(2, scattered([2.0, 0.0], 0.5) if z0 is None else z0, eps)
        self.mu = mu

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 2]``."""
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x * x) * y - x], dim=-1)

    def divergence(self, z: Tensor) -> Tensor:
        """Return mu (1 - x^2) ``[sample]``; its integral over a period is the logarithm of the multiplier."""
        return self.mu * (1 - z[:, 0] ** 2)


class Brusselator(AnalyticFlow):
    """x' = A - (B + 1) x + x^2 y, y' = B x - x^2 y (Prigogine and Lefever 1968, J. Chem. Phys. 48, 1695).

    Args:
        a: Feed A.
        b: Feed B; None for the Hopf bifurcation plus 0.1.
        z0: Start ``[sample, 2]``; within 0.3 of the root if None.
        eps: Step size.
    """

    def __init__(self, a: float = 1.0, b: float | None = None, z0: Tensor | None = None, *, eps: float = 0.01) -> None:
        self.a = a
        self.b = self.hopf_b + 0.1 if b is None else b
        super().__init__(2, scattered(list(self.root), 0.3) if z0 is None else z0, eps)

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 2]``."""
        x, y = z.unbind(-1)
        made = x * x * y
        return torch.stack([self.a - (self.b + 1) * x + made, self.b * x - made], dim=-1)

    @property
    def root(self) -> tuple[float, float]:
        """The only root, (A, B/A)."""
        return self.a, self.b / self.a

    @property
    def hopf_b(self) -> float:
        """The B of the Hopf bifurcation, 1 + A^2."""
        return 1 + self.a**2

    @property
    def hopf_frequency(self) -> float:
        """Angular frequency at the Hopf bifurcation, A."""
        return self.a

    @property
    def hopf_cubic(self) -> float:
        """Re c1 at the Hopf bifurcation with <q,q> = <p,q> = 1, below 0: supercritical.

        -(2 + A^2)/(2 (2 A^2 + 1)); Kuznetsov (2004), section 3.5, equation 3.20 in the normalisation of c1.
        """
        return -(2 + self.a**2) / (2 * (2 * self.a**2 + 1))


class FitzHughNagumo(AnalyticFlow):
    """v' = v - v^3/3 - w + I, w' = s (v + a - b w) (FitzHugh 1961, Biophys. J. 1, 445).

    Args:
        current: I.
        a: Offset of the recovery line.
        b: Slope of the recovery line; with b <= 1 there is one root.
        timescale: s, the slowness of recovery (written eps in the literature).
        z0: Start ``[sample, 2]``; within 0.3 of (0, 1) if None.
        eps: Step size.
    """

    def __init__(
        self,
        current: float = 0.5,
        a: float = 0.7,
        b: float = 0.8,
        timescale: float = 0.08,
        z0: Tensor | None = None,
        *,
        eps: float = 0.05,
    ) -> None:
        super().__init__(2, scattered([0.0, 1.0], 0.3) if z0 is None else z0, eps)
        self.current, self.a, self.b, self.timescale = current, a, b, timescale

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 2]``."""
        v, w = z.unbind(-1)
        return torch.stack([v - v**3 / 3 - w + self.current, self.timescale * (v + self.a - self.b * w)], dim=-1)

    @property
    def hopf_currents(self) -> tuple[float, float]:
        """The two I of the Hopf bifurcations: the root is at v = -+sqrt(1 - s b), where the trace vanishes."""
        v = math.sqrt(1 - self.timescale * self.b)
        low, high = ((s * v + self.a) / self.b - s * v + (s * v) ** 3 / 3 for s in (-1, 1))
        return low, high

    @property
    def hopf_frequency(self) -> float:
        """Angular frequency at both bifurcations, sqrt(s - (s b)^2), the root of the determinant."""
        return math.sqrt(self.timescale - (self.timescale * self.b) ** 2)
