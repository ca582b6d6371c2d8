"""What is said of one sample: a verdict, the numbers it rests on, and the sentences for and against it."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from dyneq.dynamics.rootview import RootView
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.systems.protocol import System


@dataclass
class Judgement:
    """The verdict on one sample.

    Attributes:
        verdict: The cause.
        confidence: What it rests on.
        kind: The finer name: hopf, neimark-sacker, flip, ghost, coalescing, degenerate, invariant-curve; or "".
        mu: Eigenvalue at the root that decides: the rightmost of a flow, the largest multiplier minus 1 of a map.
        mu_error: First-order bar of it.
        critical_mu: Mode that sets the critical step.
        critical_eps: Critical step, NaN where the flow is not stable or for a map.
        critical_eps_error: First-order bar of it.
        root_residual: Force residual of the root; NaN without one.
        period: Period of a cycle, time units (steps of a map).
        amplitude: Size of the motion relative to the state.
        exponent: Leading Lyapunov exponent, per unit time.
        exponent_error: Its standard error.
        passage: Time the whole passage of a ghost takes.
        supports: What speaks for the verdict.
        against: What speaks against it.
    """

    verdict: Verdict = Verdict.UNDETERMINED
    confidence: Confidence = Confidence.NONE
    kind: str = ""
    mu: complex = complex(math.nan, math.nan)
    mu_error: float = math.nan
    critical_mu: complex = complex(math.nan, math.nan)
    critical_eps: float = math.nan
    critical_eps_error: float = math.nan
    root_residual: float = math.nan
    period: float = math.nan
    amplitude: float = math.nan
    exponent: float = math.nan
    exponent_error: float = math.nan
    passage: float = math.nan
    supports: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)

    def decide(self, verdict: Verdict, confidence: Confidence, kind: str = "", why: str = "") -> None:
        """Set the verdict, with the sentence it rests on."""
        self.verdict, self.confidence, self.kind = verdict, confidence, kind
        if why:
            self.supports.append(why)

    def undetermined(self, why: str) -> None:
        """Leave the verdict open, with what stands in the way."""
        self.verdict, self.confidence, self.kind = Verdict.UNDETERMINED, Confidence.NONE, ""
        self.against.append(why)

    def see_root(self, view: RootView, sample: int, residual: float) -> None:
        """Enter what the linearisation at the root says, of the block that decides."""
        block = int(np.argmax(view.rightmost.mu[sample].real if view.flow else view.radius[sample]))
        leading = view.rightmost if view.flow else view.largest
        self.mu, self.mu_error = complex(leading.mu[sample, block]), float(leading.error[sample, block])
        self.root_residual = residual
        steps = view.critical_eps[sample]
        if view.flow and not np.isnan(steps).any():
            worst = int(np.argmin(steps))
            self.critical_mu = complex(view.critical.mu[sample, worst])
            self.critical_eps = float(steps[worst])
            self.critical_eps_error = float(view.critical_eps_error[sample, worst])


def show(mu: complex) -> str:
    """Return an eigenvalue as it is printed: a pair as one."""
    return f"{mu.real:+.4f}" if mu.imag == 0 else f"{mu.real:+.4f} +- {abs(mu.imag):.4f}i"


def part_of(system: System, samples: list[int]) -> System:
    """Return some samples of a system, the system itself where they are all of them."""
    state = system.initial_state()
    if len(samples) == state.shape[0]:
        return system
    return system.select(torch.tensor(samples, device=state.device))
