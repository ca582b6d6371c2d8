"""Which option of an estimator matters: paired comparisons of its values on the same batches, others held fixed."""

import enum
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from dyneq.gradients.agreement import LEVEL, ROUNDING

Array = NDArray[np.float64]


class Effect(enum.StrEnum):
    """What an option does to a quantity."""

    MATTERS = "matters"
    NOTHING = "does nothing"
    UNDETERMINED = "undetermined"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Comparison:
    """What varying one option does, the others fixed in turn.

    Attributes:
        effect: The reading.
        largest: Largest difference of means between two of its values.
        low: Lower end of that difference's interval, in absolute value, 0 where the interval holds 0.
        high: Largest absolute value that any difference may have within its interval.
    """

    effect: Effect
    largest: float
    low: float
    high: float


def compare(values: Array, points: Array, option: int, small: float) -> Comparison:
    """Return what one option does to a quantity that is known on every batch.

    Of all pairs of points that differ in this option alone, the differences on each batch give a mean with a
    t-interval. All intervals together hold with the probability :data:`LEVEL` (Bonferroni: each with a share of the
    rest). The option matters if one lies beyond +-small, and does nothing if all lie within.

    Args:
        values: The quantity ``[point, batch]``; points with NaN are left out.
        points: Index of the value of every option ``[point, option]``.
        option: Which option.
        small: Difference below which nothing is said to happen.
    """
    others = np.delete(points, option, axis=1)
    known = [bool(np.isfinite(row).all()) for row in values]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(points)), 2)
        if known[a] and known[b] and (others[a] == others[b]).all()
    ]
    n = values.shape[1]
    if not pairs:
        return Comparison(Effect.UNKNOWN, np.nan, np.nan, np.nan)
    difference = np.stack([values[a] - values[b] for a, b in pairs])
    mean = difference.mean(1)
    top = int(np.abs(mean).argmax())
    if n < 2:
        return Comparison(Effect.UNDETERMINED, float(abs(mean[top])), np.nan, np.nan)
    quantile = student.ppf(1 - (1 - LEVEL) / (2 * len(pairs)), n - 1)
    half = quantile * difference.std(1, ddof=1) / n**0.5 + ROUNDING
    low, high = np.maximum(np.abs(mean) - half, 0), np.abs(mean) + half
    effect = Effect.UNDETERMINED
    if (low > small).any():
        effect = Effect.MATTERS
    elif (high < small).all():
        effect = Effect.NOTHING
    return Comparison(effect, float(abs(mean[top])), float(low[top]), float(high.max()))


def indistinguishable(values: Array, best: int) -> NDArray[np.bool_]:
    """Return which points cannot be told from the best one, by paired intervals over batches ``[point]``.

    Args:
        values: The quantity ``[point, batch]``.
        best: Index of the best point.
    """
    n, known = values.shape[1], np.asarray(np.isfinite(values).all(1))
    if n < 2:
        return known
    count = max(int(known.sum()) - 1, 1)
    difference = values[best] - values
    half = student.ppf(1 - (1 - LEVEL) / (2 * count), n - 1) * difference.std(1, ddof=1) / n**0.5 + ROUNDING
    return known & np.asarray(difference.mean(1) <= half)
