"""Nudged phases: the force plus and minus beta times the loss gradient, with or without the asymmetric correction."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.base import Mark
from dyneq.gradients.contrast import Contrast, State, run_contrast
from dyneq.gradients.equilibrium import AdjointEstimate, AveragedParams
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge
from dyneq.gradients.window import ALIASING, Circle, Nudged, window
from dyneq.systems.protocol import System


class PhaseParams(AveragedParams):
    """Options of a nudged phase, whatever its nudges are."""

    t2: int = Field(100, gt=0, description="steps of the nudged phase")
    adaptive: bool = Field(True, description="whether each sample keeps the quietest snapshot of its contrast")
    head_clamp: float | None = Field(
        None, gt=0, description="largest norm of the summed loss's gradient at one token; no clamp if None"
    )


class NudgedParams(PhaseParams):
    """Options of a phase with real nudges."""

    beta: float = Field(1e-2, gt=0, description="strength of the nudge, on the loss summed over samples and tokens")
    sides: int = Field(2, ge=1, le=2, description="2: the nudges +beta and -beta; 1: +beta against the free state")


def nudged_adjoint(
    system: System, free: FreePhase, params: NudgedParams, correction: Callable[[Tensor], Tensor] | None, products: int
) -> AdjointEstimate:
    """Return -(z+ - z-)/(2 beta), or -(z+ - z*)/beta from one side, after the nudged phase.

    Args:
        system: The system.
        free: Its free phase.
        params: Options.
        correction: What is added to the force at a deviation from the free state; nothing if None.
        products: Products with J or J^T that one correction takes.
    """
    nudge, z, beta, eps = Nudge(system, params.head_clamp), free.z, params.beta, system.eps
    signs = (1.0,) if params.sides == 1 else (1.0, -1.0)
    drift = 2 if params.sides == 2 else 1

    def step(state: State) -> State:
        moved = []
        for sign, s in zip(signs, state, strict=True):
            f = system.force(s).sub(nudge(s), alpha=sign * beta)
            if correction is not None:
                f = f.add_(correction(s - z))
            moved.append(torch.add(s, f, alpha=eps))
        return tuple(moved)

    def read(state: State) -> Tensor:
        other = z if len(state) == 1 else state[1]
        return (other - state[0]).mul_(nudge.scale / (drift * beta))

    found = run_contrast(step, read, tuple(z for _ in signs), t2=params.t2, eps=eps, adaptive=params.adaptive)
    cost = params.t2 * len(signs) * (1 + products)
    deviations = [s - z for s in found.state]
    return phase_estimate(system, z, found, Nudged(Circle(params.sides), deviations, beta), nudge, cost)


def phase_estimate(
    system: System, at: Tensor, found: Contrast, nudged: Nudged, nudge: Nudge, cost: float
) -> AdjointEstimate:
    """Return the adjoint a nudged phase found, with what says how far to trust it.

    Diagnostics: ``t2``, the step kept; ``increment``, the path of the contrast over the unit of time before it,
    relative; ``displacement``, norm(z^beta - z*), ``nonlinearity``, the share of the force's response to it that is not
    linear, both the worst over the nudges; ``aliasing``, norm(J^T a + g)/norm(g) as far as finite nudges cause it, see
    :mod:`dyneq.gradients.window`. That and not linearity is what they need, so it decides whether the states count as
    outside the window.

    Args:
        system: The system.
        at: State about which the phase is linear, where dF/dtheta is read out.
        found: The phase.
        nudged: Where its nudges took the state.
        nudge: The loss gradient it used.
        cost: Forces and products the phase took.
    """
    bent, aliasing = window(system, at, nudged, nudge)
    diagnostics = {
        "t2": found.t2.to(found.increment.dtype),
        "increment": found.increment,
        "displacement": torch.stack([sample_norm(d) for d in nudged.deviations]).amax(0),
        "nonlinearity": bent,
        "aliasing": aliasing,
    }
    marks = {
        # states outside the domain of a continuation have no force, which leaves this NaN
        Mark.OUTSIDE_LINEAR_RESPONSE: ~(aliasing <= ALIASING) & ~found.diverged,
        Mark.NUDGE_NOT_SETTLED: ~found.settled & ~found.diverged,
        Mark.NUDGE_DIVERGED: found.diverged,
    }
    if nudge.clamped is not None:
        marks[Mark.CLAMPED] = nudge.clamped
    looked = sum(6 if d.is_complex() else 2 for d in nudged.deviations)
    return AdjointEstimate(found.a, at, diagnostics, marks, cost + 2 + looked)
