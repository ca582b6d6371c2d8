"""How a search for a periodic orbit ended: members are sentences a user can act on."""

import enum
from typing import Self


class OrbitStatus(enum.Enum):
    """How a search for a periodic orbit ended; ``value`` is the short name, ``sentence`` says what to do."""

    sentence: str

    def __new__(cls, short: str, sentence: str) -> Self:
        """Attach the sentence to the short name."""
        member = object.__new__(cls)
        member._value_ = short
        member.sentence = sentence
        return member

    CONVERGED = "converged", "a periodic orbit, closed within tolerance, its period within the error bar given"
    COARSE = (
        "coarse",
        "a periodic orbit of the discretised flow, but its error bar exceeds the tolerance at the most steps allowed: "
        "use the error bar, or allow more steps",
    )
    FIXED_POINT = "fixed_point", "the search ended in a root of the force: start nearer to the cycle, if there is one"
    STAGNATED = "stagnated", "undetermined: no closed orbit near the start: relax longer, or guess the period better"
    DIVERGED = "diverged", "undetermined: the state overflowed within one period: take a smaller step or another start"
    SIZE = "size", "undetermined: the state is too large for shooting: take one token as a system of its own"

    @property
    def good(self) -> bool:
        """Whether the result may be used as a periodic orbit."""
        return self in {OrbitStatus.CONVERGED, OrbitStatus.COARSE}
