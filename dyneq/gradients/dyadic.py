"""The adjoint flow run beside the relaxation (dyadic dynamics).

    m' = F(m),    d' = J(m)^T d - g(m),    a = -d.

At rest J^T d = g, so J^T a = -g. It is what corrected nudging from two sides tends to as beta goes to 0, m being the
mean of the two states and d half their difference over beta; linear in d, so that there is no beta to choose.
"""

from torch import Tensor

from dyneq.gradients.base import Mark
from dyneq.gradients.contrast import State, run_contrast
from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge
from dyneq.gradients.nudged import PhaseParams
from dyneq.systems.protocol import System


class Dyadic(EquilibriumEstimator):
    """Relax on, and the adjoint beside the state: exact at a root, with no bias from a nudge.

    The state of the read-out is m at the step kept: it is there that ``force_residual`` is taken and
    ``FREE_NOT_CONVERGED`` judged, so that a free phase stopped early is finished on the way. Nothing is displaced, so
    there is no window of linear response to leave; a diverging d is still marked ``NUDGE_DIVERGED``.

    A step takes a force, a linearisation (charged as one more) and a product with the transpose.

    Diagnostics: those of :class:`EquilibriumEstimator`; ``t2``, the step kept; ``increment``, the path of a over the
    unit of time before it, relative.
    """

    name = "dyadic"
    main = "t2"
    Params = PhaseParams
    params: PhaseParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J(m)^{-T} g(m), to be read out at m."""
        p, eps = self.params, system.eps
        nudge = Nudge(system, p.head_clamp)

        def step(state: State) -> State:
            m, d = state
            transposed = system.linearize(m)[1]
            return m.add(system.force(m), alpha=eps), d.add(transposed(d) - nudge(m), alpha=eps)

        def read(state: State) -> Tensor:
            return state[1] * -nudge.scale

        start = (free.z, free.z.new_zeros(free.z.shape))
        found = run_contrast(step, read, start, t2=p.t2, eps=eps, adaptive=p.adaptive)
        diagnostics = {"t2": found.t2.to(found.increment.dtype), "increment": found.increment}
        marks = {
            Mark.NUDGE_NOT_SETTLED: ~found.settled & ~found.diverged,
            Mark.NUDGE_DIVERGED: found.diverged,
        }
        if nudge.clamped is not None:
            marks[Mark.CLAMPED] = nudge.clamped
        return AdjointEstimate(found.a, found.state[0], diagnostics, marks, 3 * p.t2)
