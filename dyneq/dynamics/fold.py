"""Folds: the scalar equation s' = a + b s + c s^2 that a state obeys along its one nearly neutral real direction.

Where its discriminant b^2 - 4 a c is negative there is no root near, and the state passes the place where two roots
have vanished (a ghost) in the time 2 pi/sqrt(4 a c - b^2); Strogatz, Nonlinear Dynamics and Chaos (2015), section 4.3.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.multilinear import form
from dyneq.systems.protocol import System

#: Largest state whose Jacobian is formed for this.
LIMIT = 768
#: The scalar equation holds where its own rates are below this share of all others, and the force lies along its
#: direction up to this share.
SEPARATION = 0.2


@dataclass(frozen=True)
class Fold:
    """The scalar equation of one sample.

    Attributes:
        constant: a, speed along the direction at the state.
        linear: b, the real eigenvalue nearest to 0.
        quadratic: c.
        gap: Smallest modulus of the other eigenvalues, per unit time; infinite if there is none.
        aside: Share of the force that does not lie along the direction.
        norm: Norm of the state, or of the initial state where that is larger.
        cubic: Next coefficient of the series, of s^3.
    """

    constant: float
    linear: float
    quadratic: float
    gap: float
    aside: float
    norm: float
    cubic: float = 0.0

    @property
    def discriminant(self) -> float:
        """b^2 - 4 a c; below 0 there is no root near."""
        return self.linear**2 - 4 * self.constant * self.quadratic

    @property
    def valid(self) -> bool:
        """Whether the scalar equation describes the state: one slow direction, along which it moves, and a near vertex.

        The vertex of the parabola has to lie within the size of the state, and the next term of the series has to be
        small as far as the bottleneck reaches: beyond that the quadratic is no local one.
        """
        slow = math.sqrt(abs(self.constant * self.quadratic)) + abs(self.linear)
        if self.quadratic == 0:
            return False
        vertex = abs(self.linear / (2 * self.quadratic))
        far = vertex + math.sqrt(abs(self.discriminant)) / (2 * abs(self.quadratic))
        near = vertex <= max(self.norm, 1e-12) and abs(self.cubic) * far <= SEPARATION * abs(self.quadratic)
        return self.gap > 0 and slow <= SEPARATION * self.gap and self.aside <= SEPARATION and near

    @property
    def ghost(self) -> bool:
        """Whether the state passes a place where two roots have vanished."""
        return self.valid and self.discriminant < 0

    @property
    def passage(self) -> float:
        """Time the whole passage takes, 2 pi/sqrt(4 a c - b^2); infinite where there is a root."""
        return 2 * math.pi / math.sqrt(-self.discriminant) if self.discriminant < 0 else math.inf


@torch.no_grad()
def read_fold(system: System, z: Tensor) -> Fold | None:
    """Return the scalar equation at a state of one sample ``[1, ...]``.

    Args:
        system: The system of that one sample.
        z: State, finite.

    Returns:
        None where the state is too large for its Jacobian, or no real eigenvalue is nearer to 0 than every other.
    """
    if z[0].numel() > LIMIT:
        return None
    j = Linearization(system, z).dense()[0].double().cpu().numpy()
    mu, right = np.linalg.eig(j)
    order = np.argsort(np.abs(mu))
    first = order[0]
    if mu[first].imag != 0:
        return None
    left = np.linalg.eig(j.T)
    other = int(np.argmin(np.abs(left[0] - mu[first])))
    q, p = np.real(right[:, first]), np.real(left[1][:, other])
    overlap = float(p @ q)
    if overlap == 0:
        return None
    p = p / overlap
    f = system.force(z).flatten().double().cpu().numpy()
    direction = torch.as_tensor(q).to(z).view_as(z)

    bend = form(system.force, z, [direction, direction]).flatten().double().cpu().numpy()
    a = float(p @ f)
    size = float(np.linalg.norm(f))
    aside = float(np.linalg.norm(f - a * q)) / size if size > 0 else 0.0
    gap = float(np.abs(mu[order[1]])) if len(order) > 1 else math.inf
    third = form(system.force, z, [direction, direction, direction]).flatten().double().cpu().numpy()
    norm = max(float(torch.linalg.vector_norm(y)) for y in (z, system.initial_state()))
    return Fold(a, float(mu[first].real), float(p @ bend) / 2, gap, aside, norm, float(p @ third) / 6)
