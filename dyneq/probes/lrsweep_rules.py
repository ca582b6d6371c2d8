"""What is said of a gradient after a sweep: whether it lacks direction or only learning rate.

Changes of the loss are compared at each gradient's own best learning rate of the grid, sample by sample, and the
interval of the mean difference (the lag) decides:

- *first*: the gradient the others are compared with;
- *uphill*: its exact first-order slope is positive: small enough steps along it raise the loss of the batch;
- *as far*: the lag's interval lies within a tenth of what the first gradient descends;
- *learning rate*: the same, but at the first gradient's best rate it lags: its scale was wrong, not its direction;
- *direction*: it lags otherwise, although its best rate lies inside the grid, and still does at the vertex of the
  parabola through the rate and its two neighbours, which is what a finer grid would find;
- *farther*: it is ahead of the first gradient even at the vertex of that one's parabola;
- *undetermined*: anything else, such as a best rate at an end of the grid.
"""

import enum
from dataclasses import dataclass

import numpy as np

from dyneq.gradients.agreement import Array, Interval, student_interval
from dyneq.probes.lrsweep_measure import Sweep

#: Share of the first gradient's descent within which another is said to descend as far.
EQUAL = 0.1
#: Share of it below which a lag is nothing: interpolation and rounding make as much.
NEGLIGIBLE = 1e-3


class Verdict(enum.StrEnum):
    """What is said of one gradient."""

    FIRST = "first"
    UPHILL = "uphill"
    DIRECTION = "direction"
    AS_FAR = "as far"
    LEARNING_RATE = "learning rate"
    FARTHER = "farther"
    UNDETERMINED = "undetermined"
    REFUSED = "refused"


class Place(enum.StrEnum):
    """Where in the grid the best learning rate of a gradient lies."""

    INSIDE = "inside"
    LOWEST = "lowest"
    HIGHEST = "highest"
    SINGLE = "single"
    NONE = "none"


@dataclass(frozen=True)
class Judged:
    """The best learning rate of a gradient and what follows.

    Attributes:
        best: Its index, -1 where no rate gives a finite loss.
        best_lr: The rate itself, NaN where there is none.
        place: Where in the grid it lies.
        lag: Change at its best rate minus that of the first gradient at its own, over the batch's samples.
        verdict: What is said of it.
    """

    best: int
    best_lr: float
    place: Place
    lag: Interval
    verdict: Verdict


def judge(change: Array, found: Sweep) -> list[Judged]:
    """Return the judgement of every gradient.

    Args:
        change: Change of the loss ``[estimator, lr, sample]`` of the batch's samples.
        found: The sweep it comes from.
    """
    best, place = [], []
    for rows in change:
        i, where = _best(rows)
        best.append(i)
        place.append(where)
    out = []
    for e, i in enumerate(best):
        lag = _difference(change[e], i, change[0], best[0])
        verdict = Verdict.FIRST if e == 0 else _verdict(change, found, e, best, place, lag)
        out.append(Judged(i, float(found.lr[i]) if i >= 0 else np.nan, place[e], lag, verdict))
    return out


def _best(rows: Array) -> tuple[int, Place]:
    """Return the rate with the lowest finite mean change, and where it lies."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.mean(1)
    finite = np.isfinite(mean)
    if not finite.any():
        return -1, Place.NONE
    i = int(np.where(finite, mean, np.inf).argmin())
    if len(mean) == 1:
        return i, Place.SINGLE
    return i, Place.LOWEST if i == 0 else Place.HIGHEST if i == len(mean) - 1 else Place.INSIDE


def at_vertex(rows: Array, lr: Array, i: int) -> Array:
    """Return each sample's change at the vertex of the parabola through the mean changes at a rate and its neighbours.

    The value there is that of the samples' own parabolas; NaN where the rate has no neighbours with finite changes.

    Args:
        rows: Changes ``[lr, sample]``.
        lr: Rates, ascending.
        i: Index of the rate with the lowest mean.
    """
    nothing = np.full(rows.shape[1], np.nan)
    if not 0 < i < len(lr) - 1 or not np.isfinite(rows[i - 1 : i + 2]).all():
        return nothing
    x, mean = lr[i - 1 : i + 2] / lr[i], rows[i - 1 : i + 2].mean(1)
    curvature, slope, _ = np.polyfit(x, mean, 2)
    if curvature <= 0:
        return nothing
    at = -slope / (2 * curvature)
    weights = np.array([np.prod([(at - x[k]) / (x[j] - x[k]) for k in range(3) if k != j]) for j in range(3)])
    found: Array = weights @ rows[i - 1 : i + 2]
    return found


def _difference(a: Array, i: int, b: Array, j: int) -> Interval:
    """Return the interval of the mean of a_i - b_j over samples."""
    if i < 0 or j < 0:
        return Interval(*(np.array(np.nan) for _ in range(3)))
    return student_interval(a[i] - b[j])


def _verdict(change: Array, found: Sweep, e: int, best: list[int], place: list[Place], lag: Interval) -> Verdict:
    if found.refusal[e]:
        return Verdict.REFUSED
    if found.scale[e] * found.inner[e] < 0:
        return Verdict.UPHILL
    i, j = best[e], best[0]
    if i < 0 or j < 0 or change[0, j].mean() >= 0:
        return Verdict.UNDETERMINED
    inside = place[e] is Place.INSIDE and place[0] is Place.INSIDE
    descent = abs(change[0, j].mean())
    room, nothing = EQUAL * descent, NEGLIGIBLE * descent
    if inside and -room <= lag.low and lag.high <= room:
        behind = _difference(change[e], j, change[0], j)
        return Verdict.LEARNING_RATE if i != j and not behind.low <= room else Verdict.AS_FAR
    if lag.low > 0:
        at_best = student_interval(at_vertex(change[e], found.lr, i) - change[0, j])
        return Verdict.DIRECTION if place[e] is Place.INSIDE and at_best.low > nothing else Verdict.UNDETERMINED
    ahead = student_interval(change[e, i] - at_vertex(change[0], found.lr, j))
    return Verdict.FARTHER if place[0] is Place.INSIDE and ahead.high < -nothing else Verdict.UNDETERMINED
