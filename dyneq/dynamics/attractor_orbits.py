"""The periodic orbit behind a cycle: of the map where it is one, else of the flow that Euler's step follows."""

import torch

from dyneq.dynamics.attractor_kinds import Attractor
from dyneq.dynamics.monitor import Record
from dyneq.dynamics.orbits import map_orbit, shoot
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.systems.protocol import System, Time

#: Periods the flow is followed for before its orbit is looked for: Euler's orbit may lie far from it.
FOLLOWED = 40
#: Largest relative difference in period and in amplitude between a cycle of Euler's map and the flow's that it follows.
PERIOD, AMPLITUDE = 0.25, 0.5


def orbit_system(system: System, record: Record, sample: int, token: int) -> System:
    """Return the system whose orbit a cycle of a sample is: that of the token where it starts, in a causal one.

    Args:
        system: The system of the record.
        record: The record.
        sample: The sample.
        token: Token where the motion starts, -1 without tokens.
    """
    if system.structure.causal and token >= 0:
        return TokenSystem(system, record.mean, [sample], [token])
    return system.select(torch.tensor([sample], device=record.z.device))


@torch.no_grad()
def confirm(system: System, record: Record, sample: int, found: Attractor, *, lock: int) -> None:
    """Look for the orbit of a cycle and add what comes of it to the attractor.

    Args:
        system: The system of the record.
        record: The record.
        sample: The sample.
        found: Its attractor, a cycle; changed in place.
        lock: Steps after which the state returns exactly, 0 if it does not.
    """
    one = orbit_system(system, record, sample, found.token)
    z = record.z[sample : sample + 1]
    if isinstance(one, TokenSystem):
        z = z[:, found.token]
    if system.time is Time.MAP:
        _of_map(one, z, found, lock)
    else:
        _of_flow(one, z, found)


def _of_map(one: System, z: torch.Tensor, found: Attractor, lock: int) -> None:
    leading = float(found.exponents[0]) if len(found.exponents) else 0.0
    if not lock or not leading < -3 * float(found.exponent_errors[0]):
        found.evidence.append("the rotation is not locked to a whole number of steps: an invariant closed curve")
        return
    orbit = map_orbit(one, z, lock)
    if orbit.status.good:
        found.orbit = orbit
        found.evidence.append(f"Newton's method finds the orbit of {lock} steps (it closes to {orbit.closure:.0e})")
    else:
        found.against.append(f"Newton's method does not find the orbit of {lock} steps: {orbit.status.sentence}")


def _of_flow(one: System, z: torch.Tensor, found: Attractor) -> None:
    period = found.period_steps * one.eps
    path = _flow_state(one, z, period)
    if path is None:
        found.of_the_flow = False
        found.against.append(
            "followed from here without Euler's error the state comes to rest: the cycle is one of Euler's map, made "
            "by its step; relax with a smaller eps"
        )
        return
    start, size = path
    orbit = shoot(one, start, period)
    if not orbit.status.good:
        found.against.append(f"shooting does not confirm an orbit of the flow: {orbit.status.sentence}")
        return
    found.orbit = orbit
    ratio, own = orbit.period / period, size / orbit.amplitude if orbit.amplitude else float("inf")
    text = f"shooting finds an orbit of the flow with period {orbit.period:.8g} +- {orbit.period_error:.0e}"
    if abs(ratio - 1) <= PERIOD and abs(own - 1) <= AMPLITUDE:
        found.of_the_flow = True
        found.evidence.append(f"{text}, the cycle's own within {abs(ratio - 1):.1%}")
    else:
        found.against.append(
            f"{text} and an amplitude {1 / own:.2f} times the cycle's, which is thus much of Euler's making: "
            "relax with a smaller eps"
        )


def _flow_state(one: System, z: torch.Tensor, period: float) -> tuple[torch.Tensor, float] | None:
    """Follow the flow by Runge-Kutta steps; returns a state on what it ends on and the cycle's amplitude, None at rest.

    The amplitude is that of Euler's cycle, over the last of as many of its periods.
    """
    count = max(16, round(period / one.eps)) if period / one.eps < 64 else 64
    euler, flow = Stepper(one), Stepper(one, "rk4", period / count)
    steps = max(1, round(period / one.eps))
    points, at = [], z
    for _ in range(min(2 * steps, 4000)):
        points.append(at)
        at = euler.advance(at)
    around = torch.cat(points).flatten(1)
    size = float((around - around.mean(0)).square().sum(1).mean().sqrt())
    at = z
    for _ in range(FOLLOWED * count):
        at = flow.advance(at)
    ahead = [at]
    for _ in range(count):
        ahead.append(flow.advance(ahead[-1]))
    last = torch.cat(ahead).flatten(1)
    left = float((last - last.mean(0)).square().sum(1).mean().sqrt())
    return (at, size) if left > 1e-4 * size else None
