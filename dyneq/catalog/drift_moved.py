"""What of the gradient moved over the snapshots by more than its intervals.

Between the first and the last snapshot, a quantity moved if its two 95 % intervals do not overlap. For what happened in
between the pair of snapshots is chosen after looking, so there the intervals are widened until they hold at all m
snapshots at once: 1 - 0.05/m each (Bonferroni; Dunn, J. Am. Stat. Assoc. 56, 52, 1961), by the ratio of Student's
quantiles. The same samples are used at every snapshot, so that differences are known better than this test assumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from dyneq.catalog.drift_follow import SERIES, Series
from dyneq.catalog.drift_parts import LEVEL
from dyneq.probes.base import Finding

Array = NDArray[np.float64]

#: What is moved by less is told in brief: the difference of a share, or the relative one of other quantities.
SLIGHT = 0.01


@dataclass(frozen=True)
class Move:
    """Two snapshots between which a quantity moved.

    Attributes:
        begin: Index of the earlier one.
        end: Index of the later one.
    """

    begin: int
    end: int


@dataclass(frozen=True)
class Course:
    """One quantity over the snapshots.

    Attributes:
        steps: Steps of the snapshots ``[snapshot]``.
        value: Its value ``[snapshot]``.
        low: Lower end of its interval; NaN where there is none.
        high: Upper end.
        count: Batches or samples the interval is over.
        scale: As in :class:`~dyneq.catalog.drift_follow.Series`.
        size: What a change is small against; None for the values themselves.
    """

    steps: Sequence[int]
    value: Array
    low: Array
    high: Array
    count: Array
    scale: str
    size: float | None = None

    @property
    def known(self) -> NDArray[np.intp]:
        """Return the snapshots at which there is an interval."""
        return np.flatnonzero(np.isfinite(self.value + self.low + self.high))

    def between_ends(self) -> Move | None:
        """Return the first and the last known snapshot if their intervals do not overlap."""
        if len(self.known) < 2:
            return None
        i, j = int(self.known[0]), int(self.known[-1])
        return Move(i, j) if self.low[i] > self.high[j] or self.low[j] > self.high[i] else None

    def anywhere(self) -> Move | None:
        """Return the two snapshots that lie farthest apart if intervals that hold at all of them do not overlap."""
        known = self.known
        if len(known) < 2:
            return None
        low, high = self.at_once()
        top, bottom = int(known[np.argmax(low[known])]), int(known[np.argmin(high[known])])
        return Move(min(top, bottom), max(top, bottom)) if low[top] > high[bottom] else None

    def at_once(self) -> tuple[Array, Array]:
        """Return the ends of intervals that hold at all known snapshots at once."""
        alpha, freedom = 1 - LEVEL, np.maximum(self.count - 1, 1)
        wider = stats.t.ppf(1 - alpha / 2 / max(1, len(self.known)), freedom) / stats.t.ppf(1 - alpha / 2, freedom)
        if self.scale != "log":
            return self.value + wider * (self.low - self.value), self.value + wider * (self.high - self.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            value, low, high = (np.log(x) for x in (self.value, self.low, self.high))
            ends = np.exp(value + wider * (low - value)), np.exp(value + wider * (high - value))
        exact = self.low == self.high  # a ratio of 0 has no logarithm, and no error either
        return np.where(exact, self.low, ends[0]), np.where(exact, self.high, ends[1])

    def slight(self, move: Move) -> bool:
        """Return whether a move is too small to matter."""
        a, b = self.value[move.begin], self.value[move.end]
        size = 1.0 if self.scale == "share" else self.size if self.size is not None else max(abs(a), abs(b))
        return bool(abs(a - b) <= SLIGHT * size)

    def told(self, i: int) -> str:
        """Return value, interval and step."""
        return f"{with_ends(self.value[i], self.low[i], self.high[i])} at step {self.steps[i]}"


def course(ds: xr.Dataset, series: Series, entry: int = 0) -> Course:
    """Return one quantity of a drift.

    Args:
        ds: The series of one run.
        series: Which quantity.
        entry: Index along its dimension.
    """
    one = ds.isel({series.along: entry}) if series.along else ds
    low, high = one[f"{series.name}_interval"].transpose("bound", "step").values
    count = ds[series.count].values if series.count in ds else np.full(ds.sizes["step"], 2.0)
    size = float(np.nanmax(np.abs(ds[series.yardstick].values))) if series.yardstick else None
    steps = [int(s) for s in ds["step"].values]
    return Course(steps, one[series.name].values, low, high, count, series.scale, size)


def moved(ds: xr.Dataset) -> list[Finding]:
    """Return for every followed quantity what moved beyond its intervals, and of what that is not known.

    Args:
        ds: The series of one run.
    """
    found: list[Finding] = []
    still: list[str] = []
    slight: list[str] = []
    without: list[str] = []
    for series in SERIES:
        if series.name not in ds or f"{series.name}_interval" not in ds:
            continue
        words = series.words.format(ds[series.name].attrs.get("reference", "the reference"))
        moves: dict[str, list[str]] = {}  # the same is said once
        for i, entry in enumerate(ds[series.along].values if series.along else [""]):
            one = course(ds, series, i)
            name = f"{series.head} of {entry}" if series.along else series.head
            if not np.isfinite(one.value).any():
                continue
            if len(one.known) < 2:
                without.append(name)
                continue
            text, small = _told(one)
            if not text:
                still.append(name)
            elif small:
                slight.append(name)
            else:
                moves.setdefault(text, []).append(str(entry))
        if moves:
            told = [f"{', '.join(entries)}: {text}" if any(entries) else text for text, entries in moves.items()]
            found.append(Finding("fact", f"{words} moved beyond its intervals: {'; '.join(told)}"))
    if slight:
        found.append(
            Finding(
                "fact",
                f"moved beyond their intervals, but by less than {SLIGHT:g} (k and loss: relative"
                f"): {', '.join(slight)}",
            )
        )
    if still:
        found.append(
            Finding(
                "undetermined",
                "not known to have moved, since the intervals of the snapshots overlap: " + ", ".join(still),
            )
        )
    if without:
        text = "whether these moved cannot be told, for want of intervals at two snapshots (use more batches): "
        found.append(Finding("undetermined", text + ", ".join(without)))
    return found


def _told(one: Course) -> tuple[str, bool]:
    """Return how a quantity moved, empty if it is not known to have, and whether that is slight."""
    ends, somewhere = one.between_ends(), one.anywhere()
    chosen = [m for m in (ends, somewhere) if m is not None]
    if not chosen:
        return "", False
    small = all(one.slight(m) for m in chosen)
    parts = []
    if ends is not None:
        rose = one.value[ends.end] > one.value[ends.begin]
        parts.append(f"{'rose' if rose else 'fell'} from {one.told(ends.begin)} to {one.told(ends.end)}")
    if somewhere is not None and somewhere != ends and not (ends is not None and _within_ends(one, somewhere)):
        parts.append(
            f"{'and ' if parts else ''}was {one.told(somewhere.begin)} and {one.told(somewhere.end)}, apart also by "
            "intervals that hold at all snapshots at once"
        )
    return ", ".join(parts), small


def _within_ends(one: Course, move: Move) -> bool:
    """Return whether an excursion lies within the values at the first and last snapshots."""
    first, last = one.value[one.known[0]], one.value[one.known[-1]]
    least, most = min(first, last), max(first, last)
    return all(least <= one.value[i] <= most for i in (move.begin, move.end))


def with_ends(value: float, low: float, high: float) -> str:
    """Return ``0.98 [0.91, 1.05]``, ``-`` for what is not known."""
    if not np.isfinite(value):
        return "-"
    return f"{_number(value)} [{_number(low)}, {_number(high)}]" if np.isfinite(low + high) else f"{_number(value)} [?]"


def _number(x: float) -> str:
    """Return a number in three digits; near 1 how far it is from there."""
    if 0.999 < abs(x) < 1 and x > 0:
        return f"1 - {1 - x:.0e}"
    return f"{x:.3g}"
