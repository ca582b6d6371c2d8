"""Equilibrium propagation with the correction of the asymmetry frozen at the free state (AsymEP, arXiv:2602.03670).

The nudged force F(z) - beta g(z) - 2 A(z*)(z - z*) has the Jacobian J^T at z*, so its states move by beta J^{-T} g.
"""

from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Skew
from dyneq.gradients.nudged import NudgedParams, nudged_adjoint
from dyneq.systems.protocol import System


class Aep(EquilibriumEstimator):
    """Nudge with the correction frozen at z*: exact at a root up to O(beta^2), or O(beta) from one side.

    Each corrected step takes one force, one product with J and one with its transpose.

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`.
    """

    name = "aep"
    main = "t2"
    Params = NudgedParams
    params: NudgedParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J^{-T} g."""
        return nudged_adjoint(system, free, self.params, Skew(system, free.z), Skew.PRODUCTS)
