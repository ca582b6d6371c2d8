"""The critical step from growth rates measured at several steps: a bracket that holds for every spectrum.

Of multipliers 1 + eps mu the largest modulus rho satisfies

    h(eps) = (rho^2 - 1)/eps = max over modes of (2 Re mu + eps abs(mu)^2),

a largest of straight lines: h is convex, begins at twice the abscissa and crosses zero, once, at the critical step. So
chords give lower bounds of it, extended chords upper ones, and where one mode rules both are exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: A bracket this narrow, relative to the step, is not narrowed further.
NARROW = 0.01


def h_of_rate(rate: Array, eps: Array) -> Array:
    """Return h = (exp(2 rate) - 1)/eps of growth rates in nats per step, 1/time."""
    with np.errstate(over="ignore"):
        return np.asarray(np.expm1(2 * rate) / eps, dtype=np.float64)


@dataclass(frozen=True)
class StepBracket:
    """What measured growth says of the critical step of one sample.

    Attributes:
        low: The critical step is above this; 0 if nothing is known.
        high: The critical step is below this; infinite if nothing is known.
        flow_unstable: Whether h is above zero even when extended to eps = 0: no step is stable.
        known: Whether any step was resolved as stable or unstable.
    """

    low: float
    high: float
    flow_unstable: bool
    known: bool

    @property
    def narrow(self) -> bool:
        """Whether the bracket needs no narrowing."""
        return self.high - self.low <= NARROW * self.high

    @property
    def closed(self) -> bool:
        """Whether both sides are bounded by measurements."""
        return bool(self.low > 0 and np.isfinite(self.high))

    def next_step(self) -> float | None:
        """Return the step to measure next, None where nothing is to be gained."""
        if self.flow_unstable or not np.isfinite(self.high) or not self.known or self.narrow:
            return None
        if self.low > 0:
            return 0.5 * (self.low + self.high)
        return 0.8 * self.high  # of one ruling mode, ``high`` is the critical step itself


def bracket_step(eps: Array, low: Array, high: Array) -> StepBracket:
    """Bracket the critical step by bounds of h measured at some steps.

    Args:
        eps: Steps ``[k]``.
        low: Lower bounds of h there; -inf where not known.
        high: Upper bounds; inf where not known.
    """
    order = np.argsort(eps)
    eps, low, high = eps[order], low[order], high[order]
    stable, unstable = high < 0, low > 0
    bottom = float(eps[stable].max(initial=0.0))
    top = float(eps[unstable].min(initial=np.inf))
    flow = False
    for i in range(len(eps)):
        for j in range(i + 1, len(eps)):
            run = eps[j] - eps[i]
            if stable[i] and 0 < high[j] < np.inf:  # chord above h
                bottom = max(bottom, float(eps[i] - high[i] * run / (high[j] - high[i])))
            if np.isfinite(high[i]) and -np.inf < low[j] < 0 and low[j] > high[i]:  # chord extended: below h
                top = min(top, float(eps[j] - low[j] * run / (low[j] - high[i])))
            if unstable[i] and np.isfinite(high[j]):  # extended to smaller steps: below h
                slope = (high[j] - low[i]) / run
                crossing = float(eps[i] - low[i] / slope) if slope > 0 else -np.inf
                if crossing <= 0:
                    flow = True
                else:
                    top = min(top, crossing)
    if bottom > top:  # bounds that only rounding makes cross
        bottom = top = 0.5 * (bottom + top)
    return StepBracket(bottom, top, flow and not stable.any(), bool(stable.any() or unstable.any()))
