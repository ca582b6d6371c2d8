"""What the residual probe records as a relaxation goes, in memory that does not grow with its length."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.trajectory import Recorder, Trajectory

#: Forces below this many units in the last place of the state are taken for rounding and left out of fits.
NOISE = 100
#: Fewest recorded steps a slope is fitted to.
FEWEST = 4


@dataclass
class Mean:
    """A time mean of the states from step ``first`` up to, not including, step ``last``, weighted by a smooth bump.

    The weights exp(-1/(t (1 - t))), t from 0 to 1 over the window, make the mean of a periodic or quasiperiodic motion
    converge faster than any power of the window's length, with no period to be known: the weighted Birkhoff average
    (Das, Saiki, Sander, Yorke, Nonlinearity 30, 2017). A plain mean is off by the part of a period left over.
    """

    first: int
    last: int
    total: Tensor | None = None
    weight: float = 0.0

    def add(self, step: int, z: Tensor) -> None:
        """Add the state before a step, if it lies in the window."""
        if self.first <= step < self.last:
            t = (step - self.first + 0.5) / (self.last - self.first)
            w = math.exp(-1 / (t * (1 - t)))
            self.total = w * z if self.total is None else self.total.add_(z, alpha=w)
            self.weight += w

    def value(self) -> Tensor | None:
        """Return the mean ``[sample, ...]``, None of an empty window."""
        # the bump of a window of one or two steps is small, but never 0
        return None if self.total is None or not self.weight else self.total / self.weight


@dataclass
class Slope:
    """A least-squares line through (step, log norm(F)) for every sample, by running sums.

    Args:
        first: First step.
        last: Step after the last one.
    """

    first: int
    last: int
    sums: Tensor | None = None

    def add(self, step: int, log_norm: Tensor, judged: Tensor) -> None:
        """Add one step: log norm(F) ``[sample]`` and which samples it counts for."""
        if not self.first <= step < self.last:
            return
        x = step - (self.first + self.last) / 2  # near 0, so that the sums do not cancel
        y = torch.where(judged, log_norm, 0.0)
        one = judged.to(y)
        row = torch.stack([one, x * one, x * x * one, y, x * y])
        self.sums = row if self.sums is None else self.sums.add_(row)

    def value(self, like: Tensor) -> Tensor:
        """Return the slope ``[sample]``, per step; NaN where fewer than :data:`FEWEST` steps count."""
        return slope_of(self.sums, like)


def slope_of(sums: Tensor | None, like: Tensor) -> Tensor:
    """Return the slope of a line from its sums of 1, x, x^2, y and xy ``[5, sample]``."""
    if sums is None:
        return like.new_full(like.shape[:1], torch.nan, dtype=torch.float64)
    n, x, xx, y, xy = sums
    return torch.where(n >= FEWEST, (n * xy - x * y) / (n * xx - x * x), torch.nan)


class Averager(Recorder):
    """Records time means of the state and how fast the force decays between depths.

    Args:
        eps: Step size.
        depths: Depths, increasing.
    """

    def __init__(self, eps: float, depths: list[int]) -> None:
        depth = depths[-1]
        super().__init__(eps, depth)
        self.means = (Mean(depth // 2, depth), Mean(depth - depth // 4, depth))
        self.whole, self.halves = [], []
        for first, last in zip([0, *depths[:-1]], depths, strict=True):
            middle = (first + last) // 2
            self.whole.append(Slope(first, last))
            self.halves.append((Slope(first, middle), Slope(middle, last)))
        self._at = -1

    def add(self, step: int, z: Tensor, f: Tensor, least: Tensor | None = None) -> None:
        """Record the state and force before step number ``step``."""
        self._at = step
        for mean in self.means:
            mean.add(step, z)
        norm = sample_norm(f).double()
        # a NaN is not judged either
        judged = (norm > NOISE * torch.finfo(z.dtype).eps * sample_norm(z).double()) & torch.isfinite(norm)
        log_norm = norm.log()
        for whole, halves in zip(self.whole, self.halves, strict=True):
            if whole.first <= step < whole.last:
                for slope in (whole, *halves):
                    slope.add(step, log_norm, judged)

    def rest(self, z: Tensor) -> None:
        """Count the state for all steps that were not taken because they would not have changed it."""
        for step in range(self._at + 1, self.depth):
            for mean in self.means:
                mean.add(step, z)
        self._at = self.depth

    def finish(self, like: Tensor) -> Trajectory:
        """Return the record as far as a root finder needs it: the mean over the second half."""
        empty = like.new_empty(0, like.shape[0])
        return Trajectory(self.eps, empty, empty[..., None], None, self.means[0].value())

    def rates(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope of log norm(F) up to each depth from the one before, and its error ``[depth, sample]``.

        The error is half the difference between the slopes of the two halves: what curvature and oscillation, not
        noise, make of it.
        """
        slope = torch.stack([s.value(like) for s in self.whole])
        first, second = (torch.stack([pair[i].value(like) for pair in self.halves]) for i in (0, 1))
        return slope, (second - first).abs() / 2
