"""What a relaxation ends on when it is followed for long: fixed point, cycle, torus, chaos, or undetermined.

A relaxation is recorded with bounded memory, once more from a second start, and its Lyapunov exponents are averaged.
What has come to rest is left out of all but the first look, and nothing is done for one sample at a time but the
shooting.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.attractor_kinds import Attractor, AttractorKind, Evidence, Verdict
from dyneq.dynamics.attractor_orbits import confirm
from dyneq.dynamics.attractor_rules import judge
from dyneq.dynamics.chaos import ZeroOne, oscillation_time, zero_one
from dyneq.dynamics.decay import classify_decay
from dyneq.dynamics.lyapunov import lyapunov_exponents, token_exponents
from dyneq.dynamics.monitor import Record, observe
from dyneq.dynamics.period import PERIODIC, Oscillation, measure_oscillation
from dyneq.dynamics.relax import default_tolerance
from dyneq.dynamics.residuals import sample_norm
from dyneq.errors import UsageError
from dyneq.systems.protocol import System, Time

__all__ = ["Attractor", "AttractorKind", "classify_attractors", "classify_record", "first_moving_token"]

#: Rows of the record that are analysed.
WINDOW = 8192
#: Steps of the first look, from which the distance of rows is chosen and what rests is told.
LOOK = 512
#: Exponents of whole blocks are averaged over this many steps at most: each costs as many products as there are.
BLOCK_STEPS = 2000
#: The second start: the state drawn towards its time mean to this share, and displaced by this share of the amplitude.
DRAWN, DISPLACED = 0.6, 0.2


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
    """
    if steps < 200:
        raise UsageError(f"an attractor is judged from at least 200 steps, but steps={steps} was given")
    look = observe(system, z, min(LOOK, steps), generator=generator)
    tol = default_tolerance(z.dtype) if tol is None else tol
    found: list[Attractor | None] = [None] * z.shape[0]
    moving = []
    for i in range(z.shape[0]):
        verdict = _resting(system, look, i, tol)
        if verdict is None:
            moving.append(i)
        else:
            found[i] = verdict
    if moving:
        index = torch.tensor(moving, device=z.device)
        whole = len(moving) == z.shape[0]
        part = system if whole else system.select(index)
        every = _distance(part, look, moving, steps)
        record = observe(
            part, look.z[index], steps, every=every, window=WINDOW, directions=look.directions, generator=generator
        )
        judged = classify_record(
            part,
            record,
            generator=generator,
            second_start=second_start,
            exponents=exponents,
            shooting=shooting,
            tol=tol,
        )
        for i, a in zip(moving, judged, strict=True):
            found[i] = a
    return [a for a in found if a is not None]


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
    items = [_evidence(system, record, i, tol) for i in range(record.z.shape[0])]
    moving = [i for i, e in enumerate(items) if judge(e).kind is AttractorKind.UNDETERMINED and not e.frozen]
    if moving:
        index = torch.tensor(moving, device=record.z.device)
        part = system if len(moving) == len(items) else system.select(index)
        if exponents:
            say("Lyapunov exponents", 0.3)
            _add_exponents(part, record.z[index], [items[i] for i in moving], exponents, record.steps, generator)
        if second_start:
            say("second start", 0.6)
            _follow_second(part, record, index, [items[i] for i in moving], tol, generator)
        for i in moving:
            items[i].zero_one = _test(record, i, items[i].first, generator)
    say("periodic orbits", 0.8)
    return [_finish(system, record, i, e, judge(e), shooting) for i, e in enumerate(items)]


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
    e = _evidence(system, look, i, tol)
    start = float(look.residual[0, i])
    at_rest = e.residual <= tol and start <= tol and e.residual <= max(2 * start, 1e3 * torch.finfo(look.z.dtype).eps)
    if e.lost < 0 and not at_rest:
        return None
    return _finish(system, look, i, e, judge(e), shooting=False)


def _distance(system: System, look: Record, moving: list[int], steps: int) -> int:
    """Return the distance of rows at which the record holds most of the steps, about 24 rows a period at most."""
    if system.time is Time.MAP or steps <= WINDOW:
        return 1
    shortest = math.inf
    for i in moving:
        x = look.projections[:, i].double().cpu().numpy()
        o = measure_oscillation(x)
        # a first look that is shorter than a period sees parts of it only, but how fast it changes
        slow = 3 * min(oscillation_time(c) for c in x.T)
        shortest = min(shortest, o.period if o.misfit < PERIODIC else slow)
    return int(max(1, min(shortest // 24, -(-steps // WINDOW))))


def _noise(record: Record, i: int) -> float:
    return float(torch.finfo(record.z.dtype).eps * sample_norm(record.z[i : i + 1]))


def _evidence(system: System, record: Record, i: int, tol: float) -> Evidence:
    past, lost = record.history, int(record.lost[i])
    x = record.projections[:, i].double().cpu().numpy()
    if lost >= 0:
        x = x[:0]
    first = measure_oscillation(x, record.every, noise=_noise(record, i))
    periodic = math.isfinite(first.period) and first.misfit < 0.5
    rounding = torch.finfo(record.z.dtype).eps
    decay = classify_decay(
        (past.start + past.count).double().cpu().numpy(),
        past.residual_max[:, i].double().cpu().numpy(),
        tol=tol,
        rounding=rounding,
        period=first.period if periodic else None,
    )
    tail = record.residual[-max(1, len(record.residual) // 10) :, i]
    return Evidence(
        time=system.time,
        steps=record.steps,
        tol=tol,
        residual=float(tail.amax()) if lost < 0 else math.nan,
        lost=lost,
        frozen=bool(record.frozen[i]),
        decay=decay,
        first=first,
        dimension=record.z[i].numel(),
    )


def _add_exponents(
    system: System, z: Tensor, items: list[Evidence], count: int, steps: int, generator: torch.Generator
) -> None:
    """Measure the leading exponents of every sample; of causal blocks from all their tokens."""
    causal = system.structure.causal
    count = min(count, z.shape[2:].numel() if causal else z.shape[1:].numel())
    steps = min(steps, BLOCK_STEPS) if causal else steps
    measure = token_exponents if causal else lyapunov_exponents
    found = measure(system, z, steps, count, generator=generator)
    values, errors = found.values.flatten(1), found.errors.flatten(1)
    order = torch.nan_to_num(values, nan=-math.inf).argsort(1, descending=True)[:, :count]
    leading, doubt = values.gather(1, order).cpu().numpy(), errors.gather(1, order).cpu().numpy()
    for row, e in enumerate(items):
        e.exponents, e.errors = leading[row], doubt[row]
        e.averaged = found.steps - found.aligning


def _follow_second(
    system: System, record: Record, index: Tensor, items: list[Evidence], tol: float, generator: torch.Generator
) -> None:
    """Relax from a second start: the state drawn towards its mean, so that a family of orbits is seen as one."""
    z, mean = record.z[index], record.mean[index]
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64, device=generator.device).to(z)
    size = DISPLACED * record.spread[index] / sample_norm(noise)
    start = mean + DRAWN * (z - mean) + noise * size.view(-1, *[1] * (z.ndim - 1))
    steps = max(200, record.steps // 2)
    rows = max(16, steps // (2 * record.every))
    again = observe(system, start, steps, every=record.every, window=min(rows, WINDOW), directions=record.directions)
    for row, e in enumerate(items):
        end = float(again.residual[-1, row])
        if int(again.lost[row]) >= 0:
            e.second_end = f"was lost after {int(again.lost[row])} steps"
        elif end <= tol:
            e.second_end = "came to rest at a fixed point"
        else:
            x = again.projections[:, row].double().cpu().numpy()
            e.second = measure_oscillation(x, again.every, noise=_noise(again, row))


def _test(record: Record, i: int, o: Oscillation, generator: torch.Generator) -> ZeroOne | None:
    """Test the leading principal component of the projections for chaos."""
    if not math.isfinite(o.period) or o.drift > 1:
        return None
    x = record.projections[:, i].double().cpu().numpy()
    x = x - x.mean(0)
    signal = x @ np.linalg.svd(x, full_matrices=False)[2][0]
    # where there is a period, four samples of it; else the time the signal changes in
    stride = max(1, round(o.period / record.every / 4)) if o.misfit < PERIODIC else None
    return zero_one(signal, generator=generator, stride=stride)


def _finish(system: System, record: Record, i: int, e: Evidence, verdict: Verdict, shooting: bool) -> Attractor:
    # the root mean square of norm(z)
    size = math.hypot(float(sample_norm(record.mean[i : i + 1])), float(record.spread[i]))
    oscillates = verdict.kind in (AttractorKind.CYCLE, AttractorKind.SLOW, AttractorKind.UNDETERMINED)
    seen = oscillates and e.first.misfit < 0.5 and e.first.drift < 1
    test = e.zero_one
    attractor = Attractor(
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
    )
    if shooting and attractor.kind is AttractorKind.CYCLE:
        confirm(system, record, i, attractor, lock=e.first.lock)
    return attractor
