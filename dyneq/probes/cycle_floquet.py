"""Floquet multipliers of the orbits that were found, of the token where a cycle starts or of all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.attractor_kinds import Attractor
from dyneq.dynamics.attractor_orbits import orbit_system
from dyneq.dynamics.floquet import Floquet, floquet
from dyneq.dynamics.orbits import Orbit, follow_orbit
from dyneq.dynamics.stepping import Stepper
from dyneq.errors import DyneqError
from dyneq.systems.protocol import System

#: Periods for which the tokens after the cycling one are given time to follow it.
FOLLOWING = 60


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of the orbit of one sample.

    Attributes:
        found: Them, as :func:`dyneq.dynamics.floquet.floquet` returns them; None where they could not be had.
        token: Token of each, -1 without tokens.
        reason: Why they could not be had.
    """

    found: Floquet | None
    token: NDArray[np.int64]
    reason: str = ""


@torch.no_grad()
def multipliers(
    system: System, attractors: Sequence[Attractor], count: int, *, all_tokens: bool, seed: int
) -> dict[int, Multipliers]:
    """Return the leading Floquet multipliers of every sample with an orbit, by sample.

    Args:
        system: The system.
        attractors: One a sample.
        count: How many.
        all_tokens: Whether to take all tokens of a causal block along the orbit of the whole sample; else the token
            where the cycle starts, by itself.
        seed: Seed of the solver's starts.
    """
    result = {}
    for i, a in enumerate(attractors):
        if a.orbit is None:
            continue
        generator = torch.Generator().manual_seed(seed)
        try:
            if all_tokens and system.structure.causal and a.token >= 0:
                one = system.select(torch.tensor([i], device=a.mean.device))
                orbit = _whole(one, a, a.orbit)
                found = floquet(one, orbit, count, per_token=True, generator=generator)
                token = np.asarray(found.token)
            else:
                mean = torch.stack([b.mean for b in attractors])
                one = orbit_system(system, mean, [i], [a.token])
                found = floquet(one, a.orbit, count, generator=generator)
                token = np.full(len(found.multipliers), a.token)
        except DyneqError as error:
            result[i] = Multipliers(None, np.zeros(0, dtype=np.int64), str(error))
            continue
        result[i] = Multipliers(found, token)
    return result


def _whole(one: System, a: Attractor, orbit: Orbit) -> Orbit:
    """Return the orbit of a whole sample: its token on its own orbit, the later ones brought to follow it."""
    z: Tensor = a.mean[None].clone()
    z[:, a.token] = orbit.z
    stepper = Stepper(one, orbit.scheme, orbit.period / orbit.steps if orbit.scheme == "rk4" else None)
    for _ in range(FOLLOWING * orbit.steps):
        z = stepper.advance(z)
        # whatever error of rounding the earlier tokens have must not make the orbit slip
    return follow_orbit(one, z, orbit.period, orbit.steps, scheme=orbit.scheme)
