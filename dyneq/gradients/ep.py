"""Equilibrium propagation by the vector field, without a correction of the asymmetry: the negative control.

The nudged states of F(z) - beta g(z) give a = -J^{-1} g instead of -J^{-T} g (Scellier et al., arXiv:1808.04873), which
is the adjoint only where J is symmetric, as in a gradient system.
"""

from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudged import NudgedParams, nudged_adjoint
from dyneq.systems.protocol import System


class Ep(EquilibriumEstimator):
    """Nudge without correction; biased, at any beta, wherever J is not symmetric.

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`. Its
    ``adjoint_residual`` stays large where J is not symmetric.
    """

    name = "ep"
    main = "t2"
    Params = NudgedParams
    params: NudgedParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J^{-1} g."""
        return nudged_adjoint(system, free, self.params, None, 0)
