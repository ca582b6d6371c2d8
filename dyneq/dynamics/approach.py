"""Whether a state approaches a root, at a step of each sample's own: the simulation beside the linearisation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.residuals import least_size, relative_size
from dyneq.systems.protocol import System

#: A state this much nearer to the root than it began has come to it.
ARRIVED = 1e-3
#: It is looked at this many times before the end, each time after twice as many steps.
CHECKS = 5
#: Relative difference up to which a measured rate agrees with the predicted one.
AGREEMENT = 0.25


@dataclass(frozen=True)
class Approach:
    """Distances to a root, relative to its norm.

    Attributes:
        begin: At the begin, ``[sample]``.
        half: After half of the time.
        end: At the end.
        time: Time units taken, ``[sample]``.
    """

    begin: NDArray[np.float64]
    half: NDArray[np.float64]
    end: NDArray[np.float64]
    time: NDArray[np.float64]

    @property
    def rate(self) -> NDArray[np.float64]:
        """Mean growth rate of the distance over the second half, per unit time; below 0 while it shrinks."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return 2 * np.log(self.end / self.half) / self.time

    def arrived(self) -> NDArray[np.bool_]:
        """Return which samples came to the root, or were there."""
        return (self.end <= ARRIVED * self.begin) | (self.end == 0)

    def agrees(self, rate: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which samples approach at a predicted rate (below 0) over the second half, after getting nearer."""
        nearer = (self.end < self.half) & (self.end < self.begin)
        with np.errstate(invalid="ignore"):  # a state that arrives exactly has no rate
            return nearer & (np.abs(self.rate - rate) <= AGREEMENT * np.abs(rate))

    def decelerates(self) -> NDArray[np.bool_]:
        """Return which samples come nearer, but slower than exponentially: twice the time does less than square it."""
        nearer = (self.half < 0.7 * self.begin) & (self.end < self.half)
        return nearer & (self.end * self.begin > 1.2 * self.half**2)


@torch.no_grad()
def approach(system: System, z: Tensor, root: Tensor, step: Tensor, steps: int, *, flow: bool = False) -> Approach:
    """Relax from ``z`` at a step of each sample's own and measure the distance to ``root``.

    Args:
        system: The system.
        z: Start ``[sample, ...]``.
        root: Root of each sample, of the shape of z.
        step: Step of each sample ``[sample]``, time units (1 for a map).
        steps: Number of steps at most; once every sample has arrived it ends.
        flow: Take Runge-Kutta steps of fourth order, which follow the flow, instead of Euler's.
    """
    h = step.to(z).view(-1, *[1] * (z.ndim - 1))
    least, f = least_size(system), system.force

    def distance(y: Tensor) -> NDArray[np.float64]:
        return relative_size(y - root, root, least).double().cpu().numpy()

    begin = half = end = distance(z)
    y, taken, marks = z, 0, [0, *(round(steps * 2.0**-k) for k in range(CHECKS, -1, -1))]
    for mark in marks[1:]:
        half = end
        y = _advance(f, y, h, mark - taken, flow)
        taken, end = mark, distance(y)
        if taken and bool(((end <= ARRIVED * begin) | ~np.isfinite(end)).all()):
            break
    return Approach(begin, half, end, taken * step.double().cpu().numpy())


def _advance(f: Callable[[Tensor], Tensor], y: Tensor, h: Tensor, steps: int, flow: bool) -> Tensor:
    for _ in range(steps):
        if flow:
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3))
        else:
            y = y + h * f(y)
    return y
