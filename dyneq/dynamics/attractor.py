"""What a relaxation ends on when it is followed for long: fixed point, cycle, torus, chaos, or undetermined.

A relaxation is recorded with bounded memory, once more from a second start, and its Lyapunov exponents are averaged.
What has come to rest is left out of all but the first look, and nothing is done for one sample at a time but the
shooting.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.attractor_kinds import Attractor, AttractorKind, Evidence, Verdict
from dyneq.dynamics.attractor_measure import (
    WINDOW,
    add_exponents,
    chaos_of,
    follow_second,
    gather,
    row_distance,
)
from dyneq.dynamics.attractor_orbits import confirm
from dyneq.dynamics.attractor_rules import judge
from dyneq.dynamics.monitor import Record, observe
from dyneq.dynamics.relax import default_tolerance
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.structure import check_causality
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

__all__ = [
    "Attractor",
    "AttractorKind",
    "Followed",
    "classify_attractors",
    "classify_record",
    "first_moving_token",
    "follow",
]

#: Steps of the first look, from which the distance of rows is chosen and what rests is told.
LOOK = 512


@dataclass(frozen=True)
class Followed:
    """Samples followed for long.

    Attributes:
        attractors: What each ends on, one a sample.
        look: The first look, of all samples.
        moving: Samples that moved, the only ones in the record ``[k]``.
        record: Their record after the first look; None where all rest.
    """

    attractors: list[Attractor]
    look: Record
    moving: list[int]
    record: Record | None


@torch.no_grad()
def classify_attractors(
    system: System,
    z: Tensor,
    *,
    steps: int = 6000,
    generator: torch.Generator,
    second_start: bool = True,
    exponents: int = 3,
    shooting: bool = True,
    tol: float | None = None,
) -> list[Attractor]:
    """Say what every sample ends on.

    Args:
        system: Any system.
        z: States after the transient ``[sample, ...]``.
        steps: Steps recorded; half of them again from the second start.
        generator: Draws directions, tangent vectors, the second start and the frequencies of the 0-1 test.
        second_start: Whether to follow a second start, without which no cycle or torus is named.
        exponents: Lyapunov exponents; 0 for none, without which nothing that moves is named.
        shooting: Whether to look for the periodic orbit of each cycle.
        tol: Force residual called converged; as in :func:`dyneq.dynamics.relax.relax` if None.

    Returns:
        One :class:`Attractor` a sample.

    Raises:
        UsageError: If there are too few steps to look at, or ``exponents`` is negative.
        CausalityError: If the system declares itself causal but is not.
    """
    return follow(
        system,
        z,
        steps=steps,
        generator=generator,
        second_start=second_start,
        exponents=exponents,
        shooting=shooting,
        tol=tol,
    ).attractors


@torch.no_grad()
def follow(
    system: System,
    z: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    second_start: bool = True,
    exponents: int = 3,
    shooting: bool = True,
    tol: float | None = None,
    projections: int = 8,
    progress: Callable[[str, float], None] | None = None,
) -> Followed:
    """Follow every sample and say what it ends on; arguments as in :func:`classify_attractors`.

    Args:
        system: Any system.
        z: States after the transient ``[sample, ...]``.
        steps: Steps recorded.
        generator: Source of all that is drawn.
        second_start: Whether to follow a second start.
        exponents: Lyapunov exponents.
        shooting: Whether to look for the periodic orbit of each cycle.
        tol: Force residual called converged.
        projections: Random unit vectors the state is projected on.
        progress: Told what is done and how far it is.

    Raises:
        UsageError: If there are too few steps to look at.
        CausalityError: If the system declares itself causal but is not.
    """
    if steps < 200:
        raise UsageError(f"an attractor is judged from at least 200 steps, but steps={steps} was given")
    look = observe(system, z, min(LOOK, steps), projections=projections, generator=generator)
    tol = default_tolerance(z.dtype) if tol is None else tol
    found: list[Attractor | None] = [None] * z.shape[0]
    moving: list[int] = []
    record: Record | None = None
    for i in range(z.shape[0]):
        verdict = _resting(system, look, i, tol)
        if verdict is None:
            moving.append(i)
        else:
            found[i] = verdict
    if moving:
        say = progress or (lambda what, share: None)
        index = torch.tensor(moving, device=z.device)
        whole = len(moving) == z.shape[0]
        part = system if whole else system.select(index)
        if part.structure.causal:  # exponents and orbits token by token rely on it
            check_causality(part, look.z[index])
        every = row_distance(part, look, moving, steps)
        record = observe(
            part,
            look.z[index],
            steps,
            every=every,
            window=WINDOW,
            directions=look.directions,
            progress=lambda share: say("recording the samples that move", 0.3 * share),
        )
        judged = classify_record(
            part,
            record,
            generator=generator,
            second_start=second_start,
            exponents=exponents,
            shooting=shooting,
            tol=tol,
            progress=progress,
        )
        for i, a in zip(moving, judged, strict=True):
            found[i] = a
    return Followed([a for a in found if a is not None], look, moving, record)


@torch.no_grad()
def classify_record(
    system: System,
    record: Record,
    *,
    generator: torch.Generator,
    second_start: bool = True,
    exponents: int = 3,
    shooting: bool = True,
    tol: float | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Attractor]:
    """Say what every sample of a record ends on; arguments as in :func:`classify_attractors`.

    Raises:
        UsageError: If ``exponents`` is negative.
    """
    if exponents < 0:
        raise UsageError(f"the number of Lyapunov exponents cannot be negative, but {exponents} were asked for")
    say = progress or (lambda what, share: None)
    tol = default_tolerance(record.z.dtype) if tol is None else tol
    items = [gather(system, record, i, tol) for i in range(record.z.shape[0])]
    moving = [i for i, e in enumerate(items) if judge(e).kind is AttractorKind.UNDETERMINED and not e.frozen]
    if moving:
        index = torch.tensor(moving, device=record.z.device)
        part = system if len(moving) == len(items) else system.select(index)
        if exponents:
            say("Lyapunov exponents", 0.3)
            add_exponents(part, record.z[index], [items[i] for i in moving], exponents, record.steps, generator)
        if second_start:
            say("second start", 0.6)
            follow_second(part, record, index, [items[i] for i in moving], tol, generator)
        for i in moving:
            items[i].zero_one = chaos_of(record, i, items[i].first, generator)
    found = [_finish(record, i, e, judge(e)) for i, e in enumerate(items)]
    if shooting:
        cycles = {i: a for i, a in enumerate(found) if a.kind is AttractorKind.CYCLE}
        confirm(system, record, cycles, progress=lambda share: say("periodic orbits", 0.8 + 0.2 * share))
    return found


def first_moving_token(record: Record, sample: int, tol: float) -> int:
    """Return the first token of a sample that keeps moving, -1 if none does or there are none.

    A token whose force exceeds the tolerance relative to its state; among those the first that does not fade, where
    there is one, for a token may only wait for an earlier one that is still on its way to rest.

    Args:
        record: The record.
        sample: The sample.
        tol: Force residual called converged.
    """
    if record.token_norm is None:
        return -1
    size = torch.linalg.vector_norm(record.z[sample].flatten(1), dim=1)
    rows = record.token_norm[:, sample] / size
    half = len(rows) // 2
    early, late = rows[:half].amax(0), rows[half:].amax(0)
    moving = late > tol
    lasting = moving & (late > 0.7 * early)
    chosen = lasting if bool(lasting.any()) else moving
    return int(chosen.to(torch.int8).argmax()) if bool(chosen.any()) else -1


def _resting(system: System, look: Record, i: int, tol: float) -> Attractor | None:
    """Return the verdict on a sample that rests or is lost at the first look, None if it moves."""
    e = gather(system, look, i, tol)
    start = float(look.residual[0, i])
    at_rest = e.residual <= tol and start <= tol and e.residual <= max(2 * start, 1e3 * torch.finfo(look.z.dtype).eps)
    if e.lost < 0 and not at_rest:
        return None
    return _finish(look, i, e, judge(e))


def _finish(record: Record, i: int, e: Evidence, verdict: Verdict) -> Attractor:
    # the root mean square of norm(z)
    size = math.hypot(float(sample_norm(record.mean[i : i + 1])), float(record.spread[i]))
    oscillates = verdict.kind in (AttractorKind.CYCLE, AttractorKind.SLOW, AttractorKind.UNDETERMINED)
    seen = oscillates and e.first.misfit < 0.5 and e.first.drift < 1
    test = e.zero_one
    return Attractor(
        kind=verdict.kind,
        period_steps=e.first.period if seen else math.nan,
        period_error=e.first.period_error if seen else math.nan,
        amplitude=float(record.spread[i]) / size if size != 0 else 0.0,
        mean=record.mean[i],
        exponents=np.zeros(0) if e.exponents is None else e.exponents,
        exponent_errors=np.zeros(0) if e.errors is None else e.errors,
        zero_one=math.nan if test is None else test.k,
        zero_one_spread=math.nan if test is None else test.spread,
        token=first_moving_token(record, i, e.tol) if e.lost < 0 else -1,
        predicted_steps=verdict.predicted_steps,
        evidence=verdict.evidence,
        against=verdict.against,
        decay=e.decay,
        first=e.first,
        second=e.second,
        evaluations=e.evaluations,
        residual=e.residual,
    )
