"""Who is to blame where a relaxation does not settle: the flow, Euler's step, or the horizon."""

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyneq.dynamics.eps_sweep import EpsRun
from dyneq.dynamics.observed_step import ObservedSteps
from dyneq.dynamics.status import Status
from dyneq.dynamics.step_bracket import StepBracket
from dyneq.probes.epsilon_prediction import Prediction, agreement

Array = NDArray[np.float64]

#: A settled state further than this from the root, relative to it, is another fixed point.
ELSEWHERE = 1e-2
#: What falls is still falling where the largest residual of the last quarter is below this share of the third's.
FALLING = 0.9


class Blame(enum.StrEnum):
    """The verdict on one sample."""

    STABLE = "stable"
    """Settles at every step tried."""
    SETTLES = "settles"
    """Settles at its own step, but not at every larger one tried."""
    SLOW = "slow"
    """Stable at its own step, but the horizon is too short to settle in."""
    EULER = "euler"
    """The flow is stable, its own step is not."""
    FLOW = "flow-unstable"
    """The flow leaves the root: no step helps."""
    UNDETERMINED = "undetermined"
    """The evidence is missing, marginal, or contradicts itself."""


class Outcome(enum.StrEnum):
    """How one relaxation ended."""

    SETTLED = "settled"
    FALLING = "falling"
    """Not settled, the force residual still falling."""
    MOVING = "moving"
    """Not settled, the force residual not falling."""
    DIVERGED = "diverged"
    ABSORBED = "absorbed"


def outcomes(run: EpsRun) -> list[Outcome]:
    """Return how each sample of a relaxation ended."""
    third, fourth = run.quarters.double().cpu().numpy().T
    short = {Status.CONVERGED: Outcome.SETTLED, Status.DIVERGED: Outcome.DIVERGED, Status.ABSORBED: Outcome.ABSORBED}
    falling = fourth < FALLING * third
    return [short.get(s, Outcome.FALLING if falling[i] else Outcome.MOVING) for i, s in enumerate(run.status)]


@dataclass(frozen=True)
class Judgement:
    """The verdict on one sample.

    Attributes:
        blame: The verdict.
        reason: Why, in words.
        needed_time: Time at which it is foretold to settle; NaN unless it is slow.
        confirmed: 1 where Euler is to blame and with a smaller step tried the relaxation settles at the root, or falls
            towards it at half the rate of displacements at least; 0 where it does with none of the smaller ones tried;
            NaN where none was tried or Euler is not to blame.
    """

    blame: Blame
    reason: str
    needed_time: float = math.nan
    confirmed: float = math.nan


@dataclass(frozen=True)
class Approach:
    """Where relaxations ended with respect to the roots, ``[eps, sample]`` or, of one sample, ``[eps]``.

    Attributes:
        distance: Relative distance of the end from the root; NaN without one or where lost.
        rate: Rate at which it fell over the last quarter, 1/time.
        residual: Norm of the force at the end relative to the root: the force residual it has once it is near.
    """

    distance: Array
    rate: Array
    residual: Array

    def of(self, sample: int) -> "Approach":
        """Return that of one sample."""
        return Approach(self.distance[:, sample], self.rate[:, sample], self.residual[:, sample])


@dataclass(frozen=True)
class Evidence:
    """All there is on one sample.

    Attributes:
        eps: Steps tried, increasing.
        own: Index of the system's own step among them.
        prediction: From the eigenvalues at the root.
        outcome: How the relaxation ended at each step.
        time: Time reached.
        approach: Where it ended with respect to the root.
        tail_rate: Rate at which the force residual fell, 1/time.
        growth: Growth per step of displacements from the root ``[eps]``.
        growth_low: Its lower bound.
        growth_high: Its upper bound.
        bracket: Of the critical step, as observed.
        tol: Force residual called settled.
    """

    eps: Array
    own: int
    prediction: Prediction
    outcome: list[Outcome]
    time: Array
    approach: Approach
    tail_rate: Array
    growth: Array
    growth_low: Array
    growth_high: Array
    bracket: StepBracket
    tol: float

    @classmethod
    def collect(
        cls,
        runs: list[EpsRun],
        own: int,
        sample: int,
        approach: Approach,
        prediction: Prediction,
        observed: ObservedSteps,
        row: int,
        tol: float,
    ) -> "Evidence":
        """Return the evidence on one sample.

        Args:
            runs: Relaxations, by increasing step.
            own: Index of the system's own step.
            sample: Index of the sample in the runs.
            approach: Where the sample's relaxations ended.
            prediction: From the eigenvalues at the root.
            observed: Growth near the roots.
            row: Index of the sample among the roots observed.
            tol: Force residual called settled.
        """
        return cls(
            eps=np.array([r.eps for r in runs]),
            own=own,
            prediction=prediction,
            outcome=[outcomes(r)[sample] for r in runs],
            time=np.array([r.time for r in runs]),
            approach=approach,
            tail_rate=np.array([float(r.tail_rate[sample]) for r in runs]),
            growth=observed.rate[:, row],
            growth_low=observed.low[:, row],
            growth_high=observed.high[:, row],
            bracket=observed.brackets[row],
            tol=tol,
        )


def judge(e: Evidence) -> Judgement:
    """Return the verdict on a sample that has a root."""
    p, own = e.prediction, float(e.eps[e.own])
    here = e.outcome[e.own]
    if here is Outcome.ABSORBED:
        return _unsure("at its own step the state is frozen by rounding, which is no fixed point; use float64")
    if here is Outcome.SETTLED and e.approach.distance[e.own] > ELSEWHERE:
        return _unsure("at its own step it settles at another fixed point than the one examined")
    if p.side == 0:
        return _unsure("the root is at the boundary of stability within the errors of its eigenvalues")
    if agreement(p, e.bracket) == "disagrees":
        return _unsure("growth near the root contradicts its eigenvalues")
    if p.side > 0:
        what = {"hopf": "a complex pair: a Hopf instability", "real": "a real eigenvalue"}.get(p.instability, "unclear")
        late = "; it looks settled only because it started next to the unstable root" if here is Outcome.SETTLED else ""
        return Judgement(Blame.FLOW, f"the flow itself leaves the root ({what}), so no step helps{late}")
    if p.low <= own <= p.high:
        return _unsure("its own step is the critical one within its error")
    return _euler(e) if own > p.high else _settling(e)


def _unsure(reason: str) -> Judgement:
    return Judgement(Blame.UNDETERMINED, reason)


def _euler(e: Evidence) -> Judgement:
    p = e.prediction
    if e.outcome[e.own] is Outcome.SETTLED:
        return _unsure("it settled at a step at which displacements grow: it started on the root or next to it")
    if not e.growth_low[e.own] > 0:
        return _unsure("that displacements grow at its own step is foretold, but was not seen clearly")
    smaller = np.flatnonzero(e.eps < p.low)
    confirmed = float(any(_arrives(e, int(i)) for i in smaller)) if len(smaller) else math.nan
    made = {"flip": "flips from side to side", "neimark-sacker": "oscillates"}.get(p.step_instability, "is unstable")
    reason = f"the flow is stable, but Euler's step is above the critical one, where it {made}"
    return Judgement(Blame.EULER, reason, confirmed=confirmed)


def _arrives(e: Evidence, i: int) -> bool:
    """Return whether the relaxation settled at the root, or nears it at half the rate of displacements at least.

    The residual relative to the state does not fall as long as the state is large against a small root, and a rotating
    distance may happen to fall little; so either may show the rate, but the distance must fall.
    """
    if e.outcome[i] is Outcome.SETTLED:
        return bool(e.approach.distance[i] <= ELSEWHERE)
    decay, nearing = -float(e.growth[i]) / float(e.eps[i]), float(e.approach.rate[i])
    if not e.growth_high[i] < 0 or not nearing > 0.1 * decay:
        return False
    return nearing >= 0.5 * decay or bool(e.tail_rate[i] >= 0.5 * decay)


def _settling(e: Evidence) -> Judgement:
    i = e.own
    if e.outcome[i] is Outcome.SETTLED:
        # a step that vanishes in rounding is no step that was tried
        if (
            all(o in (Outcome.SETTLED, Outcome.ABSORBED) for o in e.outcome)
            and not (e.approach.distance > ELSEWHERE).any()
        ):
            return Judgement(Blame.STABLE, "settles at every step tried")
        return Judgement(Blame.SETTLES, "settles at its own step, not at every step tried")
    if e.outcome[i] is Outcome.DIVERGED:
        return _unsure("it diverges from its initial state although the root is stable: it starts out of its reach")
    decay = -float(e.growth[i]) / float(e.eps[i])
    if not e.growth_high[i] < 0:
        return _unsure("that displacements decay at its own step is foretold, but was not seen clearly")
    if not _arrives(e, i):
        return _unsure("the root is stable, but the relaxation does not approach it: another attractor, or far from it")
    needed = float(e.time[i]) + max(0.0, math.log(float(e.approach.residual[i]) / e.tol)) / decay
    mode = f"rate {decay:.3g} per unit time"
    return Judgement(Blame.SLOW, f"stable, but it settles too slowly for the horizon ({mode})", needed_time=needed)
