"""The critical step that the eigenvalues at a root foretell, and whether what is observed agrees with it."""

import math
from dataclasses import dataclass

import numpy as np

from dyneq.dynamics.rootview import RootView
from dyneq.dynamics.step_bracket import NARROW, StepBracket
from dyneq.linalg.targets import critical_step


@dataclass(frozen=True)
class Prediction:
    """What the eigenvalues at one root say.

    Attributes:
        side: 1 where the flow leaves the root, -1 where it returns, 0 where that is not resolved.
        rightmost: Eigenvalue with the largest real part.
        rightmost_error: Its bar.
        rightmost_block: Its block.
        critical: Eigenvalue that sets the critical step; NaN unless the flow is stable.
        critical_error: Bar of that eigenvalue.
        critical_block: Its block; -1 unless the flow is stable.
        step: Critical step; NaN unless the flow is stable.
        low: Lower bound of it.
        high: Upper bound of it.
    """

    side: int
    rightmost: complex
    rightmost_error: float
    rightmost_block: int
    critical: complex
    critical_error: float
    critical_block: int
    step: float
    low: float
    high: float

    @property
    def instability(self) -> str:
        """How the flow leaves the root: ``hopf``, ``real``, or ``unresolved``; empty where it does not."""
        return _kind(self.rightmost, self.rightmost_error, "hopf", "real") if self.side > 0 else ""

    @property
    def step_instability(self) -> str:
        """What Euler does above the critical step: ``neimark-sacker``, ``flip`` or ``unresolved``; empty if unknown."""
        return _kind(self.critical, self.critical_error, "neimark-sacker", "flip") if self.side < 0 else ""


def _kind(mu: complex, error: float, pair: str, real: str) -> str:
    if mu.imag == 0:
        return real
    return pair if abs(mu.imag) > error else "unresolved"


def predictions(view: RootView) -> list[Prediction]:
    """Return what a linearisation at roots says of each."""
    sides = view.flow_side()
    found = []
    for i in range(len(sides)):
        side = 1 if (sides[i] > 0).any() else -1 if (sides[i] < 0).all() else 0
        right = int(view.rightmost.mu[i].real.argmax())
        rightmost = complex(view.rightmost.mu[i, right]), float(view.rightmost.error[i, right]), right
        if side >= 0:
            found.append(Prediction(side, *rightmost, complex(math.nan), math.nan, -1, math.nan, math.nan, math.nan))
            continue
        step = critical_step(view.critical.mu[i])
        bar = np.nan_to_num(view.critical_eps_error[i], nan=np.inf) + np.finfo(np.float64).eps * step
        block = int(step.argmin())
        critical = complex(view.critical.mu[i, block]), float(view.critical.error[i, block]), block
        low, high = float((step - bar).min()), float((step + bar).min())
        found.append(Prediction(side, *rightmost, *critical, float(step[block]), low, high))
    return found


def agreement(prediction: Prediction, bracket: StepBracket) -> str:
    """Return ``agrees``, ``disagrees`` or ``untested``: whether growth near the root is what eigenvalues foretell.

    Steps agree where their intervals overlap within the share to which a bracket is narrowed.
    """
    if prediction.side == 0 or not bracket.known:
        return "untested"
    if prediction.side > 0:
        return "disagrees" if bracket.low > 0 else "agrees"
    apart = max(prediction.low - bracket.high, bracket.low - prediction.high)
    return "disagrees" if bracket.flow_unstable or apart > NARROW * prediction.step else "agrees"
