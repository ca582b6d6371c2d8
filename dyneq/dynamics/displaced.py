"""Whether a small displacement from a root grows or decays under Euler's steps: the stability that is observed.

Nothing here uses a derivative. The relaxation is followed from root + displacement, with the displacement rescaled
every step to the size where rounding and curvature disturb it equally, as an infinitesimal one would go. In a causal
system every token is displaced alone, its predecessors at the root: the relaxation of the whole is stable exactly where
that of every token is, and the token that leaves is known.

The norm of a displacement is no good measure of its growth: it beats while modes rotate. Its last snapshots obey a
linear recurrence, and the multipliers of that (dynamic mode decomposition; Schmid, J. Fluid Mech. 656, 2010) give the
rate within a few dozen steps, with a residual that tells how well they do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import SMALLEST
from dyneq.systems.protocol import System

#: A sample is followed until the bounds of its rate differ by at most this share of the one nearer to zero.
CLEAR = 0.5
#: Steps of the first stage.
FEWEST = 64
#: Most steps a displacement is followed.
LONGEST = 20_000
#: Snapshots a recurrence is taken from.
SNAPSHOTS = 8
#: The first-order error of a multiplier counts this many times: its condition is known within the snapshots only.
CAUTION = 3.0


@dataclass(frozen=True)
class Growth:
    """Growth of small displacements at one step size a sample.

    Attributes:
        rate: Logarithmic growth of the displacement, nats per step, ``[sample, block]``; blocks are the tokens of a
            causal system, else there is one.
        low: Lower bound of the rate; minus infinity where none is known.
        high: Upper bound of the rate; infinite where none is known.
        steps: Steps taken, ``[sample]``.
        forces: Force evaluations, in units of the whole batch.
    """

    rate: Tensor
    low: Tensor
    high: Tensor
    steps: Tensor
    forces: float


@torch.no_grad()
def displacement_growth(
    system: System, root: Tensor, eps: Tensor, horizon: float, *, generator: torch.Generator
) -> Growth:
    """Measure the growth rate of small random displacements from roots.

    The bounds are first-order estimates: residual times condition of the recurrence's multipliers, and the rounding of
    the displacement. A sample is followed, in stages of doubling length, until they are close enough to each other to
    leave the sign of its rate beyond doubt (:data:`CLEAR`), for about the horizon or :data:`LONGEST` steps at most.

    Args:
        system: A flow.
        root: Roots ``[sample, ...]``.
        eps: Step size of every sample, ``[sample]``.
        horizon: Longest time followed, in units of n eps; at least :data:`FEWEST` steps are taken.
        generator: Randomness of the displacements.
    """
    samples = root.shape[0]
    axes = 2 if system.structure.causal else 1
    blocks = root.shape[1] if axes == 2 else 1
    rate = torch.full((samples, blocks), torch.nan, dtype=torch.float64, device=root.device)
    low, high = torch.full_like(rate, -torch.inf), torch.full_like(rate, torch.inf)
    taken = torch.zeros(samples, dtype=torch.int64)
    most = torch.round(horizon / eps.double().cpu()).clamp(FEWEST, LONGEST).long()
    walk, length, forces = _Walk(system, root, eps, axes, generator), FEWEST, 0.0
    while True:
        found, bottom, top = walk.stage(length)
        taken[walk.at.cpu()] += length
        forces += (length + 1) * len(walk.at) / samples
        # a block's best stage stands: by the next one its leading modes may be so alike that they are told apart less
        better = top - bottom < high[walk.at] - low[walk.at]
        for kept, new in ((rate, found), (low, bottom), (high, top)):
            kept[walk.at] = torch.where(better, new, kept[walk.at])
        below, above = low[walk.at].amax(1), high[walk.at].amax(1)
        clear = above - below <= CLEAR * torch.maximum(below, -above)
        done = clear.cpu() | (taken[walk.at.cpu()] + length > most[walk.at.cpu()])
        if bool(done.all()):
            return Growth(rate, low, high, taken, forces)
        walk.keep(~done)
        length = min(2 * length, int((most - taken)[walk.at.cpu()].max()))


class _Walk:
    """Displacements of some samples on their way."""

    def __init__(self, system: System, root: Tensor, eps: Tensor, axes: int, generator: torch.Generator) -> None:
        self.whole, self.system, self.axes = system, system, axes
        self.at, self.root = torch.arange(root.shape[0], device=root.device), root
        self.eps = eps.to(root).view(-1, *[1] * (root.ndim - 1))
        start = system.initial_state().detach()
        size = torch.maximum(self._norm(root), SMALLEST * self._norm(start))
        # where rounding of F (u/d) and its curvature (d) disturb the displacement d equally
        self.size = math.sqrt(torch.finfo(root.dtype).eps) * torch.where(size > 0, size, 1.0)
        drawn = torch.randn(root.shape, generator=generator, dtype=torch.float64).to(root)
        self.v = drawn / self._norm(drawn)

    def _norm(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x.flatten(self.axes), dim=self.axes)
        return norm.view(*norm.shape, *[1] * (x.ndim - self.axes))

    def keep(self, mask: Tensor) -> None:
        """Follow only some of the samples from here."""
        m = mask.to(self.at.device)
        self.at = self.at[m]
        self.system = self.whole.select(self.at)
        self.root, self.eps, self.size, self.v = self.root[m], self.eps[m], self.size[m], self.v[m]

    def stage(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take steps; return rate, lower and upper bound ``[sample, block]`` at their end."""
        lag = max(1, length // (4 * SNAPSHOTS))
        context = self.root if self.axes == 2 else None
        rest = self.system.force(self.root)
        unit = torch.finfo(self.root.dtype).eps
        shape = self.v.shape[: self.axes]
        steepest = torch.zeros(shape, dtype=self.v.dtype, device=self.v.device)
        grown_by = torch.zeros(shape, dtype=torch.float64, device=self.v.device)
        snapshots: list[Tensor] = []
        growths: list[Tensor] = []
        for n in range(length + 1):
            if (length - n) % lag == 0 and (length - n) // lag <= SNAPSHOTS:
                snapshots.append(self.v.flatten(self.axes).double())
                growths.append(grown_by)
                grown_by = torch.zeros_like(grown_by)
            if n == length:
                break
            push = (self.system.force(self.root + self.size * self.v, context) - rest) / self.size
            moved = self.v + self.eps * push
            size = self._norm(moved)
            # of a displacement that is gone but for rounding nothing is left to follow
            self.v = torch.where(size > unit, moved / size, 0.0)
            steepest = torch.maximum(steepest, self._norm(push).view(shape))
            grown_by = grown_by + size.view(shape).double().clamp(min=unit).log()
        columns = torch.stack(snapshots, -1)
        factors = torch.stack(growths[1:], -1).exp()
        rate, low, high = _recurrence(columns.flatten(0, self.axes - 1), factors.flatten(0, self.axes - 1), unit)
        # each step adds rounding and curvature of the displacement, of about the root of the unit roundoff
        noise = 8 * math.sqrt(unit) * (self.eps.view(-1, *[1] * (self.axes - 1)) * steepest).double() + 4 * unit
        rate, low, high = (x.view(len(self.at), -1) / lag for x in (rate, low, high))
        noise = noise.view(len(self.at), -1)
        return rate, low - noise, high + noise


def _recurrence(columns: Tensor, factors: Tensor, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of the largest multiplier of a sequence of vectors, and bounds of it, each ``[batch]``.

    Args:
        columns: Unit vectors ``[batch, dim, k + 1]``; each is the image of the one before divided by its factor.
        factors: ``[batch, k]``.
        unit: Unit roundoff of the arithmetic they come from.
    """
    start, image = columns[..., :-1], columns[..., 1:] * factors.unsqueeze(1)
    broken = ~(torch.isfinite(start).all(-1).all(-1) & torch.isfinite(image).all(-1).all(-1))
    start, image = (torch.where(broken[:, None, None], 0.0, x) for x in (start, image))
    square, turn = torch.linalg.eigh(start.mT @ start)
    # directions that the rounding of the displacement reaches are none
    kept = square > (32**2 * unit) * square[:, -1:].clamp(min=unit)
    scale = torch.where(kept, 1 / torch.where(kept, square, 1.0).sqrt(), 0.0)
    basis, mapped = ((x @ turn) * scale.unsqueeze(1) for x in (start, image))
    small = basis.mT @ mapped
    left = mapped - basis @ small
    theta, vectors = torch.linalg.eig(small)
    inverse, failed = torch.linalg.inv_ex(vectors)
    condition = torch.linalg.vector_norm(inverse, dim=2) * torch.linalg.vector_norm(vectors, dim=1)
    residual = torch.linalg.vector_norm(left.to(vectors.dtype) @ vectors, dim=1)
    error = torch.where((failed != 0).unsqueeze(1), torch.inf, CAUTION * condition * residual)
    modulus = theta.abs()
    # 0 stands for directions that are none, and for displacements that are gone: their rate is below all others
    rate, high = modulus.clamp(min=unit).log().amax(1), (modulus + error).clamp(min=unit).log().amax(1)
    low = (modulus - error).clamp(min=0.0).log().amax(1)
    unknown = broken | ~torch.isfinite(high)
    return (
        torch.where(unknown, torch.nan, rate),
        torch.where(unknown, -torch.inf, low),
        torch.where(unknown, torch.inf, high),
    )
