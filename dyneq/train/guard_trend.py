"""When a noisy quantity will cross a level: a robust line through the last looks, with its band."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

#: Looks below which no trend is told: the band of n points covers at most 1 - 2/n!, which 3 leave at 67 %.
FEWEST = 4
#: Coverage of the band, as far as so few points allow it (92 % for 4).
COVERAGE = 0.9


@dataclass(frozen=True)
class Forecast:
    """When a quantity will cross a level from below, counted in updates from the last look.

    Attributes:
        updates: By the fitted line; 0 if it is there already, infinite if it does not rise, None if undetermined.
        earliest: By the steepest slope of the band; None if there is no band.
        latest: By the flattest; infinite if that does not rise, None if there is no band.
        rises: Whether it rises, by the whole band; None if that is not known.
    """

    updates: float | None
    earliest: float | None = None
    latest: float | None = None
    rises: bool | None = None

    def number(self) -> float | str:
        """Return it for the log: updates, ``none`` or ``undetermined``."""
        if self.updates is None:
            return "undetermined"
        return "none" if math.isinf(self.updates) else self.updates

    def __str__(self) -> str:
        if self.updates is None:
            return "its trend is undetermined"
        if self.latest == 0:
            return "now"
        if math.isinf(self.updates):
            return "it does not rise"
        assert self.earliest is not None
        assert self.latest is not None
        latest = "never" if math.isinf(self.latest) else f"{self.latest:.0f}"
        when = "now" if self.updates < 0.5 else f"in {self.updates:.0f} updates"
        return f"by its trend {when} (between {self.earliest:.0f} and {latest})"


def forecast(at: Sequence[float], values: Sequence[float], level: float) -> Forecast:
    """Return when a quantity will cross a level, from the line of Theil and Sen through what was seen of it.

    The slope is the median over all pairs of looks, its band that of Sen (J. Am. Stat. Assoc. 63, 1968), by Kendall's
    tau; its height is the median too, at the median time, through which the lines of the band go. Where the band holds
    slopes of both signs, or fewer than :data:`FEWEST` values are finite, whether it rises is not known, and neither is
    when it crosses.

    Args:
        at: Times of the looks, in updates, rising.
        values: What was seen. Values that are not finite are left out; if the last one is, all is undetermined.
        level: The level.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(at) != len(values):
        raise ValueError(f"a trend takes as many times as values, got {len(at)} and {len(values)}.")
    if not values or not math.isfinite(values[-1]):
        return Forecast(None)
    x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    slope = low = high = rises = None
    if len(y) >= FEWEST:
        slope, _, low, high = (float(v) for v in theilslopes(y, x, alpha=COVERAGE))
        rises = True if low > 0 else False if high <= 0 else None
    if values[-1] >= level:
        return Forecast(0.0, 0.0, 0.0, rises)
    if slope is None or low is None or high is None:
        return Forecast(None)
    middle = float(np.median(x))
    since, gap = float(x[-1]) - middle, level - float(np.median(y - slope * (x - middle)))
    told, earliest, latest = (_crossing(s, gap, since) for s in (slope, high, low))
    return Forecast(None if rises is None else told, earliest, latest, rises)


def _crossing(slope: float, gap: float, since: float) -> float:
    """Return the time from the last look until a line that begins ``gap`` below the level ``since`` ago is at it."""
    if slope <= 0:
        return math.inf
    return max(0.0, gap / slope - since)
