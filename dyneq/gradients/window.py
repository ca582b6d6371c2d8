"""How far finite nudges are from infinitely small ones: the harmonics of z(beta) that they alias.

The states of a nudged phase are a function z(beta), whose first harmonic on the circle abs(beta) = r is the response
that is wanted. N nudges cannot tell it from the harmonics 1 +- N, 1 +- 2 N, ...: two opposite ones not from odd powers,
a single one not from any. What acts on a nudged state beside its linear response,
    F(z + d) - F(z) - J d - beta (g(z + d) - g(z)),
has no first harmonic for an exact z(beta); the one its samples show is what was aliased, r (J^T a + g) where the phase
has settled. It sees the curvature of the loss as well as that of the force.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.nudge import Nudge
from dyneq.systems.protocol import System

#: Aliasing above which an estimate is marked: its error is that times the condition of J as the adjoint sees it.
ALIASING = 2e-2


class Circle:
    """The N-th roots of unity in the closed upper half plane, for functions f with f(conj x) = conj f(x).

    Args:
        n: N; 1 is a single nudge, 2 are two opposite ones.

    Attributes:
        points: The roots; plain floats where they are real.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        angles = [2 * math.pi * k / n for k in range(1, (n + 1) // 2)]
        self.points: list[float | complex] = [1.0]
        self.points += [-1.0] if n % 2 == 0 else []
        self.points += [complex(math.cos(t), math.sin(t)) for t in angles]

    def harmonic(self, values: Sequence[Tensor], m: int) -> Tensor:
        """Return the m-th Fourier coefficient of ``values`` at :attr:`points`; real by the symmetry."""
        total = torch.zeros_like(values[0])
        for point, value in zip(self.points, values, strict=True):
            if isinstance(point, complex):
                weight = point.conjugate() ** m  # and the conjugate point adds the conjugate
                total = total + 2 * (weight.real * value.real - weight.imag * value.imag)
            else:
                total = total + point**m * value
        return total / self.n


@dataclass(frozen=True)
class Nudged:
    """Where nudges took a state.

    Attributes:
        circle: The nudges, in units of r.
        deviations: z(beta) - z* of each, of the state's shape.
        r: Radius: the strength of the nudge.
    """

    circle: Circle
    deviations: Sequence[Tensor]
    r: float


@torch.no_grad()
def window(system: System, z: Tensor, nudged: Nudged, nudge: Nudge) -> tuple[Tensor, Tensor]:
    """Return the share of the force's response that is not linear, the worst over nudges, and the aliasing.

    Args:
        system: The system.
        z: State ``[sample, ...]`` the deviations are from.
        nudged: The nudges and their deviations.
        nudge: The loss gradient that was used.

    Returns:
        norm(F(z + d) - F(z) - J d)/norm(J d) and the aliased part of norm(J^T a + g)/norm(g), both ``[sample]``; NaN
        where a state has no force.
    """
    product, force, g = system.linearize(z)[0], system.force(z), nudge(z)
    bent, rests = torch.zeros_like(sample_norm(z)), []
    for point, d in zip(nudged.circle.points, nudged.deviations, strict=True):
        if d.is_complex():
            linear = torch.complex(product(d.real.contiguous()), product(d.imag.contiguous()))
        else:
            linear = product(d)
        rest = system.force(z + d) - force - linear
        bent = torch.maximum(bent, sample_norm(rest) / sample_norm(linear))  # NaN wins
        rests.append(rest - nudged.r * point * (nudge(z + d) - g))
    return bent, sample_norm(nudged.circle.harmonic(rests, 1)) / (nudged.r * sample_norm(g))
