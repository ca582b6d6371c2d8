"""The Lorenz equations."""

import math

import torch
from torch import Tensor

from dyneq.systems.analytic.base import AnalyticFlow, scattered


class Lorenz(AnalyticFlow):
    """x' = s (y - x), y' = x (rho - z) - y, z' = x y - b z (Lorenz 1963, J. Atmos. Sci. 20, 130).

    At 10, 28, 8/3 the exponents are 0.906, 0 and -14.57 nats per time (Sprott 2003); one trajectory of length 300
    scatters by 0.01.

    Args:
        sigma: Prandtl number s.
        rho: Rayleigh number in units of the critical one.
        beta: Aspect b.
        z0: Start ``[sample, 3]``; within 1 of (1, 1, 20) if None.
        eps: Step size.
    """

    def __init__(
        self,
        sigma: float = 10.0,
        rho: float = 28.0,
        beta: float = 8 / 3,
        z0: Tensor | None = None,
        *,
        eps: float = 0.005,
    ) -> None:
        super().__init__(3, scattered([1.0, 1.0, 20.0], 1.0) if z0 is None else z0, eps)
        self.sigma, self.rho, self.beta = sigma, rho, beta

    def rhs(self, z: Tensor) -> Tensor:
        """Return the time derivative ``[sample, 3]``."""
        x, y, w = z.unbind(-1)
        return torch.stack([self.sigma * (y - x), x * (self.rho - w) - y, x * y - self.beta * w], dim=-1)

    @property
    def exponent_sum(self) -> float:
        """Sum of the three Lyapunov exponents, the divergence -(s + 1 + b), nats per time."""
        return -(self.sigma + 1 + self.beta)

    @property
    def roots(self) -> list[tuple[float, float, float]]:
        """The origin, and where rho > 1 the pair (+-q, +-q, rho - 1) with q^2 = b (rho - 1)."""
        if self.rho <= 1:
            return [(0.0, 0.0, 0.0)]
        q = math.sqrt(self.beta * (self.rho - 1))
        return [(0.0, 0.0, 0.0), (q, q, self.rho - 1), (-q, -q, self.rho - 1)]

    @property
    def hopf_rho(self) -> float:
        """The rho of the subcritical Hopf bifurcation of the pair, s (s + b + 3)/(s - b - 1), or infinity."""
        s, b = self.sigma, self.beta
        return s * (s + b + 3) / (s - b - 1) if s > b + 1 else math.inf
