"""The periodic orbit behind a cycle: of the map where it is one, else of the flow that Euler's step follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.attractor_kinds import Attractor
from dyneq.dynamics.monitor import Record
from dyneq.dynamics.orbits import map_orbit, shoot
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.systems.protocol import System, Time

#: Periods the flow is followed for before its orbit is looked for: Euler's orbit may lie far from it.
FOLLOWED = 40
#: Euler's orbits of periods above this many steps are near the flow's: it is followed for a quarter of that.
SMOOTH = 100
#: Least Runge-Kutta steps of the shortest period while the flow is followed.
STEPS = 24
#: Amplitude left, relative to that of Euler's cycle, below which the flow has come to rest.
RESTING = 1e-4
#: Largest relative difference in period and in amplitude between a cycle of Euler's map and the flow's that it follows.
PERIOD, AMPLITUDE = 0.25, 0.5


def orbit_system(system: System, mean: Tensor, samples: list[int], tokens: list[int]) -> System:
    """Return the system whose orbits the cycles of some samples are.

    In a causal one that of the token where each starts, with the earlier ones held at their means: they are at rest.

    Args:
        system: The system of the record.
        mean: Time means ``[sample, ...]``.
        samples: The samples.
        tokens: Token where the motion of each starts, -1 without tokens.
    """
    if system.structure.causal and min(tokens) >= 0:
        return TokenSystem(system, mean, samples, tokens)
    return system.select(torch.tensor(samples, device=mean.device))


@torch.no_grad()
def confirm(
    system: System,
    record: Record,
    cycles: Mapping[int, Attractor],
    *,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Look for the orbits of cycles, and add what comes of it to the attractors.

    Args:
        system: The system of the record.
        record: The record.
        cycles: The attractors that are cycles, by sample; changed in place.
        progress: Told the share of them that is done.
    """
    if not cycles:
        return
    samples, tokens = list(cycles), [a.token for a in cycles.values()]
    part = orbit_system(system, record.mean, samples, tokens)
    z = record.z[samples]
    if system.structure.causal:  # else the system may itself be one of tokens, whose states are those of its rows
        z = z[torch.arange(len(samples)), tokens]
    found = list(cycles.values())
    ahead = None
    if system.time is Time.FLOW:
        ahead = _follow(part, z, [a.period_steps for a in found])
    for row, a in enumerate(found):
        one = part.select(torch.tensor([row], device=z.device))
        if ahead is None:
            _of_map(one, z[row : row + 1], a)
        else:
            _of_flow(one, ahead, row, a)
        if progress is not None:
            progress((row + 1) / len(found))


def _of_map(one: System, z: Tensor, found: Attractor) -> None:
    lock = 0 if found.first is None else found.first.lock
    leading = float(found.exponents[0]) if len(found.exponents) else 0.0
    if not lock or not leading < -3 * float(found.exponent_errors[0]):
        found.evidence.append("the rotation is not locked to a whole number of steps: an invariant closed curve")
        return
    orbit = map_orbit(one, z, lock)
    found.evaluations += orbit.evaluations
    if orbit.status.good:
        found.orbit = orbit
        found.cycle_size = orbit.amplitude
        found.evidence.append(f"Newton's method finds the orbit of {lock} steps (it closes to {orbit.closure:.0e})")
    else:
        found.against.append(f"Newton's method does not find the orbit of {lock} steps: {orbit.status.sentence}")


@dataclass(frozen=True)
class _Ahead:
    """Where the flow leads: states, amplitude of Euler's cycle, amplitude of the flow, its period; one a sample.

    And the forces of each that it took.
    """

    z: Tensor
    size: Tensor
    left: Tensor
    period: list[float]
    evaluations: int


def _of_flow(one: System, ahead: _Ahead, row: int, found: Attractor) -> None:
    """Judge the flow from where it leads, and from its amplitude there against that of Euler's cycle."""
    size, left = float(ahead.size[row]), float(ahead.left[row])
    found.cycle_size = size
    found.evaluations += ahead.evaluations
    if not left > RESTING * size:  # not finite: the flow was lost
        found.of_the_flow = False if left <= RESTING * size else None
        found.against.append(
            "followed from here without Euler's error the state comes to rest: the cycle is one of Euler's map, made "
            "by its step; relax with a smaller eps"
            if found.of_the_flow is False
            else "followed from here without Euler's error the state is lost"
        )
        return
    period = found.period_steps * one.eps
    orbit = shoot(one, ahead.z[row : row + 1], ahead.period[row])
    found.evaluations += orbit.evaluations
    if not orbit.status.good:
        found.against.append(
            f"shooting does not confirm an orbit of the flow, whose amplitude in the end is "
            f"{left / size:.2f} times the cycle's: {orbit.status.sentence}"
        )
        return
    found.orbit, found.of_the_flow = orbit, True
    off, own = orbit.period / period - 1, orbit.amplitude / size if size else float("inf")
    text = f"shooting finds an orbit of the flow with period {orbit.period:.8g} +- {orbit.period_error:.0e}"
    if abs(off) <= PERIOD and abs(own - 1) <= AMPLITUDE / 5:
        found.evidence.append(f"{text}, the cycle's own within {abs(off):.1%}")
    else:
        found.evidence.append(f"{text}: the flow cycles too")
        found.against.append(
            f"the flow's orbit has {own:.2f} times the amplitude and {1 + off:.2f} times the period of Euler's cycle, "
            "which is in part of its step's making; relax with a smaller eps"
        )


def _follow(part: System, z: Tensor, periods: list[float]) -> _Ahead:
    """Follow the flow of several samples by Runge-Kutta steps, all for as long as the longest period asks for."""
    euler, longest = Stepper(part), max(periods) * part.eps
    # not above eps: Runge-Kutta's step is stable wherever Euler's is
    step = min(min(periods) / STEPS, 1.0) * part.eps
    flow = Stepper(part, "rk4", step)
    around = max(2, round(longest / part.eps))
    _, size = _amplitude(euler, z, around)
    once = max(2, round(longest / step))
    many = (FOLLOWED if min(periods) < SMOOTH else FOLLOWED // 4) * once
    end, left = _amplitude(flow, _advance(flow, z, many), once)
    times, more = _returns(flow, end, [p * part.eps for p in periods])
    return _Ahead(end, size, left, times, around + 4 * (many + once + more))


def _returns(flow: Stepper, z: Tensor, guesses: list[float]) -> tuple[list[float], int]:
    """Return the time after which the flow comes back closest, through the plane across it; the guess if it does not.

    Looked for from half of the guess to half as much again; with the steps that took.
    """
    start, across = z, flow.system.force(z).flatten(1)
    heights, gaps = [], []
    steps = round(1.5 * max(guesses) / flow.step) + 1
    for _ in range(steps):
        off = (z - start).flatten(1)
        heights.append((off * across).sum(1))
        gaps.append(torch.linalg.vector_norm(off, dim=1))
        z = flow.advance(z)
    height, gap = torch.stack(heights).double().cpu().numpy(), torch.stack(gaps).double().cpu().numpy()
    times = []
    for row, guess in enumerate(guesses):
        first, last = round(guess / 2 / flow.step), min(len(height) - 1, round(1.5 * guess / flow.step))
        h, far = height[:, row], gap[:, row]
        crossed = [n for n in range(max(first, 1), last) if h[n] <= 0 < h[n + 1]]
        best = min(crossed, key=lambda n: far[n], default=None)
        share = None if best is None else h[best] / (h[best] - h[best + 1])
        times.append(guess if best is None or share is None else float(best + share) * flow.step)
    return times, steps


def _advance(stepper: Stepper, z: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        z = stepper.advance(z)
    return z


def _amplitude(stepper: Stepper, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the state after some steps and the root mean square distance from the mean of those on the way."""
    origin, total, square = z, torch.zeros_like(z), z.new_zeros(z.shape[0])
    for _ in range(steps):
        off = z - origin
        total, square = total + off, square + off.flatten(1).square().sum(1)
        z = stepper.advance(z)
    variance = square / steps - (total / steps).flatten(1).square().sum(1)
    return z, variance.clamp(min=0).sqrt()
