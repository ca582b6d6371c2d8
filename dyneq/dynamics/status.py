"""How a computation on one sample ended: members are sentences a user can act on."""

import enum
from typing import Self


class Status(enum.Enum):
    """Outcome for one sample; ``value`` is the short name that results store, ``sentence`` says what to do."""

    sentence: str

    def __new__(cls, short: str, sentence: str) -> Self:
        """Attach the sentence to the short name."""
        member = object.__new__(cls)
        member._value_ = short
        member.sentence = sentence
        return member

    CONVERGED = "converged", "the force residual is within tolerance: the state is a fixed point to that accuracy"
    MAX_STEPS = (
        "max_steps",
        "the state still moves after all steps asked for: relax deeper, or look at the spectrum at the root "
        "(--at root) to see whether it ever settles",
    )
    DIVERGED = (
        "diverged",
        "the state stopped being finite or grew beyond any fixed point: lower eps, or take an earlier snapshot",
    )
    ABSORBED = (
        "absorbed",
        "steps vanish in rounding although this is no fixed point of the full block (its branches are below one unit "
        "in the last place of the state): the weights have blown up, or float64 is needed",
    )
    STAGNATED = (
        "stagnated",
        "no start led to a root within tolerance: try more starts, or a neighbouring snapshot to continue from",
    )

    @property
    def good(self) -> bool:
        """Whether the result may be used as a fixed point."""
        return self is Status.CONVERGED
