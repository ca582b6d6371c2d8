"""Corrected nudging about the moving mean of the two nudged states (common-mode tracking AEP).

With z+- = m +- d, both states relax under F(z) -+ beta g(z) - 2 A(m)(z - m). To first order in d the mean follows the
free dynamics, m' = F(m), and half the difference the adjoint one, d' = J(m)^T d - beta g(m). A free phase stopped early
is therefore finished on the way, which a correction frozen at the stopped state cannot do (arXiv:2602.03670).
"""

from pydantic import Field
from torch import Tensor

from dyneq.gradients.contrast import State, run_contrast
from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge, Skew
from dyneq.gradients.nudged import PhaseParams, phase_estimate
from dyneq.gradients.window import Circle, Nudged
from dyneq.systems.protocol import System


class TrackParams(PhaseParams):
    """Options of :class:`Track`; it always nudges from both sides."""

    t2: int = Field(200, gt=0, description="steps of the nudged phase, which also finishes the free one")
    beta: float = Field(1e-2, gt=0, description="strength of the nudge, on the loss summed over samples and tokens")
    every: int = Field(1, gt=0, description="steps from one linearisation at the mean to the next")


class Track(EquilibriumEstimator):
    """Nudge from both sides of the moving mean m, correct there, and read out dF/dtheta at m.

    The error at a root is O(beta^2), as of centred ``aep``. The state of the read-out is the mean of the snapshot kept:
    it is there that ``force_residual`` is taken and ``FREE_NOT_CONVERGED`` judged. Since m itself settles at a distance
    O(beta^2) from the root, a residual that does not fall with t2 calls for a smaller beta.

    A step takes two forces, one product with J and one with its transpose, which serve both states; a linearisation is
    charged as a force.

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`, deviations
    being from m.
    """

    name = "track"
    main = "t2"
    Params = TrackParams
    params: TrackParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J(m)^{-T} g(m), to be read out at m."""
        p, beta, eps = self.params, self.params.beta, system.eps
        nudge, correction = Nudge(system, p.head_clamp), _MovingSkew(system, p.every)

        def step(state: State) -> State:
            up, down = state
            mean, half = _modes(state)
            pull = correction(mean, half)
            f_up = system.force(up).sub(nudge(up), alpha=beta) + pull
            f_down = system.force(down).add(nudge(down), alpha=beta) - pull
            return up.add(f_up, alpha=eps), down.add(f_down, alpha=eps)

        def read(state: State) -> Tensor:
            return _modes(state)[1].mul_(-nudge.scale / beta)

        found = run_contrast(step, read, (free.z, free.z), t2=p.t2, eps=eps, adaptive=p.adaptive)
        mean, half = _modes(found.state)
        cost = p.t2 * (2 + Skew.PRODUCTS) + correction.linearisations
        return phase_estimate(system, mean, found, Nudged(Circle(2), [half, -half], beta), nudge, cost)


class _MovingSkew:
    """The correction at a mean that moves, linearised anew every so many steps."""

    def __init__(self, system: System, every: int) -> None:
        self._system, self._every, self._steps = system, every, 0
        self.linearisations = 0

    def __call__(self, mean: Tensor, deviation: Tensor) -> Tensor:
        if self._steps % self._every == 0:
            self._skew = Skew(self._system, mean)
            self.linearisations += 1
        self._steps += 1
        return self._skew(deviation)


def _modes(state: State) -> tuple[Tensor, Tensor]:
    """Return the mean of the two states, and half their difference."""
    up, down = state
    return (up + down).div_(2), (up - down).div_(2)
