"""A ring of three units, each inhibiting the next: the smallest such circuit that can oscillate."""

import torch

from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import System


def ring(gain: float = 1.8) -> System:
    """Return dz_i/dt = -z_i - gain tanh(z_{i-1}) for four samples; it has no loss.

    At the root z = 0 the eigenvalues are -1 - gain w for the three cube roots w of 1: a Hopf bifurcation at gain = 2,
    where -1 + gain/2 crosses 0.

    Args:
        gain: Strength of the inhibition.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return from_ode(lambda z: -z - gain * torch.tanh(z.roll(1, dims=1)), start, eps=0.1, name="ring")
