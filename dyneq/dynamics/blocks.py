"""A series of unknown length in a fixed number of blocks: when there are too many, neighbours are joined."""

import torch
from torch import Tensor


class Blocks:
    """Largest, least and mean values of a series over blocks of equal length, which doubles when they are all used.

    Args:
        capacity: Blocks kept at most; even.
        like: One row of the series, for shape, type and device.
    """

    def __init__(self, capacity: int, like: Tensor) -> None:
        self.capacity = capacity + capacity % 2
        self.length, self.used = 1, 0
        self._high = like.new_empty(self.capacity, *like.shape)
        self._low, self._mean = torch.empty_like(self._high), torch.empty_like(self._high)
        self._part: tuple[Tensor, Tensor, Tensor] | None = None
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Append rows ``[n, ...]`` of the series."""
        while len(rows):
            take = min(self.length - self._count, len(rows))
            taken, rows = rows[:take], rows[take:]
            high, low, total = taken.amax(0), taken.amin(0), taken.sum(0)
            if self._part is not None:
                high, low = torch.maximum(high, self._part[0]), torch.minimum(low, self._part[1])
                total = total + self._part[2]
            self._part, self._count = (high, low, total), self._count + take
            if self._count == self.length:
                self._store()

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return first row and number of rows of every block ``[block]``, and its largest, least and mean values."""
        n = self.used
        start = self.length * torch.arange(n + 1)
        count = torch.full((n,), self.length)
        high, low, mean = self._high[:n], self._low[:n], self._mean[:n]
        if self._part is None:
            return start[:n], count, high.clone(), low.clone(), mean.clone()
        last = (self._part[0], self._part[1], self._part[2] / self._count)
        high, low, mean = (torch.cat([a, b[None]]) for a, b in zip((high, low, mean), last, strict=True))
        return start, torch.cat([count, torch.tensor([self._count])]), high, low, mean

    def _store(self) -> None:
        assert self._part is not None
        self._high[self.used], self._low[self.used] = self._part[0], self._part[1]
        self._mean[self.used] = self._part[2] / self.length
        self._part, self._count, self.used = None, 0, self.used + 1
        if self.used == self.capacity:
            half = self.capacity // 2
            self._high[:half] = self._high.unflatten(0, (half, 2)).amax(1)
            self._low[:half] = self._low.unflatten(0, (half, 2)).amin(1)
            self._mean[:half] = self._mean.unflatten(0, (half, 2)).mean(1)
            self.length, self.used = 2 * self.length, half
