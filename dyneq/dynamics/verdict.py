"""The verdicts on a relaxation: what it does and why, each with what it means and what cures it."""

import enum
from typing import Self

from dyneq.errors import UsageError, nearest


class Verdict(enum.Enum):
    """Why a sample settles or does not; ``value`` is the short name that results store.

    Attributes:
        severity: Rank among the verdicts, the worst has the largest.
        meaning: What it says, in a sentence.
        cure: What helps.
        measure: What to measure next.
    """

    severity: int
    meaning: str
    cure: str
    measure: str

    def __new__(cls, short: str, severity: int, meaning: str, cure: str, measure: str) -> Self:
        """Attach rank and sentences to the short name."""
        member = object.__new__(cls)
        member._value_ = short
        member.severity, member.meaning, member.cure, member.measure = severity, meaning, cure, measure
        return member

    FIXED_POINT = (
        "fixed-point",
        0,
        "the relaxation settles on a fixed point and returns to it when displaced",
        "nothing to cure",
        "dyneq residual, to see whether the depth used in training reaches it",
    )
    SLOW = (
        "slow",
        1,
        "the fixed point is stable and the step small enough, but its slowest mode needs more steps than were taken",
        "relax deeper, use a larger step below the critical one, or another solver (Anderson, Newton)",
        "dyneq solver, for what each solver needs",
    )
    UNDETERMINED = (
        "undetermined",
        2,
        "the evidence does not decide",
        "none before the cause is known",
        "dyneq cycle with more steps, and dyneq root with more starts",
    )
    FOLD = (
        "fold",
        3,
        "a real eigenvalue at zero: two roots coalesce there, or have just vanished and left a slow passage",
        "roll back to the snapshot before it, or move the weights away from it (a margin on the abscissa)",
        "dyneq knockout, to follow the root and see where it ends",
    )
    DISCRETE_INSTABILITY = (
        "discrete-instability",
        4,
        "the flow is stable, but the step is too large for it: the relaxation oscillates because of Euler's method",
        "a step below the critical one, or a solver that does not step (Newton, Anderson)",
        "dyneq epsilon, for the critical step as observed",
    )
    SADDLE = (
        "saddle",
        5,
        "a real eigenvalue above zero: the fixed point repels in one direction, whatever the step",
        "another start, a roll-back, or a penalty on the abscissa (spectral, floss)",
        "dyneq root --explore, for the other roots",
    )
    LIMIT_CYCLE = (
        "limit-cycle",
        6,
        "the fixed point is unstable or not reached; the state circles on a closed orbit: no step and no depth helps",
        "a roll-back, or a penalty that moves the pair back (floss, spectral); damping only rescales",
        "dyneq knockout, for the part that makes it and the critical strength",
    )
    TORUS = (
        "torus",
        7,
        "the state moves with two frequencies that have no common period",
        "a roll-back, or a penalty on the abscissa (floss, spectral)",
        "dyneq ftle with a longer horizon, to exclude weak chaos",
    )
    CHAOS = (
        "chaos",
        8,
        "neighbouring states separate exponentially on a bounded set: no state of it means anything",
        "a roll-back, or a penalty on the contraction rate (floss)",
        "dyneq ftle, for the exponents and the dimension",
    )
    ABSORBED = (
        "absorbed",
        9,
        "steps vanish in rounding although the branches are not at rest: the weights have blown up",
        "an earlier snapshot; float64 only shows it",
        "dyneq branches, for the size of the branches against the state",
    )
    DIVERGED = (
        "diverged",
        10,
        "the state grows without bound, at a smaller step as well",
        "an earlier snapshot: a blown-up run cannot be rescued",
        "dyneq branches on the snapshots before",
    )

    @classmethod
    def of(cls, name: str) -> "Verdict":
        """Return the verdict of a short name.

        Raises:
            UsageError: If there is none of that name.
        """
        known = {verdict.value: verdict for verdict in cls}
        if name not in known:
            raise UsageError(f"there is no verdict called {name!r}{nearest(name, known)}")
        return known[name]


class Confidence(enum.StrEnum):
    """What a verdict rests on."""

    CONFIRMED = "confirmed"
    """The linearisation at the root predicts it and a simulation shows it."""
    OBSERVED = "observed"
    """A simulation shows it; nothing at a root could predict it."""
    PREDICTED = "predicted"
    """The linearisation at the root says so; a simulation was too short to show it."""
    NONE = "none"
    """Not decided."""
