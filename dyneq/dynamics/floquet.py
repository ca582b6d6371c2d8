"""Floquet multipliers of a periodic orbit: leading pairs, small ones in logarithms, and by token in causal blocks."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dyneq.dynamics.orbits import Orbit
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Floquet:
    """Leading Floquet multipliers of one orbit, by modulus, largest first, conjugate pairs whole, +imag first.

    Attributes:
        multipliers: Complex ``[k]``; exactly 0 only where the logarithm is below the range of float64.
        log_modulus: log abs(multiplier) ``[k]``, from QR products around the orbit.
        log_error: Estimated error of ``log_modulus`` ``[k]``: discretisation and iteration.
        residual: norm(M v - mu v) for unit v ``[k]``, a backward error; NaN where mu is below what products resolve.
        condition: 1/abs(w^H v) ``[k]``; NaN where unknown.
        token: Token each multiplier belongs to ``[k]``, or None where the whole sample was taken.
        trivial: Index of the trivial multiplier (nearest to 1); -1 for maps, which have none.
        trivial_error: abs(mu - 1) of it, the error bar of all; NaN for maps.
        products: Products with the Jacobian, of one vector each.
    """

    multipliers: NDArray[np.complex128]
    log_modulus: NDArray[np.float64]
    log_error: NDArray[np.float64]
    residual: NDArray[np.float64]
    condition: NDArray[np.float64]
    token: NDArray[np.int64] | None
    trivial: int
    trivial_error: float
    products: int


@torch.no_grad()
def floquet(
    system: System, orbit: Orbit, count: int = 6, *, per_token: bool = False, generator: torch.Generator
) -> Floquet:
    """Compute the leading Floquet multipliers of an orbit.

    Args:
        system: The system of the orbit, one sample.
        orbit: From :func:`dyneq.dynamics.orbits.shoot`, ``map_orbit`` or ``follow_orbit``.
        count: Multipliers wanted (one more where the last is half of a conjugate pair).
        per_token: Whether to take the products of the token-diagonal blocks of a causal system, so that every
            multiplier has an address; their union over tokens is the spectrum of the whole.
        generator: Randomness of the starts.
    """
    raise NotImplementedError
