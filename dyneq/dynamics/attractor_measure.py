"""What is measured of samples that are followed for long: oscillation, decay, exponents, second start, 0-1 test."""

import math

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.attractor_kinds import Evidence
from dyneq.dynamics.attractor_rules import threshold
from dyneq.dynamics.chaos import ZeroOne, oscillation_time, zero_one
from dyneq.dynamics.decay import classify_decay
from dyneq.dynamics.growth import Exponents
from dyneq.dynamics.lyapunov import lyapunov_exponents, token_exponents
from dyneq.dynamics.monitor import Record, observe
from dyneq.dynamics.period import PERIODIC, Oscillation, measure_oscillation
from dyneq.dynamics.residuals import sample_norm
from dyneq.systems.protocol import System, Time

#: Rows of the record that are analysed.
WINDOW = 8192
#: Exponents of whole blocks are averaged over this many steps at most: each costs as many products as there are.
BLOCK_STEPS = 2000
#: The second start: the state drawn towards its time mean to this share, and displaced by this share of the amplitude.
DRAWN, DISPLACED = 0.6, 0.2


def row_distance(system: System, look: Record, moving: list[int], steps: int) -> int:
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


def gather(system: System, record: Record, i: int, tol: float) -> Evidence:
    """Return what a record tells of one of its samples: how its residual falls, and how its projections oscillate."""
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
        evaluations=record.evaluations,
    )


def add_exponents(
    system: System, z: Tensor, items: list[Evidence], count: int, steps: int, generator: torch.Generator
) -> None:
    """Measure the leading exponents of every sample; of causal blocks from all their tokens.

    Of blocks, where they are dear, two at first, and all that are wanted only where the second is not seen to be
    negative.

    Args:
        system: The system of these samples.
        z: Their states ``[sample, ...]``.
        items: Their evidence, completed in place.
        count: Exponents wanted.
        steps: Steps to average over; at most :data:`BLOCK_STEPS` for causal blocks.
        generator: Source of tangent vectors.
    """
    if not system.structure.causal:
        count = min(count, z.shape[1:].numel())
        _store(lyapunov_exponents(system, z, steps, count, generator=generator), items, count)
        return
    steps, count = min(steps, BLOCK_STEPS), min(count, z.shape[2:].numel())
    _store(token_exponents(system, z, steps, min(count, 2), generator=generator), items, min(count, 2))
    again = [i for i, e in enumerate(items) if count > 2 and not _second_negative(e)]
    if again:
        index = torch.tensor(again, device=z.device)
        part = system if len(again) == len(items) else system.select(index)
        _store(token_exponents(part, z[index], steps, count, generator=generator), [items[i] for i in again], count)


def _second_negative(e: Evidence) -> bool:
    return e.exponents is not None and len(e.exponents) > 1 and float(e.exponents[1]) < -threshold(e, 1)


def _store(found: Exponents, items: list[Evidence], count: int) -> None:
    """Put the leading exponents of every sample, of all its tokens together, into its evidence."""
    values, errors = found.values.flatten(1), found.errors.flatten(1)
    order = torch.nan_to_num(values, nan=-math.inf).argsort(1, descending=True)[:, :count]
    leading, doubt = values.gather(1, order).cpu().numpy(), errors.gather(1, order).cpu().numpy()
    for row, e in enumerate(items):
        e.exponents, e.errors = leading[row], doubt[row]
        e.averaged = found.steps - found.aligning
        e.evaluations += found.steps * (1 + found.values.shape[-1])


def follow_second(
    system: System, record: Record, index: Tensor, items: list[Evidence], tol: float, generator: torch.Generator
) -> None:
    """Relax from a second start: the state drawn towards its mean, so that a family of orbits is seen as one.

    Args:
        system: The system of the samples that are followed again.
        record: The first record.
        index: These samples in it ``[k]``.
        items: Their evidence, completed in place.
        tol: Force residual called converged.
        generator: Draws the displacement.
    """
    z, mean = record.z[index], record.mean[index]
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64, device=generator.device).to(z)
    size = DISPLACED * record.spread[index] / sample_norm(noise)
    start = mean + DRAWN * (z - mean) + noise * size.view(-1, *[1] * (z.ndim - 1))
    # half the steps, but room for a few periods after a few others
    periods = [e.first.period for e in items if math.isfinite(e.first.period) and e.first.misfit < PERIODIC]
    longest = max(periods, default=0.0)
    steps = max(200, record.steps // 2, min(record.steps, math.ceil(10 * longest)))
    rows = max(16, math.ceil(max(steps / 2, min(steps, 5 * longest)) / record.every))
    again = observe(system, start, steps, every=record.every, window=min(rows, WINDOW), directions=record.directions)
    for row, e in enumerate(items):
        e.evaluations += again.evaluations
        end = float(again.residual[-1, row])
        if int(again.lost[row]) >= 0:
            e.second_end = f"was lost after {int(again.lost[row])} steps"
        elif end <= tol:
            e.second_end = "came to rest at a fixed point"
        else:
            x = again.projections[:, row].double().cpu().numpy()
            e.second = measure_oscillation(x, again.every, noise=_noise(again, row))


def chaos_of(record: Record, i: int, o: Oscillation, generator: torch.Generator) -> ZeroOne | None:
    """Test the leading principal component of the projections for chaos."""
    if not math.isfinite(o.period) or o.drift > 1:
        return None
    x = record.projections[:, i].double().cpu().numpy()
    x = x - x.mean(0)
    signal = x @ np.linalg.svd(x, full_matrices=False)[2][0]
    # where there is a period, four samples of it; else the time the signal changes in
    stride = max(1, round(o.period / record.every / 4)) if o.misfit < PERIODIC else None
    return zero_one(signal, generator=generator, stride=stride)
