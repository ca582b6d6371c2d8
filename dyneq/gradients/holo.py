"""Holomorphic equilibrium propagation with the correction of the asymmetry: nudges around a complex circle.

The states z(beta) of the corrected nudged force F(z) - beta g(z) - 2 A(z*)(z - z*) are holomorphic in beta where F and
g are, and z(beta) = z* + beta J^{-T} g + ... . Cauchy's formula gives the derivative from N states on |beta| = r,
    a = -Re[(1/(N r)) sum_k e^{-2 pi i k/N} z(r e^{2 pi i k/N})],
with a bias of order r^N only (Laborieux and Zenke, arXiv:2209.00530). Since z(conj beta) = conj z(beta), only the upper
half of the circle is relaxed, and its real points in real arithmetic: N = 2 is centred real nudging.
"""

import torch
from pydantic import Field
from torch import Tensor

from dyneq.gradients.analytic import require_analytic
from dyneq.gradients.contrast import State, run_contrast
from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge, Skew
from dyneq.gradients.nudged import PhaseParams, phase_estimate
from dyneq.gradients.window import Circle, Nudged
from dyneq.systems.protocol import System


class HoloParams(PhaseParams):
    """Options of :class:`Holo`."""

    n: int = Field(4, ge=2, description="nudges N on the circle; 2 is centred real nudging")
    r: float = Field(0.05, gt=0, description="radius of the circle, on the loss summed over samples and tokens")
    t2: int = Field(80, gt=0, description="steps of the nudged phase")


class Holo(EquilibriumEstimator):
    """N complex nudges with the correction frozen at z*: exact at a root up to O(r^N).

    For N > 2 the system's force and loss must accept complex states and be holomorphic there; what is not is refused.

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`. A complex
    force is charged as four real ones; the check of the continuation is not charged.
    """

    name = "holo"
    main = "n"
    Params = HoloParams
    params: HoloParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J^{-T} g.

        Raises:
            DyneqError: If N > 2 and the system has no holomorphic continuation.
        """
        n, r, z, eps = self.params.n, self.params.r, free.z, system.eps
        if n > 2:
            require_analytic(system, z, torch.Generator().manual_seed(0))
        nudge, correction = Nudge(system, self.params.head_clamp), Skew(system, z)
        circle = Circle(n)
        betas = [r * p for p in circle.points]
        dtype = torch.complex64 if z.dtype == torch.float32 else torch.complex128
        start = tuple(z.to(dtype) if isinstance(p, complex) else z for p in circle.points)

        def step(state: State) -> State:
            moved = []
            for beta, s in zip(betas, state, strict=True):
                f = system.force(s) - beta * nudge(s) + correction(s - z)
                moved.append(torch.add(s, f, alpha=eps))
            return tuple(moved)

        def read(state: State) -> Tensor:
            return circle.harmonic(_deviations(state, z), 1).mul_(-nudge.scale / r)

        found = run_contrast(step, read, start, t2=self.params.t2, eps=eps, adaptive=self.params.adaptive)
        deviations = _deviations(found.state, z)
        # a product of complex numbers is four of real ones, a correction of a complex state two of a real one
        each = [4 + 2 * Skew.PRODUCTS if d.is_complex() else 1 + Skew.PRODUCTS for d in deviations]
        cost = self.params.t2 * sum(each)
        return phase_estimate(system, z, found, Nudged(circle, deviations, r), nudge, cost)


def _deviations(state: State, z: Tensor) -> State:
    return tuple(s - z for s in state)
