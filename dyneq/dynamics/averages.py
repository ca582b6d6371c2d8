"""Time averages whose first part is left out, with standard errors by batch means and a history of bounded length."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dyneq.errors import UsageError

#: Share of the steps at the beginning that averages leave out.
SHARE = 0.2
#: Largest number of rows of a history.
ROWS = 256


@dataclass(frozen=True)
class Plan:
    """Which steps are averaged over, and where intervals, batches and rows of the history end.

    Attributes:
        steps: Steps in all.
        every: Length of an interval: one value is added to the averages at the end of each.
        batches: Number of batches of equal length.
        length: Steps of one batch, a multiple of ``every``.
        rows: Steps at which the rows of the history end, increasing, the last one ``steps``.
    """

    steps: int
    every: int
    batches: int
    length: int
    rows: tuple[int, ...]

    @classmethod
    def of(cls, steps: int, every: int, batches: int) -> Self:
        """Return the plan of a horizon.

        Args:
            steps: Steps in all.
            every: Steps between two values; the first value may come sooner, so that the last comes with the last step.
            batches: Number of batches.

        Raises:
            UsageError: If there are too few steps for that many batches.
        """
        if every < 1 or batches < 2:
            raise UsageError(
                f"exponents need an orthonormalisation every 1 or more steps and at least 2 batches for the error "
                f"bars, but {every} steps and {batches} batches were asked for"
            )
        length = int((1 - SHARE) * steps / (batches * every) + 1e-9) * every
        if not length:
            least = -(-batches * every // (1 - SHARE))
            raise UsageError(
                f"a horizon of {steps} steps is too short for {batches} batches of at least {every} each after the "
                f"first {SHARE:.0%}, which only align the tangent vectors: use at least {least:.0f} steps"
            )
        intervals = -(-steps // every)
        stride = -(-intervals // ROWS)
        ends = [steps - i * stride * every for i in range(-(-intervals // stride))]
        return cls(steps, every, batches, length, tuple(reversed(ends)))

    @property
    def aligning(self) -> int:
        """Steps at the beginning that are left out of the averages: at least the share :data:`SHARE`."""
        return self.steps - self.batches * self.length

    def ends_interval(self, step: int) -> bool:
        """Whether a value is due after step number ``step`` (the first is 1)."""
        return (self.steps - step) % self.every == 0


class Averages:
    """Running sums of what grows by an increment at the end of every interval.

    The mean is taken over everything after the first fifth of the steps. The standard error is the scatter of the means
    of the batches divided by the root of their number; where neighbouring batches are correlated beyond chance (a
    lag-one correlation c above 2/sqrt(batches): drift, or a correlation time longer than a batch) it is widened by
    sqrt((1 + c)/(1 - c)), the factor for a first-order autoregressive process.

    Source: Flegal and Jones (2010, Ann. Statist. 38, 1034) on batch means.

    Args:
        plan: Which steps are averaged.
        shape: Shape of an increment.
        device: Device of the sums.
    """

    def __init__(self, plan: Plan, shape: tuple[int, ...], device: torch.device) -> None:
        self.plan = plan
        self._batches = torch.zeros(plan.batches, *shape, dtype=torch.float64, device=device)
        self._rows = torch.zeros(len(plan.rows), *shape, dtype=torch.float64, device=device)
        self._row = 0

    def add(self, step: int, increment: Tensor) -> None:
        """Add what has grown in the interval that ends with step number ``step``."""
        while step > self.plan.rows[self._row]:
            self._row += 1
        self._rows[self._row] += increment
        behind = step - self.plan.aligning
        if behind > 0:
            self._batches[(behind - 1) // self.plan.length] += increment

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean per step, its standard error, and the history ``[row, ...]`` of means.

        A row of the history is what the mean would be had the steps ended there. The error is NaN where the mean is not
        finite.
        """
        plan = self.plan
        means = self._batches / plan.length
        mean = means.mean(0)
        centred = means - mean
        variance = centred.square().sum(0) / (plan.batches - 1)
        # of a constant series there is only rounding to correlate
        flat = variance.sqrt() <= 64 * torch.finfo(torch.float64).eps * mean.abs()
        lag = (centred[1:] * centred[:-1]).sum(0) / torch.where(flat, 1.0, centred.square().sum(0))
        lag = lag.clamp(max=1 - 1 / plan.batches)
        widened = torch.where(~flat & (lag > 2 / plan.batches**0.5), ((1 + lag) / (1 - lag)).sqrt(), 1.0)
        error = torch.where(torch.isfinite(mean), (variance / plan.batches).sqrt() * widened, torch.nan)
        return mean, error, self._history(mean)

    def _history(self, mean: Tensor) -> Tensor:
        rows, ends = [], self.plan.rows
        for i, end in enumerate(ends):
            first = next((j for j in range(i + 1) if ends[j] > SHARE * end), i)
            begin = ends[first - 1] if first else 0
            # summed anew for every row: differences of running sums would be NaN once something is -inf
            rows.append(self._rows[first : i + 1].sum(0) / (end - begin))
        rows[-1] = mean
        return torch.stack(rows)
